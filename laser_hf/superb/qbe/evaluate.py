"""Every measure of one evaluation set at one layer, as entries of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import scoring
from .data import QbeData
from .stdlist import as_written

PRIMARY = {"quick": "mean_average_precision", "superb": "mtwv"}
TRIALS = ("superb", "subset")
DECISION_RULE = "SUPERB's decision rule, score above 2"


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set at one layer, and what they are worth.

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

    def value(self, metric: str, trials: str) -> float:
        """The first entry of that name and definition of the trials."""
        return next(m["value"] for m in self.metrics if m["metric"] == metric and m["trials"] == trials)

    def thresholds(self) -> dict[str, float]:
        """Threshold of the maximum term-weighted value by definition of the trials."""
        return {m["trials"]: m["threshold"] for m in self.metrics if m["metric"] == "mtwv"}


def evaluate(
    data: QbeData, scores: np.ndarray, layer: int, dev_thresholds: Mapping[str, float] | None = None
) -> Evaluation:
    """Measure `scores` (queries, documents) of `data`.

    Mean average precision and precision take the scores in full, term-weighted values those that are written to the
    files. `dev_thresholds` are those of the development set, by definition of the trials.

    Raises:
        ValueError: no query has a target among its trials.
    """
    raw = np.where(data.trials, scores, np.nan)
    normalised = scoring.normalise_scores(raw)
    written = as_written(normalised)
    of = {"unit": "fraction", "split": data.split, "layer": layer}
    metrics = [
        {"metric": name, "value": value, **of, "trials": "subset"}
        for name, value in (
            ("mean_average_precision", scoring.mean_average_precision(raw, data.targets)),
            ("precision_at_n", scoring.precision_at(raw, data.targets)),
            ("precision_at_1", scoring.precision_at(raw, data.targets, 1)),
        )
    ]
    full = {"subset": (normalised, data.targets)}
    measured = {"subset": (written, data.targets)}
    if data.collection is not None:
        names = [query.name for query in data.queries], [document.name for document in data.documents]
        full["superb"] = scoring.on_collection(normalised, *names, data.collection), data.collection.targets
        measured["superb"] = scoring.on_collection(written, *names, data.collection), data.collection.targets
    of["unit"] = ""
    for trials, (values, targets) in measured.items():
        best = scoring.mtwv(values, targets)
        metrics.append({"metric": "mtwv", "value": best.value, **of, "trials": trials, "threshold": best.threshold})
        # Decisions are taken before rounding.
        above = np.nextafter(scoring.DECISION_THRESHOLD, np.inf)
        decided = scoring.twv(*full[trials], above)
        metrics.append(
            {"metric": "act_twv_decisions", "value": decided.value, **of, "trials": trials}
            | {"threshold": scoring.DECISION_THRESHOLD, "threshold_from": DECISION_RULE}
        )
        if dev_thresholds is not None:
            actual = scoring.twv(values, targets, dev_thresholds[trials])
            metrics.append(
                {"metric": "act_twv", "value": actual.value, **of, "trials": trials}
                | {"threshold": actual.threshold, "threshold_from": "best on the development set"}
            )
    return Evaluation(raw, normalised, measured, metrics)


def count(data: QbeData, usable: np.ndarray) -> dict[str, Any]:
    """What an evaluation of `data` rests on; `usable` is bool (queries, documents), false for skipped audio."""
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
        full = data.collection.targets
        kept = int(full.any(1).sum())
        counts["collection"] = {
            "queries": len(data.collection.queries),
            "queries_with_target": kept,
            "documents": len(data.collection.documents),
            "trials": kept * len(data.collection.documents),
            "given": int(trials[_with_target(data)].sum()),
        }
        counts["collection"]["default"] = counts["collection"]["trials"] - counts["collection"]["given"]
    return counts


def _with_target(data: QbeData) -> np.ndarray:
    """Which queries of `data` have a target anywhere in the full collection, bool (queries,)."""
    has = dict(zip(data.collection.queries, data.collection.targets.any(1).tolist(), strict=True))
    return np.array([has[query.name] for query in data.queries])
