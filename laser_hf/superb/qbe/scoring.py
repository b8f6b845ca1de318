"""From scores to measures: term-weighted value, mean average precision, precision at N.

Scores are arrays (queries, documents) in which NaN marks a pair that is no trial; targets are bool of the same shape.
Queries without a target among their trials are left out of every measure, as the official scorer does. All measures
raise a `ValueError` for shapes that do not fit, infinite scores, and if no query has a target.

The term-weighted value (Fiscus et al., "Results of the 2006 spoken term detection evaluation", 2007) weighs all
queries alike,

    TWV(t) = 1 - mean over queries of (P_miss(t) + beta P_fa(t)),   beta = C_fa (1 - P_target) / (C_miss P_target),

P_miss the share of a query's targets that score below t and P_fa the share of its other trials that score t or more.
QUESST 2014 sets P_target 0.0008, C_fa 1, C_miss 100, so beta = 12.49: with 1,000 documents, eighty false alarms of a
query cost as much as missing all its targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
PERTURBED = "perturbed_mean_average_precision"
"""Name of the mean over views of the mean average precision with perturbed queries."""


@dataclass(frozen=True)
class Collection:
    """The full term list and collection of an evaluation, of which only a part may be searched."""

    queries: list[str]
    documents: list[str]
    targets: np.ndarray  # bool (queries, documents)


class TermWeightedValue(NamedTuple):
    """A term-weighted value and its threshold: scores of at least `threshold` were accepted (infinity: none)."""

    value: float
    threshold: float


class DetectionCurve(NamedTuple):
    """Operating points, from the one that accepts nothing on; each (points,)."""

    thresholds: np.ndarray  # infinity, then every distinct score, descending
    miss: np.ndarray  # mean over queries of the share of targets below the threshold
    false_alarm: np.ndarray  # mean over queries of the share of other trials at or above it


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Position of each name."""
    return {name: position for position, name in enumerate(names)}


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


def detection_curve(scores, targets) -> DetectionCurve:
    """Miss and false-alarm rate at every threshold, equal scores being accepted together."""
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
    miss, false_alarm = np.append(1.0, 1 - hits[last]).clip(0), np.append(0.0, alarms[last]).clip(None, 1)
    return DetectionCurve(np.append(np.inf, flat[last]), miss, false_alarm)


def mtwv(scores, targets, beta: float = BETA) -> TermWeightedValue:
    """Maximum term-weighted value over one threshold for all queries, at least 0 (nothing accepted).

    Of equally good thresholds it is the highest. `beta` is the cost of a false-alarm rate of 1 relative to a miss rate
    of 1; `ValueError` if it is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    curve = detection_curve(scores, targets)
    values = 1 - curve.miss - beta * curve.false_alarm
    best = int(values.argmax())
    return TermWeightedValue(float(values[best]), float(curve.thresholds[best]))


def twv(scores, targets, threshold: float, beta: float = BETA) -> TermWeightedValue:
    """Term-weighted value when scores of at least `threshold` are accepted: the "actual" one; may be negative."""
    curve = detection_curve(scores, targets)
    point = int(np.searchsorted(-curve.thresholds, -threshold, side="right")) - 1
    return TermWeightedValue(float(1 - curve.miss[point] - beta * curve.false_alarm[point]), float(threshold))


def normalise_scores(scores: np.ndarray) -> np.ndarray:
    """Zero mean and unit population deviation (at least 1e-9) of each query's scores; NaN stays NaN."""
    normalised = np.full(scores.shape, np.nan)
    for row, values in enumerate(scores):
        used = ~np.isnan(values)
        if used.any():
            kept = values[used]
            normalised[row, used] = (kept - kept.mean()) / max(kept.std(), 1e-9)
    return normalised


def on_collection(scores: np.ndarray, queries: list[str], documents: list[str], collection: Collection) -> np.ndarray:
    """Scores (queries, documents) of a part of `collection` among `DEFAULT_SCORE` for every other pair of it.

    NaN becomes the default as well. So SUPERB defines the trials: the official scorer takes the full lists.
    """
    full = np.full(collection.targets.shape, DEFAULT_SCORE)
    rows, columns = numbered(collection.queries), numbered(collection.documents)
    part = np.ix_([rows[name] for name in queries], [columns[name] for name in documents])
    full[part] = np.where(np.isnan(scores), DEFAULT_SCORE, scores)
    return full


def mean_average_precision(scores, targets) -> float:
    """Mean over queries of `average_precision`; equal scores rank targets last."""
    rows = zip(*_checked(scores, targets), strict=True)
    return float(np.mean([average_precision(row[used], hits[used]) for row, hits, used in rows]))


def precision_at(scores, targets, n: int | None = None) -> float:
    """Mean over queries of the share of targets among the best `n` trials; equal scores rank targets last.

    `n=None` takes as many as the query has targets (R-precision, the "P@N" of Hazen et al., 2009); `ValueError` for
    `n` < 1.
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
    the value is a lower bound over all orders of ties. Scores are `(items,)`; `ValueError` for NaN or unequal shapes.
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


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set at one layer, and their measures.

    Trials are defined in two ways: "subset", the pairs that are searched, and on QUESST 2014 "superb", the full term
    list and collection with -10 for what is not searched.

    Attributes:
        raw: minus the alignment costs (queries, documents), NaN for what is no trial or was skipped.
        normalised: by query.
        measured: by definition of the trials: scores as written and targets, over all trials of that definition.
        metrics: entries with `metric`, `value`, `unit`, `split`, `layer` and `trials`.
    """

    raw: np.ndarray
    normalised: np.ndarray
    measured: dict[str, tuple[np.ndarray, np.ndarray]]
    metrics: list[dict[str, Any]]

    def find(self, metric: str, trials: str) -> dict[str, Any]:
        """The entry of that name and definition of the trials."""
        return next(m for m in self.metrics if (m["metric"], m["trials"]) == (metric, trials))


def evaluate(
    data: QbeData, scores: np.ndarray, layer: int, dev_thresholds: Mapping[str, float] | None = None
) -> Evaluation:
    """Measure `scores` (queries, documents) of `data`.

    Mean average precision and precision take the scores in full, term-weighted values those that are written to the
    files. `dev_thresholds` are those of the development set, by definition of the trials. Raises `LaserError` if no
    query has a target among its trials.
    """
    metrics: list[dict[str, Any]] = []

    def enter(name: str, value: float, unit: str, trials: str, **more: Any) -> None:
        about = {"unit": unit, "split": data.split, "layer": layer, "trials": trials}
        metrics.append({"metric": name, "value": value, **about, **more})

    raw = np.where(data.trials, scores, np.nan)
    normalised = normalise_scores(raw)
    enter("mean_average_precision", mean_average_precision(raw, data.targets), "fraction", "subset")
    enter("precision_at_n", precision_at(raw, data.targets), "fraction", "subset")
    enter("precision_at_1", precision_at(raw, data.targets, 1), "fraction", "subset")
    full, measured = _by_trials(data, normalised), _by_trials(data, as_written(normalised))
    for trials, written in measured.items():
        best = mtwv(*written)
        enter("mtwv", best.value, "", trials, threshold=best.threshold)
        # SUPERB decides before it rounds.
        decided = twv(*full[trials], np.nextafter(DECISION_THRESHOLD, np.inf)).value
        rule = "SUPERB's decision rule, score above 2"
        enter("act_twv_decisions", decided, "", trials, threshold=DECISION_THRESHOLD, threshold_from=rule)
        if dev_thresholds is not None:
            value, threshold = twv(*written, dev_thresholds[trials])
            rule = "best on the development set"
            enter("act_twv", value, "", trials, threshold=threshold, threshold_from=rule)
    return Evaluation(raw, normalised, measured, metrics)


def _by_trials(data: QbeData, scores: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores and targets by definition of the trials."""
    found = {"subset": (scores, data.targets)}
    if data.collection is not None:
        names = [query.name for query in data.queries], [document.name for document in data.documents]
        found["superb"] = on_collection(scores, *names, data.collection), data.collection.targets
    return found


def as_written(scores: np.ndarray) -> np.ndarray:
    """Scores as the files hold them, with `DIGITS` decimals; `np.round` differs from the formatting in some halves."""
    return np.array([float(f"{score:.{DIGITS}f}") for score in scores.flat]).reshape(scores.shape)
