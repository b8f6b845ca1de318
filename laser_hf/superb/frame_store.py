"""Frames of many utterances: `encode` keeps them in memory, `fill` writes a `FrameStore`, which can be resumed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..data import BadAudio
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..records import tensors_digest
from .features import Features

logger = logging.getLogger(__name__)

Skipped = Sequence[tuple[int, str, str]]
BATCH_SECONDS = 60.0
"""Audio encoded at once, padding included."""


def length_batches(lengths: Sequence[int], limit: float = BATCH_SECONDS * SAMPLE_RATE) -> list[list[int]]:
    """Indices in batches whose padded length is at most `limit` (at least one index each), longest first.

    A batch too large for the memory then fails at the start and not after hours. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def encode(
    features: Features, waveforms: Mapping[str, torch.Tensor], layers: Sequence[int], progress: str = ""
) -> list[dict[str, torch.Tensor]]:
    """Frames `(frames, dim)` of each utterance, for every layer of `layers` (numbers, not negative).

    `waveforms` are `(samples,)` at 16 kHz by utterance, `progress` is the label of a progress bar; none if empty.
    """
    names, frames = list(waveforms), [{} for _ in layers]
    batches = length_batches([len(waveform) for waveform in waveforms.values()])
    for batch in tqdm(batches, desc=progress, disable=not progress or None, mininterval=2):
        chosen = [names[index] for index in batch]
        for found, states in zip(frames, features([waveforms[name] for name in chosen], layers), strict=True):
            found.update(zip(chosen, states, strict=True))
    return frames


class FrameStore:
    """Frames of utterances on disk: one safetensors file a batch, which is there whole or not at all.

    A store that is opened again has the batches of the earlier run. It can be pickled: no file stays open. `layers` are
    numbers, `dim` is the dimension of a frame, and `key` holds what decides the frames, as JSON values: weights,
    utterances. A store of another key is emptied.
    """

    def __init__(self, folder: str | Path, layers: Sequence[int], dim: int, key: Mapping[str, Any] | None = None):
        self.folder, self.layers, self.dim = Path(folder), list(layers), dim
        self.places: dict[int, int] = {}
        """Batch of each utterance, in the order in which they were encoded."""
        self.skipped: dict[int, tuple[str, str]] = {}
        """Kind and reason of each utterance that could not be used."""
        self.batches, self._content = 0, json.dumps([self.layers, dim, key])
        while (path := self._path(self.batches)).exists():
            about, tensors = {}, {}
            with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.pop("sha256", None) != _digest(about, tensors):
                logger.warning("%s is damaged and made again", path)
                break
            if about["content"] != self._content:
                shutil.rmtree(self.folder)
                break
            self._enter(json.loads(about["utterances"]), json.loads(about["skipped"]))
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:06d}.safetensors"

    def _enter(self, indices: Sequence[int], skipped: Skipped) -> None:
        self.places |= dict.fromkeys(indices, self.batches)
        self.skipped |= {index: (kind, reason) for index, kind, reason in skipped}
        self.batches += 1

    def add(self, indices: Sequence[int], frames: Sequence[Sequence[torch.Tensor]], skipped: Skipped) -> None:
        """Append a batch: `frames[layer][i]` `(frames, dim)` of utterance `indices[i]`, and what was left out."""
        tensors = {str(index): torch.stack(layers) for index, *layers in zip(indices, *frames, strict=True)}
        about = {"content": self._content, "utterances": json.dumps(indices), "skipped": json.dumps(skipped)}
        unfinished = self.folder / "unfinished"
        save_file(tensors, unfinished, about | {"sha256": _digest(about, tensors)})
        os.replace(unfinished, self._path(self.batches))
        self._enter(indices, skipped)

    def read(self, layer: int, index: int) -> np.ndarray:
        """Frames of one layer of an utterance, `(frames, dim)` float32; raises `KeyError` if it was skipped."""
        with safe_open(self._path(self.places[index]), "np") as file:
            return file.get_slice(str(index))[self.layers.index(layer)]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Frames of all layers of an utterance, `(layers, frames, dim)`."""
        with safe_open(self._path(self.places[index]), "pt") as file:
            return file.get_tensor(str(index))


def _digest(about: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    return sha256(json.dumps([sorted(about.items()), tensors_digest(tensors)]).encode()).hexdigest()


def fill(
    store: FrameStore,
    features: Features,
    names: Sequence[str],
    samples: Sequence[int],
    read: Callable[[int], torch.Tensor],
    *,
    batch_seconds: float = BATCH_SECONDS,
    advice: str = "use another disk",
    progress: str = "frames",
) -> None:
    """Encode into `store` what it does not hold yet; utterances that cannot be used are entered as skipped.

    Batches depend on `samples`, at 16 kHz, alone, so a run that is resumed computes what it would have computed. The
    next batch is read while one is encoded. `read` gives the waveform `(samples,)` of an utterance by its index, or
    raises `BadAudio`. `LaserError` if the disk is too small, with an `advice`, or the model's frames are not finite.
    """
    done = store.places | store.skipped
    frames = sum(features.frame_count(count) for index, count in enumerate(samples) if index not in done)
    needed, free = frames * len(store.layers) * store.dim * 4, shutil.disk_usage(store.folder).free
    if needed > free:
        what = f"the frames of {len(names) - len(done)} utterances take {needed / 2**30:.1f} GiB"
        raise LaserError(f"{what}, and {store.folder} has {free / 2**30:.1f} GiB free; {advice}")

    def decode(batch: Sequence[int]) -> tuple[dict[int, torch.Tensor], Skipped]:
        waveforms, skipped = {}, []
        for index in batch:
            try:
                waveforms[index] = read(index)
            except BadAudio as error:
                skipped.append((index, error.kind, error.reason))
        return waveforms, skipped

    bar = tqdm(total=len(names), initial=len(done), desc=progress, disable=not progress or None, mininterval=1)
    batches = length_batches(samples, batch_seconds * SAMPLE_RATE)[store.batches :]
    with ThreadPoolExecutor(1) as executor, bar:
        ahead = executor.submit(decode, batches[0] if batches else ())
        for _, following in pairwise([*batches, ()]):
            waveforms, skipped = ahead.result()
            ahead = executor.submit(decode, following)
            encoded = features(list(waveforms.values()), store.layers) if waveforms else [[] for _ in store.layers]
            for index, *layers in zip(waveforms, *encoded, strict=True):
                if not all(bool(states.isfinite().all()) for states in layers):
                    raise LaserError(f"the model's frames of {names[index]} are not finite")
            store.add(list(waveforms), encoded, skipped)
            bar.update(len(waveforms) + len(skipped))
