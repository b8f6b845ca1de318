"""Every measure of one evaluation set at one layer, as entries of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import scoring
from .data import QbeData

PRIMARY = {"quick": ("mean_average_precision", "subset"), "superb": ("mtwv", "superb")}
"""Metric and trials that a protocol reports."""
DECISION_RULE = "SUPERB's decision rule, score above 2"
DIGITS = 4
"""Decimals of a written score. The official scorer sees no others, so term-weighted values are taken from these."""


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
    files. `dev_thresholds` are those of the development set, by definition of the trials.

    Raises:
        LaserError: no query has a target among its trials.
    """
    raw = np.where(data.trials, scores, np.nan)
    normalised = scoring.normalise_scores(raw)
    of = {"unit": "fraction", "split": data.split, "layer": layer, "trials": "subset"}
    metrics = [
        {"metric": name, "value": value, **of}
        for name, value in (
            ("mean_average_precision", scoring.mean_average_precision(raw, data.targets)),
            ("precision_at_n", scoring.precision_at(raw, data.targets)),
            ("precision_at_1", scoring.precision_at(raw, data.targets, 1)),
        )
    ]
    full, measured = _by_trials(data, normalised), _by_trials(data, as_written(normalised))
    for trials, (values, targets) in measured.items():
        of |= {"unit": "", "trials": trials}
        best = scoring.mtwv(values, targets)
        metrics.append({"metric": "mtwv", "value": best.value, **of, "threshold": best.threshold})
        # SUPERB decides before it rounds.
        decided = scoring.twv(*full[trials], np.nextafter(scoring.DECISION_THRESHOLD, np.inf))
        metrics.append(
            {"metric": "act_twv_decisions", "value": decided.value, **of}
            | {"threshold": scoring.DECISION_THRESHOLD, "threshold_from": DECISION_RULE}
        )
        if dev_thresholds is not None:
            actual = scoring.twv(values, targets, dev_thresholds[trials])
            metrics.append(
                {"metric": "act_twv", "value": actual.value, **of}
                | {"threshold": actual.threshold, "threshold_from": "best on the development set"}
            )
    return Evaluation(raw, normalised, measured, metrics)


def _by_trials(data: QbeData, scores: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores and targets by definition of the trials."""
    found = {"subset": (scores, data.targets)}
    if data.collection is not None:
        names = [query.name for query in data.queries], [document.name for document in data.documents]
        found["superb"] = scoring.on_collection(scores, *names, data.collection), data.collection.targets
    return found


def as_written(scores: np.ndarray) -> np.ndarray:
    """Scores as the files hold them, with `DIGITS` decimals; `np.round` differs from the formatting in some halves."""
    return np.array([float(f"{score:.{DIGITS}f}") for score in np.ravel(scores)]).reshape(np.shape(scores))


def count(data: QbeData, usable: np.ndarray) -> dict[str, Any]:
    """Size of an evaluation of `data`; `usable` is bool (queries, documents), false for skipped audio."""
    trials = data.trials & usable
    targets = data.targets & trials
    counts: dict[str, Any] = {
        "split": data.split,
        "queries": int(targets.any(1).sum()),
        "queries_without_target": int((~targets.any(1)).sum()),
        "documents": len(data.documents),
        "trials": int(trials[targets.any(1)].sum()),
        "targets": int(targets.sum()),
        "revision": data.revision(),
    }
    if data.collection is not None:
        full = data.collection
        has = dict(zip(full.queries, full.targets.any(1).tolist(), strict=True))
        kept = sum(has.values())
        given = int(trials[[has[query.name] for query in data.queries]].sum())
        counts["collection"] = {
            "queries": len(full.queries),
            "queries_with_target": kept,
            "documents": len(full.documents),
            "trials": kept * len(full.documents),
            "given": given,
            "default": kept * len(full.documents) - given,
        }
    return counts
