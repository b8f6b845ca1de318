"""Query by example word by word: halves to choose on and to report on, and confidence intervals of differences.

Most words are said by several speakers, and the queries of one word do well or badly together. So words, not queries,
are divided into halves and resampled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laser_hf.data.files import read_table
from laser_hf.superb.qbe.scoring import average_precision

HALVES = ("choose", "report")
RESAMPLES = 10_000


def half_of(word: str) -> str:
    """The half that a word is in, by its hash: the same in every set of words."""
    return HALVES[hashlib.sha256(word.encode()).digest()[0] % 2]


def words_of(queries: Path) -> dict[str, str]:
    """Word of every query, from a `queries.tsv` with a column `word`.

    Raises:
        LaserError: a file that cannot be read, or that has no such column.
    """
    return {row["query"]: row["word"] for _, row in read_table(queries, ("query", "word"))}


def precisions(scores: Path) -> dict[str, float]:
    """Average precision of every query, from the `scores.tsv` that `superb qbe` writes."""
    found: dict[str, tuple[list[float], list[bool]]] = {}
    for _, row in read_table(scores, ("query", "score", "target")):
        values, targets = found.setdefault(row["query"], ([], []))
        values.append(float(row["score"]))
        targets.append(row["target"] == "1")
    return {query: average_precision(np.array(values), np.array(hits)) for query, (values, hits) in found.items()}


def mean_over(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every query's precision over the seeds."""
    return {query: float(np.mean([one[query] for one in found])) for query in found[0]}


def by_half(found: Mapping[str, float], words: Mapping[str, str]) -> dict[str, float]:
    """Mean average precision over the queries of either half."""
    return {half: float(np.mean([found[q] for q in found if half_of(words[q]) == half])) for half in HALVES}


def difference(
    found: Mapping[str, float],
    other: Mapping[str, float],
    words: Mapping[str, str],
    half: str | None = None,
    seed: int = 0,
) -> list[float]:
    """Mean average precision of `found` minus that of `other`, with the ends of its 95 % bootstrap interval over words.

    Args:
        found, other: precision of every query.
        words: word of every query.
        half: take the words of this half only; `None` for all.
        seed: of the resampling.
    """
    kept = [query for query in found if half is None or half_of(words[query]) == half]
    names = sorted({words[query] for query in kept})
    index = {name: i for i, name in enumerate(names)}
    totals, counts = np.zeros(len(names)), np.zeros(len(names))
    for query in kept:
        totals[index[words[query]]] += found[query] - other[query]
        counts[index[words[query]]] += 1
    draws = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    low, high = np.quantile(totals[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    return [float(totals.sum() / counts.sum()), float(low), float(high)]


@dataclass(frozen=True)
class Comparison:
    """A mean difference with its 95 % interval and two-sided bootstrap p value."""

    effect: float
    low: float
    high: float
    p: float


def compare(differences: np.ndarray, *groups: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Bootstrap the mean of differences over seeds and crossed groups (pigeonhole bootstrap; Owen, 2007).

    Every resample draws seeds, and the members of each grouping, with replacement and on their own. An entry counts as
    often as its seed and all its members were drawn together.

    Args:
        differences: `(seeds, items)`, one recipe minus another; items are queries or utterances.
        groups: for each grouping (speakers, words), the member that each item belongs to.
        resamples: number of resamples; the smallest p value is `2 / resamples`.
        seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    runs, items = differences.shape
    weights = np.ones((resamples, items))
    for group in groups:
        names, member = np.unique(np.asarray(group), return_inverse=True)
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        weights *= drawn[:, member]
    seeds = random.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    totals, counts = ((seeds @ differences) * weights).sum(1), runs * weights.sum(1)
    means = totals[counts > 0] / counts[counts > 0]  # no item may be left when there are few members
    low, high = np.quantile(means, [0.025, 0.975])
    beyond = min(np.mean(means <= 0), np.mean(means >= 0))
    return Comparison(float(differences.mean()), float(low), float(high), float(max(2 * beyond, 2 / resamples)))


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm, 1979), in the given order."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected
