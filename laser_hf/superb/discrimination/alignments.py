"""Spoken words and phones with their times, read from an alignment file.

The file is tab-separated with a header line and one word a line: `utterance`, `word`, `start_seconds`,
`duration_seconds`; optionally `speaker` (by default what precedes the first hyphen of the utterance), `split`, and a
column whose name starts with `phones`. That one holds `NAME:START:DURATION` in centiseconds for every phone of the
word, separated by spaces. Words in angle brackets (`<sil>`, `</s>`) are markers, not tokens.

Words and phones without a name or valid times are left out, counted and named.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data import read_table

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
    """What was left out and why."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """Count one."""
        self.names[reason].append(name)

    @property
    def reasons(self) -> dict[str, dict[str, Any]]:
        """Per reason the `count` and the `first` few names, for a record."""
        return {reason: {"count": len(names), "first": names[:NAMED]} for reason, names in self.names.items()}

    def __str__(self) -> str:
        return "; ".join(
            f"{len(names)} {reason} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for reason, names in self.names.items()
        )


@dataclass
class Alignments:
    """All tokens of a file, each list sorted by utterance and start."""

    words: list[Token] = field(default_factory=list)
    phones: list[Token] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)


def read_alignments(
    path: str | Path, split: str | None = None, utterances: Collection[str] | None = None
) -> Alignments:
    """Read words (lower-cased) and phones.

    Args:
        path: the file.
        split: keep only rows with this value in the column `split`.
        utterances: keep only these.

    Raises:
        LaserError: a file that cannot be read, a missing column (`split` too, if it is given), or a row cut short.
    """
    found = Alignments()
    wanted = None if utterances is None else set(utterances)
    for place, row in read_table(path, COLUMNS if split is None else (*COLUMNS, "split")):
        utterance, word, line = row["utterance"], row["word"], place.rpartition(", ")[2]
        if (split is not None and row["split"] != split) or (wanted is not None and utterance not in wanted):
            continue
        speaker = row.get("speaker") or utterance.split("-")[0]
        if not utterance or not speaker or not word:
            found.skipped.add("rows without utterance or word", line)
            continue
        if not word.startswith("<"):
            times = _times(row["start_seconds"], row["duration_seconds"])
            if times is None:
                found.skipped.add("words without valid times", f"{utterance} {word}, {line}")
            else:
                found.words.append(Token(utterance, *times, word.lower(), speaker))
        phones = next((cell for column, cell in row.items() if column.startswith("phones")), "")
        for entry in phones.split():
            name, _, rest = entry.partition(":")
            times = _times(*rest.split(":"), scale=100)
            if not name or times is None:
                found.skipped.add("phones without name or valid times", f"{utterance} {entry!r}, {line}")
            elif name not in NO_PHONES:
                found.phones.append(Token(utterance, *times, name, speaker))
    found.words.sort()
    found.phones.sort()
    return found


def _times(*values: str, scale: float = 1.0) -> tuple[float, float] | None:
    """Start and duration in seconds, or `None` where they are no valid times."""
    try:
        start, duration = (float(value) / scale for value in values)
    except ValueError:
        return None
    return (start, duration) if math.isfinite(start + duration) and start >= 0 and duration > 0 else None


def long_words(words: Iterable[Token], min_letters: int, min_seconds: float = 0.0) -> list[Token]:
    """Words of at least `min_letters` letters and `min_seconds` seconds; short ones are mostly function words."""
    return [
        word
        for word in words
        if sum(map(str.isalpha, word.label)) >= min_letters and word.duration >= min_seconds - 1e-9
    ]
