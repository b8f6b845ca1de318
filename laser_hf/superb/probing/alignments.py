"""Spoken words and phones with their times, read from an alignment file.

The file is tab-separated with a header line and one word a line: `utterance`, `word`, `start_seconds`,
`duration_seconds`; optionally `speaker` (else what precedes the first hyphen of the utterance), `split`, and a column
whose name starts with `phones`, holding `NAME:START:DURATION` in centiseconds for every phone of the word, separated
by spaces. Words in angle brackets (`<sil>`, `</s>`) are markers and no tokens; their phones still are neighbours.

Rows that cannot be used are left out, counted and named.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

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
    context: tuple[str, str] = ("", "")
    """Names of the phones before and after, for a phone."""

    @property
    def end(self) -> float:
        """Seconds from the start of the utterance."""
        return self.start + self.duration


@dataclass
class Skipped:
    """What was left out and why: per reason the count and the first few names."""

    reasons: dict[str, dict] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one."""
        entry = self.reasons.setdefault(reason, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < NAMED:
            entry["first"].append(name)

    def __str__(self) -> str:
        parts = []
        for reason, entry in self.reasons.items():
            more = ", ..." if entry["count"] > len(entry["first"]) else ""
            parts.append(f"{entry['count']} {reason} ({', '.join(entry['first'])}{more})")
        return "; ".join(parts)


@dataclass
class Alignments:
    """All tokens of a file, each list sorted by utterance and start."""

    words: list[Token]
    phones: list[Token]
    skipped: Skipped

    def utterances(self) -> set[str]:
        """Names of the utterances that have a token."""
        return {token.utterance for tokens in (self.words, self.phones) for token in tokens}


def read_alignments(
    path: str | Path, split: str | None = None, utterances: Collection[str] | None = None
) -> Alignments:
    """Read words (lower-cased) and phones.

    Args:
        path: the file.
        split: keep only rows with this value in the column `split`.
        utterances: keep only these.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a required column is missing, or `split` is given and the file has no such column.
    """
    found = Alignments([], [], Skipped())
    wanted = None if utterances is None else set(utterances)
    lines: dict[str, list[tuple[float, float, str, str]]] = {}  # phones by utterance, markers included
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = reader.fieldnames or []
        missing = [column for column in COLUMNS if column not in columns]
        if missing:
            raise ValueError(
                f"{path} is no alignment file: its header lacks {', '.join(missing)} "
                f"(expected tab-separated {', '.join(COLUMNS)} and possibly phones)"
            )
        if split is not None and "split" not in columns:
            raise ValueError(f"{path} has no split column, so split {split!r} cannot be selected")
        phone_column = next((column for column in columns if column.startswith("phones")), None)
        for row in reader:
            utterance = row["utterance"]
            if (split is not None and row["split"] != split) or (wanted is not None and utterance not in wanted):
                continue
            place = f"line {reader.line_num}"
            speaker = row.get("speaker") or (utterance or "").split("-")[0]
            if not utterance or not speaker or not row["word"]:
                found.skipped.add("rows without utterance or word", place)
                continue
            if not row["word"].startswith("<"):
                times = _times(row["start_seconds"], row["duration_seconds"])
                if times is None:
                    found.skipped.add("words without valid times", f"{utterance} {row['word']}, {place}")
                else:
                    found.words.append(Token(utterance, *times, row["word"].lower(), speaker))
            for entry in (row.get(phone_column) or "").split() if phone_column else ():
                name, _, rest = entry.partition(":")
                times = _times(*rest.split(":"), scale=100)
                if not name or times is None:
                    found.skipped.add("phones without name or valid times", f"{utterance} {entry!r}, {place}")
                else:
                    lines.setdefault(utterance, []).append((*times, name, speaker))
    for utterance, phones in lines.items():
        phones.sort()
        names = ["", *(phone[2] for phone in phones), ""]
        for index, (start, duration, name, speaker) in enumerate(phones):
            if name not in NO_PHONES:
                context = (names[index], names[index + 2])
                found.phones.append(Token(utterance, start, duration, name, speaker, context))
    found.words.sort()
    found.phones.sort()
    return found


def _times(*values: str | None, scale: float = 1.0) -> tuple[float, float] | None:
    """Start and duration in seconds, or `None` where they are no valid times."""
    try:
        start, duration = (float(value) / scale for value in values)
    except (TypeError, ValueError):
        return None
    return (start, duration) if math.isfinite(start + duration) and start >= 0 and duration > 0 else None


def long_words(words: Iterable[Token], min_letters: int, min_seconds: float = 0.0) -> list[Token]:
    """Words of at least `min_letters` letters and `min_seconds` seconds; short ones are mostly function words."""
    return [
        word
        for word in words
        if sum(map(str.isalpha, word.label)) >= min_letters and word.duration >= min_seconds - 1e-9
    ]
