"""Folders of FLAC files with the lengths of LibriSpeech train-clean-100, made up or cut from real speech."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16_000
UTTERANCES = 28_539
"""Utterances of train-clean-100; 3,600 updates of 8 pairs are about one epoch."""
LENGTHS = "74 % triangular from 12 over 15 to 17 s, 26 % uniform from 2 to 12 s; mean 12.7 s"
"""The distribution that `draw_seconds` draws from: mean and range of train-clean-100, most utterances near the end."""


def draw_seconds(count: int, generator: np.random.Generator) -> np.ndarray:
    """Lengths of `count` utterances in seconds, see `LENGTHS`."""
    long = generator.triangular(12.0, 15.0, 17.0, count)
    short = generator.uniform(2.0, 12.0, count)
    return np.where(generator.random(count) < 0.74, long, short)


def make_waveform(seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Harmonics of a wandering pitch in syllables, and noise: compresses in FLAC about as speech does; int16."""
    samples = int(seconds * SAMPLE_RATE)
    time = np.arange(samples, dtype=np.float32) / SAMPLE_RATE
    pitch = generator.uniform(90, 220) * (1 + 0.15 * np.sin(2 * np.pi * generator.uniform(0.2, 0.6) * time))
    phase = 2 * np.pi * np.cumsum(pitch, dtype=np.float64).astype(np.float32) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k for k in (1, 2, 3, 5, 8))
    syllables = np.clip(np.sin(2 * np.pi * generator.uniform(2, 4) * time + generator.uniform(0, 6)), 0, None)
    noise = generator.standard_normal(samples, dtype=np.float32)
    return (32767 * (0.12 * voice * syllables + 0.01 * noise)).clip(-32768, 32767).astype(np.int16)


def write_utterances(
    folder: Path, count: int, distinct: int | None = None, speech: Path | None = None, scale: float = 1.0, seed: int = 0
) -> list[Path]:
    """Fill `folder` with `count` FLAC files, of which `distinct` differ; the others are links to these.

    Args:
        folder: is created.
        count: files.
        distinct: files that are really written; `None` for all.
        speech: folder of real speech to cut the waveforms from, end to end, instead of making them.
        scale: of the lengths, for trials.
        seed: of lengths and waveforms.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    distinct = min(distinct or count, count)
    real = _RealSpeech(speech) if speech is not None else None
    paths = []
    for index, seconds in enumerate(scale * draw_seconds(distinct, generator)):
        path = folder / f"utterance-{index:06d}.flac"
        samples = make_waveform(seconds, generator) if real is None else real.take(int(seconds * SAMPLE_RATE))
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        paths.append(path)
    for index in range(distinct, count):
        path = folder / f"utterance-{index:06d}.flac"
        os.link(paths[index % distinct], path)
        paths.append(path)
    return paths


class _RealSpeech:
    """Pieces of any length from a folder of speech, file after file, round and round."""

    def __init__(self, folder: Path) -> None:
        suffixes = {".flac", ".wav", ".ogg", ".opus"}
        self.files = sorted(path for path in Path(folder).rglob("*") if path.suffix in suffixes)
        if not self.files:
            raise SystemExit(f"no .flac, .wav, .ogg or .opus files in {folder}")
        self.next, self.left = 0, np.zeros(0, np.int16)

    def take(self, samples: int) -> np.ndarray:
        """The next `samples` samples."""
        while len(self.left) < samples:
            found, rate = soundfile.read(self.files[self.next % len(self.files)], dtype="int16", always_2d=True)
            if rate != SAMPLE_RATE:
                raise SystemExit(f"{self.files[self.next % len(self.files)]} has {rate} Hz; expected {SAMPLE_RATE}")
            self.left = np.concatenate((self.left, found[:, 0]))
            self.next += 1
        piece, self.left = self.left[:samples], self.left[samples:]
        return piece
