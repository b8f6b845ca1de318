"""Data sets of pairs: map-style or streamed, with lengths read from headers and decoded audio kept on disk."""

import hashlib
import io
import itertools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from .files import cache_folder, content_mark, writing_to
from .pairs import Pair, PairTransform
from .perturbation import Perturbation

logger = logging.getLogger(__name__)

ROWS_PER_PROCESS = 500  # utterances for which a further process is started
AT_ONCE = 10_000  # utterances whose ids or paths are in memory at once
REMOTE = "remote"


class _Pairs:
    @property
    def perturbation(self) -> Perturbation:
        """Makes the perturbed views; on the device, if the transform leaves them to it."""
        return self.transform.perturbation

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of the next pass, 0-based. Workers that are running see it."""
        self.transform.set_epoch(epoch)


class PairDataset(_Pairs, torch.utils.data.Dataset):
    """Map-style data set of pairs of `load_speech`; each is made when it is read, see `PairTransform.pair`.

    Args:
        speech, transform: the utterances, and what makes the pairs; this data set sets its epoch. A `LaserError` says
            that there is no utterance, or none within the limits.
        check_lengths: leave out utterances whose header says that they are outside the transform's limits: skipped
            while training, they would leave smaller updates. By default only if `max_seconds` is set.

    Attributes:
        left_out: number of utterances `too_short` and `too_long` that were left out; empty without `check_lengths`.
    """

    def __init__(self, speech: datasets.Dataset, transform: PairTransform, check_lengths: bool | None = None) -> None:
        if not len(speech):
            raise LaserError("there is no utterance to make pairs of: the data set, or the part chosen, is empty")
        self.speech, self.transform, self.left_out = speech, transform, {}
        if check_lengths or (check_lengths is None and transform.max_seconds is not None):
            shortest, longest = transform.min_seconds, transform.max_seconds or float("inf")
            seconds, marks = self._headers
            short, long = seconds < shortest, seconds > longest
            self.left_out = {"too_short": int(short.sum()), "too_long": int(long.sum())}
            keep = np.flatnonzero(~(short | long))  # also those without a readable header: decoding reports them
            if not len(keep):
                limits = f"at least min_seconds {shortest:g} and at most max_seconds {longest:g} long"
                raise LaserError(f"no utterance is {limits}; left out: {self.left_out}")
            self.speech, self._headers = speech.select(keep), (seconds[keep], marks[keep])
            logger.info("%d utterances, %.1f hours; left out: %s", len(keep), sum(self.seconds) / 3600, self.left_out)

    @cached_property
    def _headers(self) -> tuple[np.ndarray, np.ndarray]:
        return read_headers(self.speech)

    @cached_property
    def seconds(self) -> list[float]:
        """Length of each utterance as trained on (cropped), from its header; 0 where that cannot be read."""
        return np.fmin(np.nan_to_num(self._headers[0]), self.transform.crop_seconds or np.inf).tolist()

    def fingerprint(self) -> str:
        """See `speech_digest`."""
        return speech_digest(self.speech, self._headers)

    def __len__(self) -> int:
        return len(self.speech)

    def __getitem__(self, index: int) -> Pair:
        row = self.speech[index]
        size = row.get("bytes")  # of a manifest
        if size and (found := _state(path := row["audio"]["path"])) and found[0] != size:
            raise LaserError(f"{path} has {found[0]} bytes, in the manifest {size}; write it anew: laser-hf manifest")
        return self.transform.pair(row["id"], row["audio"])


@dataclass(eq=False)
class PairStream(_Pairs, torch.utils.data.IterableDataset):
    """Endless stream of pairs for one process: epoch after epoch, each with its own order and draws.

    Every worker counts its own epochs, so that none waits for another. In an epoch every utterance comes up once over
    all processes and workers together. A process reads its own shards only if their number is a multiple of
    `world_size`; else it reads all of them and keeps one utterance in `world_size`.

    Args:
        speech, transform: a stream of `load_speech`, and what makes the pairs.
        seed: of the shuffling; the same in every process.
        buffer_size: utterances shuffled at a time, which each worker holds as stored (some 200 kB of FLAC each).
        rank, world_size: this process (0-based) and how many there are.
    """

    speech: datasets.IterableDataset
    transform: PairTransform
    seed: int = 0
    buffer_size: int = 1000
    rank: int = 0
    world_size: int = 1
    _skipped: tuple[int, int] = (0, 1)  # batches and their size

    @property
    def num_shards(self) -> int:
        """Files that this process reads; more workers than that would idle."""
        each, rest = divmod(self.speech.num_shards, self.world_size)
        return self.speech.num_shards if rest else each

    def skip(self, examples: int, batch_size: int = 1) -> "PairStream":
        """The stream with `None` for the first `examples` of this process; a resumed run drops them undecoded.

        `batch_size` is that of the data loader, whose workers take batches in turn; `examples` is a multiple of it.
        """
        return replace(self, _skipped=(examples // batch_size, batch_size))

    def rows(self, epoch: int) -> datasets.IterableDataset:
        """The utterances of one epoch for this process (in a dataloader worker: for this worker), not decoded."""
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        stream = self.speech.shuffle(seed=seed, buffer_size=self.buffer_size)
        # Shifted by the worker, so that small files do not all leave their odd utterance to the first process.
        worker = torch.utils.data.get_worker_info()
        place = (self.rank + (worker.id if worker else 0)) % self.world_size
        return split_dataset_by_node(stream, place, self.world_size) if self.world_size > 1 else stream

    def __iter__(self) -> Iterator[Pair | None]:
        batches, batch_size = self._skipped
        worker = torch.utils.data.get_worker_info()
        skip = batch_size * (len(range(worker.id, batches, worker.num_workers)) if worker else batches)
        for epoch in itertools.count(self.transform.epoch):
            empty = True
            for row in self.rows(epoch):
                empty = False
                yield None if skip > 0 else self.transform.pair(row["id"], row["audio"], epoch)
                skip -= 1
            if empty:
                return


def keep_decoded(speech: datasets.Dataset, folder: str | os.PathLike[str] | None = None) -> datasets.Dataset:
    """Decode all utterances once, in parallel, and keep them on disk as mono WAV at 16 kHz.

    The samples are bit for bit those of `decode_audio`, in 16 bits if that is exact (16-bit FLAC and WAV at 16 kHz;
    115 MB an hour), else in 32. Audio that cannot be decoded stays as it is. If a file has another size or time of
    change, or other utterances are chosen, all are decoded again. The files in the folder can be deleted at any time.
    It is by default `laser_hf` in the cache of `datasets`; a `LaserError` says that it cannot be written.
    """
    place = Path(folder).expanduser() if folder else cache_folder()
    return _cached_map(speech, _decoded, place, speech.features | {"audio": datasets.Audio(decode=False)}, 16)


def speech_digest(speech: datasets.Dataset, headers: tuple[np.ndarray, np.ndarray] | None = None) -> str:
    """SHA-256 over id, duration and `content_mark` (`read_headers`) of every utterance, in order, whatever its path."""
    digest = hashlib.sha256()
    names = itertools.chain.from_iterable(part["id"] for part in speech.select_columns("id").iter(AT_ONCE))
    for name, seconds, (size, crc) in zip(names, *(headers or read_headers(speech)), strict=True):
        digest.update(f"{name}\t{seconds:.6f}\t{size}\t{crc}\n".encode())
    return digest.hexdigest()


def read_headers(speech: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Seconds `(utterances,)`, NaN where they cannot be read, and `content_mark` `(utterances, 2)`.

    They come from a manifest, or from headers, read once, in parallel, and again if a file's size or time differs.
    """
    if {"samples", "bytes", "crc"} <= set(speech.column_names):
        seconds, found, marks = _numbers(speech, "samples") / SAMPLE_RATE, speech, ("bytes", "crc")
    else:
        whole, marks = datasets.Value("int64"), ("size", "crc")
        features = {"seconds": datasets.Value("float64"), "size": whole, "crc": whole}
        found = _cached_map(speech.select_columns("audio"), _headers, cache_folder(), features, 100)
        seconds = _numbers(found, "seconds")
    return seconds, np.nan_to_num(np.stack([_numbers(found, name) for name in marks], axis=1)).astype(np.int64)


def _numbers(speech: datasets.Dataset, column: str) -> np.ndarray:
    return speech.select_columns(column).with_format("arrow")[:][column].to_numpy().astype(np.float64)


def _headers(batch: dict[str, list[Any]], rank: int | None) -> dict[str, list[Any]]:
    stored = [audio or {} for audio in batch["audio"]]
    marks = np.array([content_mark(one.get("path"), one.get("bytes")) for one in stored])
    return {"seconds": [audio_seconds(one) for one in stored], "size": marks[:, 0], "crc": marks[:, 1]}


def _decoded(batch: dict[str, list[Any]], rank: int | None) -> dict[str, list[Any]]:
    if rank is not None:
        torch.set_num_threads(1)  # a forked process must not wait for threads of its parent
    return {"audio": [_as_wav(audio) for audio in batch["audio"]]}


def _as_wav(audio: Any) -> Any:
    try:
        waveform = decode_audio(audio, min_seconds=0.0).waveform
    except BadAudio:
        return audio
    pcm, file = (waveform * 2.0**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16), io.BytesIO()
    exact = torch.equal(pcm.to(torch.float32), waveform * 2.0**15)
    samples, subtype = (pcm, "PCM_16") if exact else (waveform, "FLOAT")
    soundfile.write(file, samples.numpy(), SAMPLE_RATE, format="WAV", subtype=subtype)
    return {"bytes": file.getvalue(), "path": audio.get("path")}


def _cached_map(
    speech: datasets.Dataset, function: Callable, folder: Path, features: dict[str, Any], batch_size: int
) -> datasets.Dataset:
    """`speech.map(function)`, computed anew if the utterances, or the size or time of a file of theirs, change."""
    name, states = function.__name__.strip("_"), file_states(speech)
    key = Hasher.hash((3, name, speech._fingerprint, states))
    processes = min(os.cpu_count() or 1, len(speech) // ROWS_PER_PROCESS)
    how = {"batched": True, "batch_size": batch_size, "writer_batch_size": 2 * batch_size, "with_rank": True}
    how |= {"num_proc": processes if processes > 1 else None, "features": datasets.Features(features)}
    how |= {"remove_columns": [column for column in speech.column_names if column not in features], "desc": name}
    how |= {"new_fingerprint": key, "cache_file_name": str(folder / f"{name}-{key}.arrow")}
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return speech.map(function, load_from_cache_file=REMOTE not in states, **how)


def file_states(speech: datasets.Dataset) -> list[str]:
    """Digests of the sizes and times of change of all files, `AT_ONCE` in each; `REMOTE` where they cannot be known."""
    stored = speech.select_columns("audio").flatten()
    if "audio.path" not in stored.column_names:
        return []
    look, starts = partial(_states, stored.select_columns("audio.path")), range(0, len(stored), AT_ONCE)
    if (processes := min(os.cpu_count() or 1, len(starts) // 5)) < 2:
        return list(map(look, starts))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(look, starts))


def _states(stored: datasets.Dataset, start: int) -> str:
    paths = stored[start : start + AT_ONCE]["audio.path"]
    if any(map(is_remote, filter(None, paths))):
        return REMOTE
    return hashlib.sha256(repr([_state(path) for path in paths]).encode()).hexdigest()


def _state(path: str | None) -> tuple[int, int] | None:
    """Size and time of change of a local file, if it is there."""
    try:
        found = os.stat(path or "")
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
