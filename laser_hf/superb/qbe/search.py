"""All queries against all documents of a store, a block of documents at a time, with the scores kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .matching import match, unit_frames
from .store import FrameStore

_QUERY_FRAMES = 2**16  # frames of queries held at a time


@dataclass(frozen=True)
class Search:
    """Scores (queries, documents), NaN where an utterance was skipped, and the statistics that normalised frames."""

    scores: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def load_search(path: Path) -> Search | None:
    """A finished search, or `None`."""
    if not path.is_file():
        return None
    with np.load(path) as content:
        return Search(content["scores"], content["mean"], content["deviation"])


def search(
    store: FrameStore,
    layer: int,
    queries: Sequence[int],
    documents: Sequence[int],
    path: Path,
    *,
    distance: str = "cosine_exp",
    device: torch.device | str = "cpu",
    block_documents: int = 128,
    progress: bool = True,
    name: str = "",
) -> Search:
    """Score every query against every document on frames of one layer, and leave the result in `path` (npz).

    Frames are normalised by their mean and deviation over all these queries and documents. A block's scores are on
    disk once it is done, so an interrupted search goes on with the first block that is not.

    Args:
        store: frames on disk; memory holds those of a block of documents and of some queries only.
        layer: which frames.
        queries, documents: positions in the store; those that it skipped get NaN.
        path: of the result; beside it lies the unfinished one.
        distance, device: as in `matching.match`.
        block_documents: documents at a time.
        progress: show a bar, called `name`.
    """
    done = load_search(path)
    if done is not None:
        return done
    partial = path.with_suffix(".partial.npy")
    if partial.exists():
        scores = np.lib.format.open_memmap(partial, mode="r+")
    else:
        fresh = partial.with_suffix(".new")
        with fresh.open("wb") as file:
            np.save(file, np.full((len(queries), len(documents)), np.nan))
        os.replace(fresh, partial)
        scores = np.lib.format.open_memmap(partial, mode="r+")
    rows = [row for row, index in enumerate(queries) if index in store.places]
    # In the order of the file: reads are sequential and the documents of a block are of similar length.
    columns = [column for column, index in enumerate(documents) if index in store.places]
    columns.sort(key=lambda column: store.places[documents[column]])
    if not rows or not columns:
        raise ValueError("no query or no document could be used; the list of skipped files says why")
    used = [*(queries[row] for row in rows), *(documents[column] for column in columns)]
    mean, deviation = store.statistics(layer, used)

    def frames(index: int) -> torch.Tensor:
        return unit_frames(store.read(layer, index), mean, deviation)

    with tqdm(
        total=len(columns), desc=name or f"layer {layer}", unit="document", disable=not progress, mininterval=2
    ) as bar:
        for first in range(0, len(columns), block_documents):
            block = columns[first : first + block_documents]
            if np.isnan(scores[np.ix_(rows, block)]).any():
                loaded = [frames(documents[column]) for column in block]
                for part in _query_blocks(rows, [store.places[queries[row]][1] for row in rows]):
                    found = match([frames(queries[row]) for row in part], loaded, distance, device)
                    scores[np.ix_(part, block)] = found.numpy()
                scores.flush()
            bar.update(len(block))
    result = Search(np.array(scores), mean, deviation)
    del scores
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.savez(file, scores=result.scores, mean=mean, deviation=deviation)
    os.replace(fresh, path)
    partial.unlink()
    return result


def _query_blocks(rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    block: list[int] = []
    held = 0
    for row, length in zip(rows, lengths, strict=True):
        if block and held + length > _QUERY_FRAMES:
            yield block
            block, held = [], 0
        block.append(row)
        held += length
    yield block
