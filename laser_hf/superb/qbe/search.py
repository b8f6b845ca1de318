"""Scores of all queries against all documents, layer by layer; an interrupted search goes on where it stopped."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ...errors import LaserError
from ..features import Features, Utterance, read_waveform, sample_counts
from ..frame_store import FrameStore, fill
from .data import QbeData
from .matching import SHORTEST_QUERY, match, unit_frames

logger = logging.getLogger(__name__)

BLOCK_DOCUMENTS, BLOCK_QUERIES = 128, 512  # held in memory at a time


@dataclass(frozen=True)
class Search:
    """Scores (queries, documents), NaN where an utterance was skipped, and the statistics that normalised frames."""

    scores: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def search_layers(
    features: Features, layers: Sequence[int], sets: Sequence[QbeData], folder: Path, device: torch.device | str = "cpu"
) -> tuple[dict[tuple[str, int], Search], dict[Utterance, tuple[str, str]]]:
    """Searches by split and layer, and kind and reason of each recording that could not be used.

    The recordings of `sets`, all of one gain, are encoded once; `folder` gets everything that an interrupted run can go
    on from, memory holds few frames at a time. `LaserError` as `search`, or if the disk is too small for the frames.
    """
    utterances = list(dict.fromkeys(u for data in sets for u in (*data.queries, *data.documents)))
    store = FrameStore(folder / "frames", layers, features.dim)
    names, samples = [utterance.name for utterance in utterances], sample_counts(utterances)
    advice = "name fewer layers with --layer, or use another disk"

    def read(index: int) -> torch.Tensor:
        return read_waveform(utterances[index], features.shortest, sets[0].gain)

    fill(store, features, names, samples, read, advice=advice)
    place = {utterance: index for index, utterance in enumerate(utterances)}
    searches = {}
    for layer, data in product(layers, sets):
        queries, documents = ([place[u] for u in part] for part in (data.queries, data.documents))
        blocks = folder / f"{data.split}_layer{layer:02d}"
        searches[data.split, layer] = search(store, layer, queries, documents, blocks, device)
    return searches, {utterances[index]: why for index, why in store.skipped.items()}


def search(
    store: FrameStore,
    layer: int,
    queries: Sequence[int],
    documents: Sequence[int],
    folder: Path,
    device: torch.device | str = "cpu",
) -> Search:
    """Score every query against every document on frames of one layer, normalised over all these recordings.

    `queries` and `documents` are indices in the store; those that it skipped get NaN. `LaserError` if no query or no
    document is left, or each of them is too short to be aligned. `folder` gets the scores, a file with checksums (npz)
    for every block of documents, there whole or not at all.
    """
    rows = [row for row, index in enumerate(queries) if index in store.places]
    # In the order of encoding: the documents of a block are of similar length.
    column_of = {index: column for column, index in enumerate(documents)}
    columns = [column_of[index] for index in store.places if index in column_of]
    if not rows or not columns:
        kind, reason = next(iter(store.skipped.values()))
        raise LaserError(f"no query or no document could be used; the first is {kind}: {reason}")
    normal = statistics(store, layer, [queries[row] for row in rows] + [documents[column] for column in columns])
    folder.mkdir(parents=True, exist_ok=True)
    scores = np.full((len(queries), len(documents)), np.nan)
    with tqdm(total=len(columns), desc=folder.name, unit="document", mininterval=2, disable=None) as bar:
        for first in range(0, len(columns), BLOCK_DOCUMENTS):
            block = columns[first : first + BLOCK_DOCUMENTS]
            path = folder / f"{first:06d}.npz"
            found = _read_block(path, (len(rows), len(block)))
            if found is None:
                loaded = [unit_frames(store.read(layer, documents[column]), *normal) for column in block]
                found = np.empty((len(rows), len(block)))
                for start in range(0, len(rows), BLOCK_QUERIES):
                    part = slice(start, start + BLOCK_QUERIES)
                    sought = [unit_frames(store.read(layer, queries[row]), *normal) for row in rows[part]]
                    found[part] = match(sought, loaded, device).numpy()
                with path.with_suffix(".new").open("wb") as file:
                    np.savez(file, found)
                os.replace(path.with_suffix(".new"), path)
            scores[np.ix_(rows, block)] = found
            bar.update(len(block))
    if not np.nan_to_num(scores).any():
        short = f"all {len(rows)} queries have fewer than {SHORTEST_QUERY} frames"
        raise LaserError(f"nothing could be aligned: {short}, or all {len(columns)} documents have one")
    return Search(scores, *normal)


def _read_block(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        with np.load(path) as file:
            found = file["arr_0"]
        return found if found.shape == shape and np.isfinite(found).all() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s is damaged (%s) and is computed again", path, error)
        return None


def statistics(store: FrameStore, layer: int, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased standard deviation (at least 1e-9) by dimension over all frames of `indices`, in float64."""
    # Two passes over the disk: one utterance at a time is in memory.
    total, count, squares = np.zeros(store.dim), 0, np.zeros(store.dim)
    for frames in (store.read(layer, index) for index in indices):
        total, count = total + frames.sum(0, dtype=np.float64), count + len(frames)
    mean = total / count
    for frames in (store.read(layer, index) for index in indices):
        squares += np.square(frames - mean).sum(0)
    return mean, np.sqrt(squares / max(1, count - 1)).clip(1e-9)
