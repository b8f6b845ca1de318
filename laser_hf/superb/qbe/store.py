"""Frames of a corpus on disk: encoded once, in batches, read back by pieces, taken up again where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm.auto import tqdm

from ...data.decode import BadAudio, decode_audio
from ...encoders import SAMPLE_RATE
from .data import Utterance
from .frontends import Frontend


def read_waveform(utterance: Utterance, shortest: int = 1, gain: float = 1.0) -> torch.Tensor:
    """Samples of an utterance, (samples,) float32, mono, 16 kHz, times `gain`.

    Args:
        utterance: a file, or a part of one.
        shortest: least number of samples at 16 kHz.
        gain: factor on the samples.

    Raises:
        BadAudio: missing, undecodable, empty, shorter than `shortest`, not finite, or silent.
    """
    source: dict | str = str(utterance.audio)
    if utterance.duration is not None:
        source = _read_part(utterance)
    waveform = decode_audio(source, SAMPLE_RATE, min_seconds=0.0).waveform
    if len(waveform) < shortest:
        raise BadAudio("too_short", f"{len(waveform)} samples; one frame needs {shortest}")
    return waveform * gain if gain != 1.0 else waveform


def _read_part(utterance: Utterance) -> dict:
    """Only the samples asked for: many queries may be cut from one long recording."""
    if not utterance.audio.is_file():
        raise BadAudio("undecodable", f"{utterance.audio}: no such file")
    try:
        with soundfile.SoundFile(utterance.audio) as file:
            first = round(utterance.start * file.samplerate)
            if not 0 <= first < file.frames or utterance.duration <= 0:
                raise BadAudio(
                    "empty",
                    f"{utterance.duration:g} s from {utterance.start:g} s lie outside of {utterance.audio} "
                    f"({file.frames / file.samplerate:.2f} s)",
                )
            file.seek(first)
            samples = file.read(round(utterance.duration * file.samplerate), dtype="float32", always_2d=True)
            return {"array": samples.T, "sampling_rate": file.samplerate}
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudio("undecodable", f"{utterance.audio}: {error}") from error


def sample_counts(utterances: Sequence[Utterance]) -> list[int]:
    """Samples at 16 kHz by header; 0 for a file that cannot be opened (decoding it will tell why)."""
    headers: dict[Path, float] = {}
    counts = []
    for utterance in utterances:
        if utterance.audio not in headers:
            try:
                headers[utterance.audio] = soundfile.info(utterance.audio).duration
            except (soundfile.SoundFileError, OSError):
                headers[utterance.audio] = 0.0
        seconds = headers[utterance.audio]
        if utterance.duration is not None:
            seconds = min(utterance.duration, max(0.0, seconds - utterance.start))
        counts.append(round(seconds * SAMPLE_RATE))
    return counts


def plan_batches(counts: Sequence[int], batch_seconds: float) -> list[list[int]]:
    """Positions in batches of at most `batch_seconds` of padded audio (one utterance at least), longest first.

    Longest first, so that a batch too large for the memory fails at once and not after hours.
    """
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    batches: list[list[int]] = []
    for index in order:
        longest = counts[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_seconds * SAMPLE_RATE:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class FrameStore:
    """Frames of utterances by layer: one flat float32 file a layer, and a journal with a line a batch.

    An utterance's frames are contiguous. A batch counts once its line is in the journal; what an interrupted run has
    written beyond that is cut off when the store is opened again.

    Args:
        folder: of the files; made if it does not exist.
        layers: numbers of the layers.
        dim: dimension of a frame.
    """

    def __init__(self, folder: Path, layers: Sequence[int], dim: int):
        self.folder, self.layers, self.dim = folder, list(layers), dim
        self.places: dict[int, tuple[int, int]] = {}  # utterance -> first frame, frames
        self.skipped: dict[int, tuple[str, str]] = {}  # utterance -> kind, reason
        self.batches = self.frames = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = folder / "journal.jsonl"
        self._replay()

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer{layer:02d}.f32"

    def _replay(self) -> None:
        whole = 0
        if self._journal.exists():
            for line in self._journal.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                self._enter(json.loads(line))
                whole += len(line)
            os.truncate(self._journal, whole)
        for layer in self.layers:
            self._path(layer).touch()
            os.truncate(self._path(layer), self.frames * self.dim * 4)

    def _enter(self, entry: dict) -> None:
        for index, count in entry["frames"]:
            self.places[index] = (self.frames, count)
            self.frames += count
        self.skipped |= {index: (kind, reason) for index, kind, reason in entry["skipped"]}
        self.batches += 1

    def add(
        self, indices: Sequence[int], frames: Sequence[Sequence[torch.Tensor]], skipped: Sequence[tuple[int, str, str]]
    ) -> None:
        """Append a batch: `frames[layer][i]` (frames, dim) of utterance `indices[i]`, and what was left out."""
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
        """Frames of an utterance, (frames, dim) float32.

        Raises:
            KeyError: it was skipped.
        """
        first, count = self.places[index]
        flat = np.fromfile(self._path(layer), np.float32, count * self.dim, offset=first * self.dim * 4)
        return flat.reshape(count, self.dim)

    def statistics(self, layer: int, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and unbiased standard deviation (at least 1e-9) of each dimension over all frames of `indices`.

        In float64 and in two passes over the disk; an utterance at a time in memory.
        """
        total = sum(self.places[index][1] for index in indices)
        mean = np.zeros(self.dim)
        for index in indices:
            mean += self.read(layer, index).sum(0, dtype=np.float64)
        mean /= total
        squares = np.zeros(self.dim)
        for index in indices:
            squares += np.square(self.read(layer, index) - mean).sum(0)
        return mean, np.sqrt(squares / max(1, total - 1)).clip(1e-9)


def encode(
    frontend: Frontend,
    utterances: Sequence[Utterance],
    store: FrameStore,
    gain: float = 1.0,
    batch_seconds: float = 60.0,
    progress: bool = True,
) -> None:
    """Fill `store` with the frames of all `utterances` that can be used; the others are entered as skipped.

    Batches depend on the utterances alone, so that a run that is taken up again computes what it would have computed.
    The next batch is decoded while one is encoded.

    Raises:
        FloatingPointError: the model gives frames that are not finite.
    """
    batches = plan_batches(sample_counts(utterances), batch_seconds)[store.batches :]
    bar = tqdm(
        total=len(utterances), initial=len(store.places) + len(store.skipped), desc="frames", disable=not progress
    )
    with bar:
        for indices, waveforms, skipped in _decoded(utterances, batches, frontend.shortest, gain):
            frames = frontend(waveforms, store.layers) if waveforms else [[] for _ in store.layers]
            for position, index in enumerate(indices):
                if not all(bool(layer[position].isfinite().all()) for layer in frames):
                    raise FloatingPointError(f"the model's frames of {utterances[index].audio} are not finite")
            store.add(indices, frames, skipped)
            bar.update(len(indices) + len(skipped))


def _decoded(
    utterances: Sequence[Utterance], batches: Sequence[Sequence[int]], shortest: int, gain: float
) -> Iterator[tuple[list[int], list[torch.Tensor], list[tuple[int, str, str]]]]:
    """Batches with their waveforms, one decoded ahead."""

    def decode(batch: Sequence[int]):
        indices, waveforms, skipped = [], [], []
        for index in batch:
            try:
                waveforms.append(read_waveform(utterances[index], shortest, gain))
                indices.append(index)
            except BadAudio as error:
                skipped.append((index, error.kind, error.reason))
        return indices, waveforms, skipped

    with ThreadPoolExecutor(1) as executor:
        ahead = None
        for batch in batches:
            following = executor.submit(decode, batch)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()
