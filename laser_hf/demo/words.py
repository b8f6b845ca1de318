"""The words of the demo: which ones are compared, their record, and the table printed before and after fine-tuning."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike
from typing import Any

from ..errors import LaserError
from ..superb.discrimination import Token, WordReport, long_words, read_alignments

MIN_LETTERS = 4  # shorter words are mostly function words, whose spoken forms vary


def read_words(path: str | PathLike[str], split: str | None = None) -> list[Token]:
    """The words of at least four letters of an alignment file, sorted by utterance and start.

    Raises:
        LaserError: no alignment file, or one with rows that cannot be used: the shipped table has none.
    """
    found = read_alignments(path, split)
    if found.skipped.reasons:
        raise LaserError(f"{path} has rows that cannot be used: {found.skipped}")
    return long_words(found.words, MIN_LETTERS)


def word_metric(report: WordReport, split: str, layer: int) -> dict[str, Any]:
    """A report as a metric of a record, in the form of `superb discrimination`."""
    counts = asdict(report)
    value = counts.pop("average_precision")
    about = {"metric": "word_ap_across", "value": value, "unit": "fraction", "split": split, "layer": layer}
    return about | counts


def format_before_after(before: WordReport, after: WordReport) -> str:
    """The table that the demo prints: both reports side by side, and which way is better."""
    counts = (before.same_pairs, before.different_pairs, before.words, before.vocabulary, before.speakers)
    if counts != (after.same_pairs, after.different_pairs, after.words, after.vocabulary, after.speakers):
        raise ValueError("The two reports are not of the same pairs, so they cannot be compared.")
    rows = (
        ("same-word distance", before.same_distance, after.same_distance, ""),
        ("different-word distance", before.different_distance, after.different_distance, ""),
        ("same / different", before.ratio, after.ratio, "lower is better"),
        ("average precision", before.average_precision, after.average_precision, "higher is better"),
    )
    lines = [f"{'':<24}{'before':>8}{'after':>8}{'change':>9}"]
    for name, old, new, note in rows:
        lines.append(f"{name:<24}{old:>8.3f}{new:>8.3f}{new - old:>+9.3f}  {note}".rstrip())
    lines.append(
        f"{before.same_pairs} same-word and {before.different_pairs} different-word pairs of different "
        f"speakers ({before.words} tokens of {before.vocabulary} words, {before.speakers} speakers; "
        f"average precision by chance {before.chance:.3f})"
    )
    return "\n".join(lines)
