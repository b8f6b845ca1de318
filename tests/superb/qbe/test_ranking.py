"""Average precision against a brute-force count, with ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from laser_hf.superb.qbe.scoring import average_precision


def brute_force(scores, targets) -> float:
    """Walk down the ranking item by item; of equal scores the targets come last."""
    ranking = sorted(zip(scores, targets, strict=True), key=lambda item: (-item[0], item[1]))
    hits, precisions = 0, []
    for rank, (_, target) in enumerate(ranking, start=1):
        if target:
            hits += 1
            precisions.append(hits / rank)
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("seed", range(20))
def test_equals_brute_force(seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4 + 20 * (seed % 2), size=30).astype(float)  # few values: many ties
    targets = generator.random(30) < 0.3
    targets[generator.integers(30)] = True
    expected = brute_force(scores.tolist(), targets.tolist())
    assert average_precision(scores, targets) == pytest.approx(expected)
    assert average_precision(torch.from_numpy(scores), torch.from_numpy(targets)) == pytest.approx(expected)


def test_ties_infinities_and_no_targets():
    assert average_precision([0.0] * 4, [True, False, False, False]) == pytest.approx(1 / 4)
    assert average_precision([3.0, 2.0, -math.inf, -math.inf], [1, 1, 0, 0]) == 1.0
    assert average_precision([3.0, 2.0, -math.inf, -math.inf], [0, 0, 0, 1]) == pytest.approx(1 / 4)
    assert math.isnan(average_precision([1.0, 2.0], [False, False]))
    assert math.isnan(average_precision([], []))


def test_bad_input():
    with pytest.raises(ValueError, match=r"one shape \(items,\)"):
        average_precision([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        average_precision([1.0, math.nan], [True, False])
