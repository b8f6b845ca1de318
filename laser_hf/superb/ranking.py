"""Ranking measures shared by query by example and by the diagnostics."""

from __future__ import annotations

import math

import numpy as np


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
        return math.nan
    others = np.sort(scores[~targets])
    # Items at or above a target: the targets up to it, and every other item that does not score less.
    not_less = len(others) - np.searchsorted(others, found, side="left")
    hits = np.arange(1, len(found) + 1)
    return float(np.mean(hits / (hits + not_less)))
