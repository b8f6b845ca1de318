"""Frames of many utterances: encoded in batches of similar length, in memory or on disk.

`encode` keeps the frames in memory. `fill` writes them to a `FrameStore`, which an interrupted run takes up again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import BadAudio
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from .features import Features

BATCH_SECONDS = 60.0
"""Audio encoded at once, padding included."""


def length_batches(samples: Sequence[int], batch_seconds: float = BATCH_SECONDS) -> list[list[int]]:
    """Indices in batches of at most `batch_seconds` of padded audio (at least one utterance each), longest first.

    A batch too large for the memory then fails at the start and not after hours. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lambda index: -samples[index]):
        if batches and samples[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_seconds * SAMPLE_RATE:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def encode(
    features: Features, waveforms: Mapping[str, torch.Tensor], layers: Sequence[int], progress: str = ""
) -> list[dict[str, torch.Tensor]]:
    """Frames `(frames, dim)` of each utterance in memory, for every layer of `layers`.

    Args:
        features: how to encode.
        waveforms: `(samples,)` at 16 kHz by utterance.
        layers: numbers of the layers, not negative.
        progress: label of a progress bar; none if empty.
    """
    names = list(waveforms)
    frames: list[dict[str, torch.Tensor]] = [{} for _ in layers]
    batches = length_batches([len(waveforms[name]) for name in names])
    for batch in tqdm(batches, desc=progress, disable=not progress, mininterval=2):
        encoded = features([waveforms[names[index]] for index in batch], layers)
        for found, states in zip(frames, encoded, strict=True):
            found.update((names[index], state) for index, state in zip(batch, states, strict=True))
    return frames


class FrameStore:
    """Frames of utterances by layer on disk: one flat float32 file a layer, and a journal with a line a batch.

    An utterance's frames are contiguous. A batch counts once its line is in the journal; what an interrupted run has
    written beyond that is cut off when the store is opened again. It can be pickled: no file stays open.

    Args:
        folder: of the files; made if it does not exist.
        layers: numbers of the layers.
        dim: dimension of a frame.
        key: what decides the frames, as JSON values: weights, utterances. A store of another key is emptied.
    """

    def __init__(self, folder: str | Path, layers: Sequence[int], dim: int, key: Mapping[str, Any] | None = None):
        self.folder, self.layers, self.dim = Path(folder), list(layers), dim
        self.places: dict[int, tuple[int, int]] = {}
        """First frame and number of frames of each utterance."""
        self.skipped: dict[int, tuple[str, str]] = {}
        """Kind and reason of each utterance that could not be used."""
        self.batches = self.frames = 0
        self._journal = self.folder / "journal.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open({"layers": self.layers, "dim": dim, "key": key})

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer{layer:02d}.f32"

    def _open(self, head: dict[str, Any]) -> None:
        """Enter the whole lines of the journal and cut off the rest; start anew if it is about something else."""
        lines = self._journal.read_bytes().splitlines(keepends=True) if self._journal.exists() else []
        lines = [line for line in lines if line.endswith(b"\n")]
        if lines and json.loads(lines[0]) == json.loads(json.dumps(head)):
            for line in lines[1:]:
                self._enter(json.loads(line))
            sizes = [path.stat().st_size if path.exists() else 0 for path in map(self._path, self.layers)]
            if min(sizes) < self.frames * self.dim * 4:
                lines = []
        else:
            lines = []
        if not lines:
            self.places, self.skipped, self.batches, self.frames = {}, {}, 0, 0
            lines = [json.dumps(head).encode() + b"\n"]
            self._journal.write_bytes(lines[0])
        os.truncate(self._journal, sum(map(len, lines)))
        for layer in self.layers:
            self._path(layer).touch()
            os.truncate(self._path(layer), self.frames * self.dim * 4)

    def _enter(self, entry: dict[str, Any]) -> None:
        for index, count in entry["frames"]:
            self.places[index] = (self.frames, count)
            self.frames += count
        self.skipped |= {index: (kind, reason) for index, kind, reason in entry["skipped"]}
        self.batches += 1

    def add(
        self, indices: Sequence[int], frames: Sequence[Sequence[torch.Tensor]], skipped: Sequence[tuple[int, str, str]]
    ) -> None:
        """Append a batch: `frames[layer][i]` `(frames, dim)` of utterance `indices[i]`, and what was left out."""
        for layer, utterances in zip(self.layers, frames, strict=True):
            with self._path(layer).open("ab") as file:
                for utterance in utterances:
                    utterance.numpy().astype(np.float32, copy=False).tofile(file)
        counts = [len(utterance) for utterance in frames[0]] if indices else []
        entry = {"frames": list(zip(indices, counts, strict=True)), "skipped": list(skipped)}
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._enter(entry)

    def read(self, layer: int, index: int) -> np.ndarray:
        """Frames of one layer of an utterance, `(frames, dim)` float32.

        Raises:
            KeyError: it was skipped.
        """
        first, count = self.places[index]
        flat = np.fromfile(self._path(layer), np.float32, count * self.dim, offset=first * self.dim * 4)
        return flat.reshape(count, self.dim)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Frames of all layers of an utterance, `(layers, frames, dim)`."""
        return torch.from_numpy(np.stack([self.read(layer, index) for layer in self.layers]))

    def delete(self) -> None:
        """Give the space back."""
        shutil.rmtree(self.folder, ignore_errors=True)


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

    Batches depend on `samples` alone, so a run that is resumed computes what it would have computed. The next batch is
    read while one is encoded.

    Args:
        store: of the layers to encode.
        features: how to encode.
        names: of the utterances, for messages.
        samples: of each utterance, at 16 kHz.
        read: waveform `(samples,)` of an utterance by its index; raises `BadAudio`.
        batch_seconds: audio encoded at once, padding included.
        advice: what a user can do if the disk is too small.
        progress: label of the progress bar; none if empty.

    Raises:
        LaserError: the disk is too small, or the model gives frames that are not finite.
    """
    done = {*store.places, *store.skipped}
    frames = sum(features.frame_count(count) for index, count in enumerate(samples) if index not in done)
    needed, free = frames * len(store.layers) * store.dim * 4, shutil.disk_usage(store.folder).free
    if needed > free:
        raise LaserError(
            f"the frames of {len(names) - len(done)} utterances take {needed / 2**30:.1f} GiB, and {store.folder} has "
            f"{free / 2**30:.1f} GiB free; {advice}"
        )
    batches = length_batches(samples, batch_seconds)[store.batches :]
    with tqdm(total=len(names), initial=len(done), desc=progress, disable=not progress, mininterval=1) as bar:
        for indices, waveforms, skipped in _read_ahead(batches, read):
            encoded = features(waveforms, store.layers) if waveforms else [[] for _ in store.layers]
            for position, index in enumerate(indices):
                if not all(bool(layer[position].isfinite().all()) for layer in encoded):
                    raise LaserError(f"the model's frames of {names[index]} are not finite")
            store.add(indices, encoded, skipped)
            bar.update(len(indices) + len(skipped))


def _read_ahead(
    batches: Sequence[Sequence[int]], read: Callable[[int], torch.Tensor]
) -> Iterator[tuple[list[int], list[torch.Tensor], list[tuple[int, str, str]]]]:
    """Indices, waveforms and what was skipped of each batch; the next one is read in a thread."""

    def decode(batch: Sequence[int]):
        indices, waveforms, skipped = [], [], []
        for index in batch:
            try:
                waveforms.append(read(index))
                indices.append(index)
            except BadAudio as error:
                skipped.append((index, error.kind, error.reason))
        return indices, waveforms, skipped

    with ThreadPoolExecutor(1) as executor:
        waiting = deque()
        for batch in batches:
            waiting.append(executor.submit(decode, batch))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
