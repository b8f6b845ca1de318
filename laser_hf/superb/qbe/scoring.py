"""From scores to measures: term-weighted value, mean average precision, precision at N.

Scores are arrays (queries, documents) in which NaN marks a pair that is no trial. Queries without a target among their
trials are left out of every measure, as the official scorer does.

The term-weighted value (Fiscus et al., "Results of the 2006 spoken term detection evaluation", 2007) weighs all
queries alike,

    TWV(t) = 1 - mean over queries of (P_miss(t) + beta P_fa(t)),   beta = C_fa (1 - P_target) / (C_miss P_target),

P_miss the share of a query's targets that score below t and P_fa the share of its other trials that score t or more.
QUESST 2014 sets P_target 0.0008, C_fa 1, C_miss 100, so beta = 12.49: with 1,000 documents, eighty false alarms of a
query cost as much as missing all its targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...errors import LaserError

BETA = 12.49
DECISION_THRESHOLD = 2.0  # SUPERB decides YES for scores above two standard deviations
DEFAULT_SCORE = -10.0  # the official scorer's for trials that a system does not report


@dataclass(frozen=True)
class Collection:
    """The full term list and collection of an evaluation, of which only a part may be searched.

    `targets` is bool (queries, documents).
    """

    queries: list[str]
    documents: list[str]
    targets: np.ndarray


class TermWeightedValue(NamedTuple):
    """A term-weighted value and its threshold: scores of at least `threshold` were accepted (infinity: none)."""

    value: float
    threshold: float


class DetectionCurve(NamedTuple):
    """Operating points, from the one that accepts nothing on; each (points,).

    Attributes:
        thresholds: infinity, then every distinct score, descending.
        miss: mean over queries of the share of targets below the threshold.
        false_alarm: mean over queries of the share of other trials at or above it.
    """

    thresholds: np.ndarray
    miss: np.ndarray
    false_alarm: np.ndarray


def _checked(scores, targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, targets among trials, and trials, of the queries that have a target."""
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets).astype(bool)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(
            f"expected scores and targets of one shape (queries, documents), got {scores.shape} and {targets.shape}"
        )
    if np.isinf(scores).any():
        raise ValueError("scores must be finite, or NaN where there is no trial")
    trials = ~np.isnan(scores)
    targets = targets & trials
    kept = targets.any(1)
    if not kept.any():
        raise LaserError("no query has a target among its trials")
    return scores[kept], targets[kept], trials[kept]


def detection_curve(scores, targets) -> DetectionCurve:
    """Miss and false-alarm rate at every threshold, equal scores being accepted together.

    Args:
        scores: (queries, documents), NaN where there is no trial.
        targets: bool, same shape.

    Raises:
        ValueError: shapes that do not fit, infinite scores, or no query with a target.
    """
    scores, targets, trials = _checked(scores, targets)
    # What one hit takes from the mean miss rate and one false alarm adds to the mean false-alarm rate, by query.
    hit = 1 / targets.sum(1) / len(targets)
    alarm = 1 / np.maximum((trials & ~targets).sum(1), 1) / len(targets)
    flat = scores[trials]
    order = np.argsort(-flat, kind="stable")
    flat = flat[order]
    hits = np.where(targets, hit[:, None], 0.0)[trials][order].cumsum()
    alarms = np.where(targets, 0.0, alarm[:, None])[trials][order].cumsum()
    last = np.append(np.flatnonzero(np.diff(flat)), len(flat) - 1)  # of each group of equal scores
    return DetectionCurve(
        np.append(np.inf, flat[last]),
        np.append(1.0, 1 - hits[last]).clip(0),
        np.append(0.0, alarms[last]).clip(None, 1),
    )


def mtwv(scores, targets, beta: float = BETA) -> TermWeightedValue:
    """Maximum term-weighted value over one threshold for all queries, at least 0 (nothing accepted).

    Args:
        scores: (queries, documents), NaN where there is no trial.
        targets: bool, same shape.
        beta: cost of a false-alarm rate of 1 relative to a miss rate of 1.

    Returns:
        Value and threshold; of equally good thresholds the highest.

    Raises:
        ValueError: as `detection_curve`, or a beta that is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    curve = detection_curve(scores, targets)
    values = 1 - curve.miss - beta * curve.false_alarm
    best = int(values.argmax())
    return TermWeightedValue(float(values[best]), float(curve.thresholds[best]))


def twv(scores, targets, threshold: float, beta: float = BETA) -> TermWeightedValue:
    """Term-weighted value when scores of at least `threshold` are accepted: the "actual" one; may be negative.

    Raises:
        ValueError: as `detection_curve`.
    """
    curve = detection_curve(scores, targets)
    point = int(np.searchsorted(-curve.thresholds, -threshold, side="right")) - 1
    return TermWeightedValue(float(1 - curve.miss[point] - beta * curve.false_alarm[point]), float(threshold))


def normalise_scores(scores: np.ndarray) -> np.ndarray:
    """Zero mean and unit population deviation (at least 1e-9) of each query's scores; NaN stays NaN."""
    normalised = np.full(scores.shape, np.nan)
    for row, values in enumerate(np.asarray(scores, dtype=np.float64)):
        used = ~np.isnan(values)
        if used.any():
            kept = values[used]
            normalised[row, used] = (kept - kept.mean()) / max(kept.std(), 1e-9)
    return normalised


def on_collection(
    scores: np.ndarray, queries: list[str], documents: list[str], collection: Collection, default: float = DEFAULT_SCORE
) -> np.ndarray:
    """Scores (queries, documents) of a part of `collection` among `default` for every other pair of it.

    This is SUPERB's definition of the trials: the official scorer takes the full term list and collection. NaN becomes
    `default` as well.
    """
    full = np.full(collection.targets.shape, default)
    rows, columns = ({name: i for i, name in enumerate(names)} for names in (collection.queries, collection.documents))
    part = np.ix_([rows[name] for name in queries], [columns[name] for name in documents])
    full[part] = np.where(np.isnan(scores), default, scores)
    return full


def mean_average_precision(scores, targets) -> float:
    """Mean over queries of `average_precision`; equal scores rank targets last.

    Raises:
        ValueError: as `detection_curve`.
    """
    rows = zip(*_checked(scores, targets), strict=True)
    return float(np.mean([average_precision(row[used], hits[used]) for row, hits, used in rows]))


def precision_at(scores, targets, n: int | None = None) -> float:
    """Mean over queries of the share of targets among the best `n` trials; equal scores rank targets last.

    Args:
        scores, targets: as in `mtwv`.
        n: how many; `None` for as many as the query has targets (R-precision, the "P@N" of Hazen et al., 2009).

    Raises:
        ValueError: as `detection_curve`, or n < 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    values = []
    for row, hits, used in zip(*_checked(scores, targets), strict=True):
        ranked = hits[used][np.lexsort((hits[used], -row[used]))]
        most = int(hits.sum()) if n is None else n
        values.append(ranked[:most].sum() / most)
    return float(np.mean(values))


def average_precision(scores, targets) -> float:
    """Mean, over the targets, of the precision at the rank of each; NaN without targets.

    The area under the precision-recall curve as retrieval evaluates it (Buckley and Voorhees, "Evaluating evaluation
    measure stability", SIGIR 2000). Of equal scores the targets rank last, so that constant scores earn nothing:
    the value is a lower bound over all orders of ties.

    Args:
        scores: (items,) array or tensor, higher ranks first.
        targets: (items,) bool; which items are to be found.

    Raises:
        ValueError: shapes that differ or are not (items,), or a score that is NaN.
    """
    scores, targets = np.asarray(scores), np.asarray(targets).astype(bool)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(f"expected scores and targets of one shape (items,), got {scores.shape} and {targets.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; leave those items out")
    found = np.sort(scores[targets])[::-1]
    if len(found) == 0:
        return float("nan")
    others = np.sort(scores[~targets])
    # Items at or above a target: the targets up to it, and every other item that does not score less.
    not_less = len(others) - np.searchsorted(others, found, side="left")
    hits = np.arange(1, len(found) + 1)
    return float(np.mean(hits / (hits + not_less)))
