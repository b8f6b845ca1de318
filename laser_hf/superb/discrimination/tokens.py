"""Spoken words and phones with their times: read from an alignment file, and cut out of frames.

The file is tab-separated with a header line and one word a line: `utterance`, `word`, `start_seconds`,
`duration_seconds`; optionally `speaker` (by default what precedes the first hyphen of the utterance), `split`, and a
column whose name starts with `phones`. That one holds `NAME:START:DURATION` in centiseconds for every phone of the
word, separated by spaces. Words in angle brackets (`<sil>`, `</s>`) are markers. Words and phones without a name or
valid times are left out, counted and named.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data import read_table
from ...encoders import SAMPLE_RATE
from ...errors import LaserError
from ..features import Features, read_times

COLUMNS = ("utterance", "word", "start_seconds", "duration_seconds")
NO_PHONES = ("SIL", "SPN", "NSN")  # phone names that stand for silence and noise
NAMED = 5  # how many of the rows left out for one reason are named


@dataclass(frozen=True, order=True)
class Token:
    """One spoken word or phone: where it is (seconds from the start of its utterance), what it is, who said it."""

    utterance: str
    start: float
    duration: float
    label: str
    speaker: str

    @property
    def end(self) -> float:
        """Seconds from the start of the utterance."""
        return self.start + self.duration


@dataclass
class AlignedSpeech:
    """Speech with times: what the diagnostics need of the data."""

    waveforms: dict[str, Tensor] = field(default_factory=dict)  # `(samples,)` at 16 kHz by utterance
    words: list[Token] = field(default_factory=list)  # sorted, as phones are; either may be empty
    phones: list[Token] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # what cannot be used, by reason
    all_phones: list[Token] = field(default_factory=list)  # of these utterances; `phones` are some of them

    @property
    def reasons(self) -> dict[str, dict[str, Any]]:
        """Why something cannot be used: per reason the `count` and the `first` few names."""
        return {reason: {"count": len(names), "first": names[:NAMED]} for reason, names in self.skipped.items()}

    def counts(self) -> dict[str, Any]:
        """How much there is, for records."""
        seconds = round(sum(map(len, self.waveforms.values())) / SAMPLE_RATE, 1)
        speakers = {token.speaker for token in [*self.words, *self.phones]}
        tokens = {"words": len(self.words), "phones": len(self.phones), "speakers": len(speakers)}
        return {"utterances": len(self.waveforms), "seconds": seconds, **tokens, "skipped": self.reasons}


def read_alignments(
    path: str | Path, split: str | None = None, utterances: Collection[str] | None = None
) -> AlignedSpeech:
    """Read words (lower-cased) and phones: only of `utterances`, and with `split` in the column `split`, if given.

    There are no waveforms yet. `LaserError` for a file that cannot be read, a missing column, or a row cut short.
    """
    found = AlignedSpeech()
    for place, row in read_table(path, COLUMNS if split is None else (*COLUMNS, "split")):
        utterance, word, line = row["utterance"], row["word"], place.rpartition(", ")[2]
        if split not in (None, row.get("split")) or (utterances is not None and utterance not in utterances):
            continue
        speaker = row.get("speaker") or utterance.split("-")[0]
        if not utterance or not speaker or not word:
            found.skipped["rows without utterance or word"].append(line)
            continue
        times = read_times(row["start_seconds"], row["duration_seconds"])
        if times and not word.startswith("<"):
            found.words.append(Token(utterance, *times, word.lower(), speaker))
        elif not word.startswith("<"):
            found.skipped["words without valid times"].append(f"{utterance} {word}, {line}")
        phones = next((cell for column, cell in row.items() if column.startswith("phones")), "")
        for entry in phones.split():
            name, _, rest = entry.partition(":")
            times = read_times(*rest.split(":"), scale=100)
            if not name or not times:
                found.skipped["phones without name or valid times"].append(f"{utterance} {entry!r}, {line}")
            elif name not in NO_PHONES:
                found.phones.append(Token(utterance, *times, name, speaker))
    found.words.sort()
    found.phones.sort()
    return found


def long_words(words: Iterable[Token], min_letters: int, min_seconds: float = 0.0) -> list[Token]:
    """Words of at least `min_letters` letters and `min_seconds` seconds; short ones are mostly function words."""
    long = (word for word in words if word.duration >= min_seconds - 1e-9)
    return [word for word in long if sum(map(str.isalpha, word.label)) >= min_letters]


def token_frames(
    frames: Mapping[str, Tensor], tokens: Sequence[Token], frame_rate: float = 50.0, first_seconds: float | None = None
) -> list[Tensor]:
    """The frames of every token, `(frames of the token, dim)`, in float32 on the CPU, scaled to unit length.

    A token has the frames whose time lies within it; a very short one has the frame nearest its middle. A zero frame
    keeps length zero, so its distance to everything is 1. `frames` are `(frames, dim)` by utterance; frame 0 is at
    `first_seconds`, by default in the middle of its period. `LaserError` for frames that are not finite or a token
    beyond their end, `ValueError` for an utterance without frames.
    """
    offset = 0.5 if first_seconds is None else first_seconds * frame_rate
    units: dict[str, Tensor] = {}
    for name in {token.utterance for token in tokens}:
        if name not in frames:
            raise ValueError(f"there are no frames for the utterance {name!r}")
        matrix = torch.as_tensor(frames[name]).detach().to("cpu", torch.float32)
        if not torch.isfinite(matrix).all():
            raise LaserError(f"the frames of {name!r} are not all finite")
        units[name] = F.normalize(matrix, dim=1)
    segments = []
    for token in tokens:
        matrix = units[token.utterance]
        begin = max(0, math.ceil(token.start * frame_rate - offset))
        end = math.ceil(token.end * frame_rate - offset)
        if end <= begin:
            begin = max(0, math.floor((token.start + token.duration / 2) * frame_rate - offset + 0.5))
            end = begin + 1
        # Encoders drop a frame or so at the end, but the rest of the token must be there.
        if end > len(matrix) + 2 or begin >= len(matrix):
            what = f"the {len(matrix)} frames of {token.utterance!r} and the times do not fit"
            raise LaserError(f"{what}: {token.label!r} ends at frame {end} for a frame rate of {frame_rate:g} Hz")
        segments.append(matrix[begin:end])
    return segments


def frame_times(features: Features) -> dict[str, float]:
    """Frame rate, and the time of the middle of frame 0, as `token_frames` takes them."""
    return {"frame_rate": 1 / features.frame_seconds, "first_seconds": features.shortest / 2 / SAMPLE_RATE}
