"""Spoken words and phones with their times: read from an alignment file, and cut out of frames.

The file is tab-separated with a header line and one word a line: `utterance`, `word`, `start_seconds`,
`duration_seconds`; optionally `speaker` (by default what precedes the first hyphen of the utterance), `split`, and a
column whose name starts with `phones`. That one holds `NAME:START:DURATION` in centiseconds for every phone of the
word, separated by spaces. Words in angle brackets (`<sil>`, `</s>`) are markers, not tokens.

Words and phones without a name or valid times are left out, counted and named.
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
from ...errors import LaserError
from ..features import read_times

COLUMNS = ("utterance", "word", "start_seconds", "duration_seconds")
NO_PHONES = ("SIL", "SPN", "NSN")
"""Phone names that stand for silence and noise."""
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


class Skipped:
    """What was left out: names by reason."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = defaultdict(list)

    @property
    def reasons(self) -> dict[str, dict[str, Any]]:
        """Per reason the `count` and the `first` few names, for a record."""
        return {reason: {"count": len(names), "first": names[:NAMED]} for reason, names in self.names.items()}

    def __str__(self) -> str:
        first = {why: names[:NAMED] + ["..."] * (len(names) > NAMED) for why, names in self.names.items()}
        return "; ".join(f"{len(self.names[why])} {why} ({', '.join(names)})" for why, names in first.items())


@dataclass
class Alignments:
    """All tokens of a file, each list sorted by utterance and start."""

    words: list[Token] = field(default_factory=list)
    phones: list[Token] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)


def read_alignments(
    path: str | Path, split: str | None = None, utterances: Collection[str] | None = None
) -> Alignments:
    """Read words (lower-cased) and phones: only of `utterances`, and with `split` in the column `split`, if given.

    `LaserError` for a file that cannot be read, a missing column (`split` too, if it is given), or a row cut short.
    """
    found = Alignments()
    skipped = found.skipped.names
    wanted = None if utterances is None else set(utterances)
    for place, row in read_table(path, COLUMNS if split is None else (*COLUMNS, "split")):
        utterance, word, line = row["utterance"], row["word"], place.rpartition(", ")[2]
        if (split is not None and row["split"] != split) or (wanted is not None and utterance not in wanted):
            continue
        speaker = row.get("speaker") or utterance.split("-")[0]
        if not utterance or not speaker or not word:
            skipped["rows without utterance or word"].append(line)
            continue
        if not word.startswith("<"):
            times = read_times(row["start_seconds"], row["duration_seconds"])
            if times is None:
                skipped["words without valid times"].append(f"{utterance} {word}, {line}")
            else:
                found.words.append(Token(utterance, *times, word.lower(), speaker))
        phones = next((cell for column, cell in row.items() if column.startswith("phones")), "")
        for entry in phones.split():
            name, _, rest = entry.partition(":")
            times = read_times(*rest.split(":"), scale=100)
            if not name or times is None:
                skipped["phones without name or valid times"].append(f"{utterance} {entry!r}, {line}")
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
    beyond their end, `ValueError` for an utterance without frames or frames of a wrong shape.
    """
    if not frame_rate > 0:
        raise ValueError(f"frame_rate must be positive, got {frame_rate}")
    offset = 0.5 if first_seconds is None else first_seconds * frame_rate
    units: dict[str, Tensor] = {}
    for name in {token.utterance for token in tokens}:
        if name not in frames:
            raise ValueError(f"there are no frames for the utterance {name!r}")
        matrix = torch.as_tensor(frames[name]).detach().to("cpu", torch.float32)
        if matrix.ndim != 2:
            raise ValueError(f"the frames of {name!r} must be (frames, dim), got {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise LaserError(f"the frames of {name!r} are not all finite")
        units[name] = F.normalize(matrix, dim=1)
    if len(dims := {matrix.shape[1] for matrix in units.values()}) > 1:
        raise ValueError(f"the frames of all utterances must have one dimension, got {sorted(dims)}")
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


def mean_pooled(segments: Sequence[Tensor]) -> list[Tensor]:
    """Each stretch as the one unit-length frame `(1, dim)` in the direction of its mean."""
    return [F.normalize(segment.mean(0, keepdim=True), dim=1) for segment in segments]
