"""Recordings encoded once and kept, and the hits of a spoken word among them, by the functions of `superb qbe`."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..data import AUDIO_SUFFIXES, find_audio_files
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..plots.speech import find_word_times
from ..superb.discrimination import long_words, read_alignments
from ..superb.features import Features, Utterance, read_waveform, sample_counts
from ..superb.frame_store import FrameStore, fill
from ..superb.qbe.matching import SHORTEST_QUERY, best_path, frame_distances, match, scale_rows, unit_frames
from ..superb.qbe.search import BLOCK_DOCUMENTS, statistics


class Collection:
    """The recordings below a folder: `utterances` and `files`, by path, size and time; `LaserError` if there are none.

    `words` are number of the recording and word, where word times are known (`find_word_times`), and `picks` of these
    each speaker's first token of each word of at least four letters.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        paths = find_audio_files(self.folder) if self.folder.is_dir() else []
        if not paths:
            raise LaserError(f"there is no folder {folder} with audio files ({', '.join(AUDIO_SUFFIXES)})")
        self.utterances = [Utterance(path.relative_to(self.folder).as_posix(), path) for path in paths]
        self.files = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
        numbers, self.words = {path.stem: n for n, path in enumerate(paths)}, []
        with contextlib.suppress(LaserError):  # a folder without word times can be searched all the same
            tokens = read_alignments(find_word_times(self.folder), utterances=numbers).words
            self.words = [(numbers[token.utterance], token) for token in tokens]
        tokens = [(n, one) for n, one in reversed(self.words) if long_words([one], 4)]
        self.picks = dict(sorted({f"{one.label} (voice {one.speaker})": (n, one) for n, one in tokens}.items()))

    def cut(self, pick: str) -> torch.Tensor:
        """The samples of a word that was picked, `(samples,)` at 16 kHz."""
        number, word = self.picks[pick]
        return read_waveform(replace(self.utterances[number], start=word.start, duration=word.duration))


class Index:
    """The last-layer frames of a collection by one encoder (`model` is its name), kept in the folder `cache`.

    An index of the same weights and files reads what an earlier one left; if a file has changed, all are encoded anew.
    Frames are normalised by mean and deviation over the collection: `superb qbe` counts the queries in, but one word
    changes next to nothing. `progress` labels a progress bar, if any. `LaserError` if no recording can be used.
    """

    def __init__(self, features: Features, model: str, collection: Collection, cache: Path, progress: str = ""):
        self.features, self.layer, self.collection = features, features.layers - 1, collection
        weights, utterances = features.describe(model)["weights_sha256"] or model, collection.utterances
        name = json.dumps([weights, self.layer, str(collection.folder.resolve())])
        folder = cache / hashlib.sha256(name.encode()).hexdigest()[:20]
        folder.mkdir(parents=True, exist_ok=True)
        what = features, [utterance.name for utterance in utterances], sample_counts(utterances)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another page may encode the same
            self.store = FrameStore(folder / "frames", [self.layer], features.dim, {"files": collection.files})
            fill(self.store, *what, lambda n: read_waveform(utterances[n], features.shortest), progress=progress)
        if not self.store.places:
            raise LaserError(f"no recording in {collection.folder} can be used: {self.store.skipped[0][1]}")
        self.mean, self.deviation = statistics(self.store, self.layer, list(self.store.places))

    def recording(self, number: int) -> torch.Tensor:
        """Normalised frames of a recording, `(frames, dim)`."""
        return unit_frames(self.store.read(self.layer, number), self.mean, self.deviation)

    def frames(self, waveform: torch.Tensor) -> torch.Tensor:
        """Normalised frames of a waveform `(samples,)`; `LaserError` if it has too few to be aligned."""
        if self.features.frame_count(len(waveform)) < SHORTEST_QUERY:
            raise LaserError(f"{len(waveform) / SAMPLE_RATE:.2f} s of sound are too short to search for")
        return unit_frames(self.features([waveform], [self.layer])[0][0], self.mean, self.deviation)

    def search(self, query: torch.Tensor, without: Container[int] = ()) -> list[tuple[int, float, float, float]]:
        """The ten recordings, but `without`, that a query is best aligned with: number, score, seconds from and to."""
        left, scores = [number for number in self.store.places if number not in without], {}
        if not left:
            raise LaserError("no recording is left to search in: all are of the voice that says the word")
        for first in range(0, len(left), BLOCK_DOCUMENTS):
            block = left[first : first + BLOCK_DOCUMENTS]
            found = match([query], [self.recording(number) for number in block])[0].tolist()
            scores.update(zip(block, found, strict=True))
        hits, step = [], self.features.frame_seconds
        for number in sorted(scores, key=lambda number: (-scores[number], number))[:10]:
            _, path = best_path(distances(query, self.recording(number)))
            end = path[-1][1] * step + self.features.shortest / SAMPLE_RATE
            hits.append((number, scores[number], path[0][1] * step, end))
        return hits


def distances(query: torch.Tensor, document: torch.Tensor) -> np.ndarray:
    """Distances (n, m) of normalised frames as they are aligned: each row scaled to [0, 1]."""
    return scale_rows(frame_distances(query, document)).numpy()
