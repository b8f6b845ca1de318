"""From scores to measures: term-weighted value, mean average precision, precision at N.

Scores are arrays (queries, documents) in which NaN marks a pair that is no trial; targets are bool of the same shape.
Queries without a target among their trials are left out, as the official scorer does. All measures raise a `ValueError`
for shapes that do not fit, infinite scores, and if no query has a target.

The term-weighted value (Fiscus et al., "Results of the 2006 spoken term detection evaluation", 2007) weighs all
queries alike,

    TWV(t) = 1 - mean over queries of (P_miss(t) + beta P_fa(t)),   beta = C_fa (1 - P_target) / (C_miss P_target),

P_miss the share of a query's targets that score below t and P_fa the share of its other trials that score t or more.
QUESST 2014 sets P_target 0.0008, C_fa 1, C_miss 100, so beta = 12.49: with 1,000 documents, eighty false alarms of a
query cost as much as missing all its targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import LaserError

if TYPE_CHECKING:  # it imports torch, which `mtwv` does without
    from .data import QbeData

BETA = 12.49
DECISION_THRESHOLD = 2.0  # SUPERB decides YES for scores above two standard deviations
DEFAULT_SCORE = -10.0  # the official scorer's for trials that a system does not report
DIGITS = 4
"""Decimals of a written score. The official scorer sees no others, so term-weighted values are taken from these."""
PRIMARY = {"quick": ("mean_average_precision", "subset"), "superb": ("mtwv", "superb")}
"""Metric and trials that a protocol reports."""


class Collection(NamedTuple):
    """The full term list and collection of an evaluation, of which only a part may be searched."""

    targets: np.ndarray  # bool (queries, documents)
    part: tuple[np.ndarray, ...]  # what is searched, as `np.ix_` gives it


class TermWeightedValue(NamedTuple):
    """A term-weighted value and its threshold: scores of at least `threshold` were accepted (infinity: none)."""

    value: float
    threshold: float


def _checked(scores, targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, targets among trials, and trials, of the queries that have a target."""
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets).astype(bool)
    if scores.ndim != 2 or scores.shape != targets.shape:
        got = f"{scores.shape} and {targets.shape}"
        raise ValueError(f"expected scores and targets of one shape (queries, documents), got {got}")
    if np.isinf(scores).any():
        raise ValueError("scores must be finite, or NaN where there is no trial")
    trials = ~np.isnan(scores)
    targets = targets & trials
    kept = targets.any(1)
    if not kept.any():
        raise LaserError("no query has a target among its trials")
    return scores[kept], targets[kept], trials[kept]


def twv_curve(scores, targets, beta: float = BETA) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds (infinity, then every distinct score, descending) and the term-weighted value at each, `(points,)`."""
    scores, targets, trials = _checked(scores, targets)
    # What one hit adds to the value and one false alarm takes from it, by query.
    hit = 1 / targets.sum(1) / len(targets)
    alarm = beta / np.maximum((trials & ~targets).sum(1), 1) / len(targets)
    flat = scores[trials]
    order = np.argsort(-flat, kind="stable")
    flat = flat[order]
    values = np.where(targets, hit[:, None], -alarm[:, None])[trials][order].cumsum()
    last = np.append(np.flatnonzero(np.diff(flat)), len(flat) - 1)  # equal scores are accepted together
    return np.append(np.inf, flat[last]), np.append(0.0, values[last])


def mtwv(scores, targets, beta: float = BETA) -> TermWeightedValue:
    """Maximum term-weighted value over one threshold for all queries, at least 0 (nothing accepted).

    Of equally good thresholds it is the highest. `beta` is the cost of a false-alarm rate of 1 relative to a miss rate
    of 1; `ValueError` if it is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    thresholds, values = twv_curve(scores, targets, beta)
    best = values.argmax()
    return TermWeightedValue(float(values[best]), float(thresholds[best]))


def twv(scores, targets, threshold: float, beta: float = BETA) -> float:
    """Term-weighted value when scores of at least `threshold` are accepted: the "actual" one; may be negative."""
    thresholds, values = twv_curve(scores, targets, beta)
    return float(values[np.searchsorted(-thresholds, -threshold, side="right") - 1])


def normalise_scores(scores: np.ndarray) -> np.ndarray:
    """Zero mean and unit population deviation (at least 1e-9) of each query's scores; NaN stays NaN."""
    normalised = np.full(scores.shape, np.nan)
    for row, used in enumerate(~np.isnan(scores)):
        if len(kept := scores[row, used]):
            normalised[row, used] = (kept - kept.mean()) / max(kept.std(), 1e-9)
    return normalised


def on_collection(scores: np.ndarray, collection: Collection) -> np.ndarray:
    """Scores (queries, documents) of the part of `collection` among `DEFAULT_SCORE` for every other pair of it.

    NaN becomes the default as well. So SUPERB defines the trials: the official scorer takes the full lists.
    """
    full = np.full(collection.targets.shape, DEFAULT_SCORE)
    full[collection.part] = np.where(np.isnan(scores), DEFAULT_SCORE, scores)
    return full


def mean_average_precision(scores, targets) -> float:
    """Mean over queries of `average_precision`; equal scores rank targets last."""
    rows = zip(*_checked(scores, targets), strict=True)
    return float(np.mean([average_precision(row[used], hits[used]) for row, hits, used in rows]))


def precision_at(scores, targets, n: int | None = None) -> float:
    """Mean over queries of the share of targets among the best `n` trials; equal scores rank targets last.

    Without `n` as many as the query has targets are taken (R-precision, the "P@N" of Hazen et al., 2009).
    """
    values = []
    for row, hits, used in zip(*_checked(scores, targets), strict=True):
        most = n or int(hits.sum())
        values.append(hits[used][np.lexsort((hits[used], -row[used]))][:most].sum() / most)
    return float(np.mean(values))


def average_precision(scores, targets) -> float:
    """Mean, over the targets, of the precision at the rank of each; NaN without targets.

    The area under the precision-recall curve as retrieval evaluates it (Buckley and Voorhees, "Evaluating evaluation
    measure stability", SIGIR 2000). Of equal scores the targets rank last, so that constant scores earn nothing:
    the value is a lower bound over all orders of ties. Scores are `(items,)`; `ValueError` for NaN or unequal shapes.
    """
    scores, targets = np.asarray(scores), np.asarray(targets).astype(bool)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(f"expected scores and targets of one shape (items,), got {scores.shape} and {targets.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; leave those items out")
    if not targets.any():
        return float("nan")
    found, others = np.sort(scores[targets])[::-1], np.sort(scores[~targets])
    # Items at or above a target: the targets up to it, and every other item that does not score less.
    hits, not_less = np.arange(1, len(found) + 1), len(others) - np.searchsorted(others, found, side="left")
    return float(np.mean(hits / (hits + not_less)))


def evaluate(
    data: QbeData, scores: np.ndarray, layer: int, dev_thresholds: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Measures of `scores` (queries, documents) of `data`, as entries of a record with `layer` and `trials`.

    Trials are defined in two ways: "subset", the pairs that are searched, and on QUESST 2014 "superb", the full term
    list and collection with -10 for what is not searched. `dev_thresholds` are those of the development set by that
    definition. Term-weighted values take the scores as they are written to the files, the other measures in full.
    """
    metrics: list[dict[str, Any]] = []

    def enter(name: str, value: float, trials: str, unit: str = "", **more: Any) -> None:
        about = {"unit": unit, "split": data.split, "layer": layer, "trials": trials}
        metrics.append({"metric": name, "value": value, **about, **more})

    raw = np.where(data.trials, scores, np.nan)
    enter("mean_average_precision", mean_average_precision(raw, data.targets), "subset", "fraction")
    enter("precision_at_n", precision_at(raw, data.targets), "subset", "fraction")
    enter("precision_at_1", precision_at(raw, data.targets, 1), "subset", "fraction")
    normalised = normalise_scores(raw)
    measured = {"subset": (normalised, as_written(normalised), data.targets)}
    if data.collection is not None:
        full, written = (on_collection(one, data.collection) for one in measured["subset"][:2])
        measured["superb"] = full, written, data.collection.targets
    for trials, (full, written, targets) in measured.items():
        best = mtwv(written, targets)
        enter("mtwv", best.value, trials, threshold=best.threshold)
        decided = twv(full, targets, np.nextafter(DECISION_THRESHOLD, np.inf))  # SUPERB decides before it rounds
        how = {"threshold": DECISION_THRESHOLD, "threshold_from": "SUPERB's decision rule, score above 2"}
        enter("act_twv_decisions", decided, trials, **how)
        if dev_thresholds is not None:
            how = {"threshold": dev_thresholds[trials], "threshold_from": "best on the development set"}
            enter("act_twv", twv(written, targets, dev_thresholds[trials]), trials, **how)
    return metrics


def as_written(scores: np.ndarray) -> np.ndarray:
    """Scores as the files hold them, with `DIGITS` decimals; `np.round` differs from the formatting in some halves."""
    return np.array([float(f"{score:.{DIGITS}f}") for score in scores.flat]).reshape(scores.shape)
