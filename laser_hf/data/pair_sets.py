"""Data sets of pairs: map-style or streamed, with lengths read from headers and decoded audio kept on disk."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import torch
from datasets.distributed import split_dataset_by_node
from datasets.fingerprint import Hasher

from ..errors import LaserError
from .decode import SAMPLE_RATE, BadAudio, audio_seconds, decode_audio, is_remote
from .pairs import Pair, PairTransform
from .perturbation import Perturbation

logger = logging.getLogger(__name__)

ROWS_PER_PROCESS = 500
"""A further process is started for so many utterances."""
_VERSION = 1  # raise it when `durations` or `keep_decoded` give other values


class PairDataset(torch.utils.data.Dataset):
    """Map-style data set of pairs; each is made when it is read.

    Args:
        speech: as `load_speech` returns it.
        transform: makes the pairs; this data set sets its epoch.
        check_lengths: read all headers first and leave out utterances outside the transform's limits. By default only
            if `max_seconds` is set. (Utterances skipped while training leave smaller updates.)

    Attributes:
        left_out: number of utterances `too_short` and `too_long` that were left out; empty without `check_lengths`.

    Raises:
        LaserError: no utterance lies within the limits.

    Example:
        >>> speech = load_speech("LibriSpeech", "train-clean-100")
        >>> pairs = PairDataset(speech, PairTransform(build_perturbation("speed_pitch"), seed=1))
        >>> batch = pad_pairs([pairs[0], pairs[1]])
    """

    def __init__(self, speech: datasets.Dataset, transform: PairTransform, check_lengths: bool | None = None) -> None:
        self.transform = transform
        self.speech = speech
        self.left_out: dict[str, int] = {}
        if transform.max_seconds is not None if check_lengths is None else check_lengths:
            self._leave_out()
        self._pairs = self.speech.with_transform(transform)

    def _leave_out(self) -> None:
        """Keep what lies within the limits, and what has no readable header: decoding says what is wrong with it."""
        shortest, longest = self.transform.min_seconds, self.transform.max_seconds or float("inf")
        found = durations(self.speech)
        keep = [i for i, seconds in enumerate(found) if seconds is None or shortest <= seconds <= longest]
        self.left_out = {
            "too_short": sum(seconds is not None and seconds < shortest for seconds in found),
            "too_long": sum(seconds is not None and seconds > longest for seconds in found),
        }
        if not keep:
            raise LaserError(
                f"no utterance is at least min_seconds {shortest:g} and at most max_seconds {longest:g} long; "
                f"left out: {self.left_out}"
            )
        self.speech = self.speech.select(keep)
        self.seconds = [self._as_trained(found[i]) for i in keep]
        logger.info("%d utterances, %.1f hours; left out: %s", len(keep), sum(self.seconds) / 3600, self.left_out)

    def _as_trained(self, seconds: float | None) -> float:
        return min(seconds or 0.0, self.transform.crop_seconds or float("inf"))

    @cached_property
    def seconds(self) -> list[float]:
        """Length of each utterance as trained on (cropped), from its header; 0 where that cannot be read."""
        return [self._as_trained(seconds) for seconds in durations(self.speech)]

    @property
    def perturbation(self) -> Perturbation:
        """Makes the perturbed views; on the device, if the transform leaves them to it."""
        return self.transform.perturbation

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of the next pass, 0-based; running workers see it."""
        self.transform.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.speech)

    def __getitem__(self, index: int) -> Pair:
        """See `PairTransform.pair`."""
        return self._pairs[index]


class PairStream(torch.utils.data.IterableDataset):
    """Endless stream of pairs for one process: epoch after epoch, each shuffled and perturbed anew.

    Every worker counts its own epochs, so that none waits where another runs out of its share. Shuffling comes before
    decoding: each worker holds `buffer_size` stored utterances (some 200 kB of FLAC each). In an epoch every utterance
    comes up once over all processes and workers together. A process reads its own shards only if their number is a
    multiple of `world_size`; else it reads all of them and keeps one utterance in `world_size`.

    Args:
        speech: stream as `load_speech` returns it.
        transform: makes the pairs.
        seed: of the shuffling; the same in every process.
        buffer_size: utterances shuffled at a time.
        rank, world_size: this process (0-based) and how many there are.
    """

    def __init__(
        self,
        speech: datasets.IterableDataset,
        transform: PairTransform,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.speech = speech
        self.transform = transform
        self.seed = seed
        self.buffer_size = buffer_size
        self.rank = rank
        self.world_size = world_size

    @property
    def num_shards(self) -> int:
        """Files that this process reads; more workers than that would idle."""
        return max(self.speech.num_shards // self.world_size, 1)

    @property
    def perturbation(self) -> Perturbation:
        """Makes the perturbed views; on the device, if the transform leaves them to it."""
        return self.transform.perturbation

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0-based, with which the next iteration begins."""
        self.transform.set_epoch(epoch)

    def of_epoch(self, epoch: int) -> Iterator[Pair]:
        """The pairs of one epoch for this process (in a dataloader worker: for this worker)."""
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        stream = self.speech.shuffle(seed=seed, buffer_size=self.buffer_size)
        if self.world_size > 1:
            stream = split_dataset_by_node(stream, self.rank, self.world_size)
        transform = self.transform.at_epoch(epoch)
        return (transform.pair(row["id"], row["audio"]) for row in stream)

    def __iter__(self) -> Iterator[Pair]:
        for epoch in itertools.count(self.transform.epoch):
            empty = True
            for pair in self.of_epoch(epoch):
                empty = False
                yield pair
            if empty:
                return


def durations(speech: datasets.Dataset) -> list[float | None]:
    """Seconds of each utterance at 16 kHz, from the headers of its audio; read in parallel and cached.

    Returns:
        `None` where the header cannot be read or tells no length. (Audio that is damaged behind its header has a
        length here and is refused when it is decoded.)

    Raises:
        OSError: a remote file system cannot be reached.
    """
    return _cached_map(speech, _read_seconds, None, {"seconds": datasets.Value("float64")})["seconds"][:]


def keep_decoded(speech: datasets.Dataset, folder: str | os.PathLike[str] | None = None) -> datasets.Dataset:
    """Decode all utterances once, in parallel, and keep them on disk as mono WAV at 16 kHz.

    The samples are bit for bit those of `decode_audio`. They take 16 bits if that loses nothing (16-bit FLAC and WAV at
    16 kHz; 115 MB an hour), else 32. Audio that is refused stays as it is. Everything is decoded again when a file
    changes its size or time of change, or when other utterances are chosen; old files can be deleted at any time.

    Args:
        speech: as `load_speech` returns it.
        folder: made if it is not there; `None` for `laser_hf` in the cache of `datasets`.

    Raises:
        LaserError: the folder cannot be written, or the disk is full.
    """
    return _cached_map(speech, _decode, folder, speech.features | {"audio": datasets.Audio(decode=False)})


def _read_seconds(batch: dict[str, list[Any]], rank: int | None) -> dict[str, list[Any]]:
    return {"seconds": [audio_seconds(audio) for audio in batch["audio"]]}


def _decode(batch: dict[str, list[Any]], rank: int | None) -> dict[str, list[Any]]:
    if rank is not None:
        torch.set_num_threads(1)  # a forked process must not wait for threads of its parent
    return {"audio": [_as_wav(audio) for audio in batch["audio"]]}


def _as_wav(audio: Any) -> Any:
    try:
        waveform = decode_audio(audio, min_seconds=0.0).waveform
    except BadAudio:
        return audio
    full_scale = waveform * 2.0**15
    pcm = full_scale.round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    exact = torch.equal(pcm.to(torch.float32), full_scale)
    samples, subtype = (pcm, "PCM_16") if exact else (waveform, "FLOAT")
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), SAMPLE_RATE, format="WAV", subtype=subtype)
    return {"bytes": file.getvalue(), "path": audio.get("path")}


def _cached_map(
    speech: datasets.Dataset, function: Callable, folder: str | os.PathLike[str] | None, features: dict[str, Any]
) -> datasets.Dataset:
    """`speech.map(function)`, computed anew if the utterances, or the size or time of a file of theirs, change."""
    folder = Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "laser_hf").expanduser()
    stored = speech.flatten()
    paths = [path for path in stored["audio.path"] if path] if "audio.path" in stored.column_names else []
    name = function.__name__.strip("_")
    key = Hasher.hash((_VERSION, name, speech._fingerprint, [_state(path) for path in paths]))
    processes = min(os.cpu_count() or 1, len(speech) // ROWS_PER_PROCESS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return speech.map(
            function,
            batched=True,
            batch_size=16,
            writer_batch_size=128,
            with_rank=True,
            num_proc=processes if processes > 1 else None,
            features=datasets.Features(features),
            remove_columns=[column for column in speech.column_names if column not in features],
            new_fingerprint=key,
            cache_file_name=str(folder / f"{name}-{key}.arrow"),
            load_from_cache_file=not any(map(is_remote, paths)),
            desc=name,
        )
    except OSError as error:
        if error.errno is None:  # a remote file system
            raise
        raise LaserError(
            f"cannot keep audio or its lengths in {folder} ({error.strerror or error}). Free some space, or set "
            "HF_DATASETS_CACHE (for decoded audio: --cache_decoded) to another folder"
        ) from error


def _state(path: str) -> tuple[int, int] | None:
    """Size and time of change of a local file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
