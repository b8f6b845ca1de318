"""Measures against their definitions: every threshold tried, ties included."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import laser_hf.superb
from laser_hf.errors import LaserError
from laser_hf.superb import mtwv
from laser_hf.superb.qbe import scoring
from laser_hf.superb.qbe.scoring import Collection


def value_at(scores, targets, threshold, beta):
    """TWV by its definition, one query and one trial at a time."""
    lost = []
    for row, hits in zip(scores, targets, strict=True):
        trials = [(s, t) for s, t in zip(row, hits, strict=True) if not math.isnan(s)]
        wanted = [s for s, t in trials if t]
        if not wanted:
            continue
        others = [s for s, t in trials if not t]
        miss = sum(s < threshold for s in wanted) / len(wanted)
        alarm = sum(s >= threshold for s in others) / len(others) if others else 0.0
        lost.append(miss + beta * alarm)
    return 1 - sum(lost) / len(lost)


SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(shape=SHAPES, beta=st.sampled_from([0.1, 1.0, 12.49]), data=st.data())
def test_mtwv_equals_brute_force_over_all_thresholds(shape, beta, data):
    """Few distinct scores, so that ties abound; missing trials; queries without targets or without others."""
    scores = data.draw(arrays(float, shape, elements=st.sampled_from([0.0, 1.0, 2.0, 5.0, math.nan])))
    targets = data.draw(arrays(bool, shape))
    if not (targets & ~np.isnan(scores)).any():
        with pytest.raises(LaserError, match="no query has a target"):
            mtwv(scores, targets, beta)
        return
    thresholds = [math.inf, *np.unique(scores[~np.isnan(scores)])[::-1]]
    values = [value_at(scores, targets, threshold, beta) for threshold in thresholds]
    found = mtwv(scores, targets, beta)
    assert found.value == pytest.approx(max(0, *values), abs=1e-12)
    assert value_at(scores, targets, found.threshold, beta) == pytest.approx(found.value, abs=1e-12)
    for threshold in [*thresholds, -1.0, 0.5, 3.0, 9.0]:
        expected = value_at(scores, targets, threshold, beta)
        assert scoring.twv(scores, targets, threshold, beta) == pytest.approx(expected, abs=1e-12)


def test_mtwv_by_hand():
    # Accepting the best of each query: the first hits one of two targets, the second has one false alarm in four.
    scores = [[9.0, 1, 2, 3, np.nan], [8.0, 0, 0, 0, 0]]
    targets = [[1, 1, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert mtwv(scores, targets, beta=0.1) == (pytest.approx(1 - 0.1 * (1 + 1) / 2), 0)
    assert mtwv(scores, targets, beta=12.49) == (pytest.approx(0.25), 9)
    assert mtwv(-np.array(scores), targets) == (0.0, math.inf)  # nothing can be accepted


def test_a_tie_is_accepted_as_a_whole():
    value, threshold = mtwv([[5.0, 5.0, 1.0]], [[True, False, False]], beta=1.0)
    assert (value, threshold) == (0.5, 5.0)  # not 1.0, which splitting the tie would give
    assert mtwv([[5.0, 5.0, 1.0]], [[True, False, False]]) == (0.0, math.inf)


def test_mtwv_is_perfect_for_perfect_scores():
    targets = np.random.default_rng(0).random((20, 50)) < 0.1
    targets[:, 0] = True
    assert mtwv(targets.astype(float), targets) == (pytest.approx(1), 1.0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(queries, documents\), got \(1, 2\) and \(2, 1\)"):
        mtwv([[1.0, 2.0]], [[1], [0]])
    with pytest.raises(ValueError, match="finite"):
        mtwv([[1.0, math.inf]], [[1, 0]])
    with pytest.raises(ValueError, match="beta must be positive"):
        mtwv([[1.0, 2.0]], [[1, 0]], beta=0)


def test_the_curve_ends_at_accepting_everything():
    scores, targets = np.random.default_rng(1).normal(size=(3, 9)), np.eye(3, 9, dtype=bool)
    thresholds, values = scoring.twv_curve(scores, targets, beta=3.0)
    assert (thresholds[0], values[0]) == (math.inf, 0)
    assert values[-1] == pytest.approx(1 - 3.0)
    assert (np.diff(thresholds) < 0).all()


def test_collection_adds_default_scores():
    """The measure over a full collection is the one over its scores written out by hand."""
    random = np.random.default_rng(5)
    queries, documents = [f"q{n}" for n in range(6)], [f"d{n}" for n in range(20)]
    targets = random.random((6, 20)) < 0.2
    targets[5] = False  # nowhere: removed
    rows, columns = [4, 1, 5], list(range(3, 15))
    scores = random.normal(size=(3, 12)).round(1)
    scores[0, 4] = np.nan  # could not be read: not reported
    written = {}
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        if not np.isnan(scores[i, j]):
            written[queries[row], documents[column]] = scores[i, j]
    full = np.array([[written.get((q, d), -10.0) for d in documents] for q in queries])
    found = scoring.on_collection(scores, Collection(targets, np.ix_(rows, columns)))
    np.testing.assert_array_equal(found, full)
    thresholds = [math.inf, *np.unique(full)]
    best = max(value_at(full, targets, threshold, 1.0) for threshold in thresholds)
    assert mtwv(found, targets, 1.0).value == pytest.approx(best)


def test_scores_are_normalised_over_trials_of_the_query():
    scores = np.array([[1.0, 2.0, 3.0, np.nan], [5.0, 5.0, 5.0, 5.0], [np.nan] * 4])
    found = scoring.normalise_scores(scores)
    np.testing.assert_allclose(found[0, :3], np.array([-1.0, 0.0, 1.0]) / math.sqrt(2 / 3))
    assert np.isnan(found[0, 3])
    assert not found[1].any()
    assert np.isnan(found[2]).all()


def test_mean_average_precision_uses_trials_only():
    scores = np.array([[np.nan, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    targets = np.array([[True, True, False], [True, False, False], [False, False, False]])
    assert scoring.mean_average_precision(scores, targets) == pytest.approx((1 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="no query has a target"):
        scoring.mean_average_precision(scores[2:], targets[2:])


def test_precision_at_n():
    scores = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 0.0, np.nan], [1.0, 2.0, 3.0, 4.0]])
    targets = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    # Query 0 has two of its three targets among the best three; query 1's one target ties and ranks last of two.
    assert scoring.precision_at(scores, targets) == pytest.approx((2 / 3 + 0) / 2)
    assert scoring.precision_at(scores, targets, 1) == pytest.approx((1 + 0) / 2)
    assert scoring.precision_at(scores, targets, 2) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_mtwv_is_a_light_import():
    code = "import sys; from laser_hf.superb import mtwv; print(mtwv([[2, 1]], [[1, 0]])); exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "TermWeightedValue(value=1.0, threshold=2.0)"
    with pytest.raises(AttributeError, match="no attribute 'mtwvv'"):
        laser_hf.superb.mtwvv  # noqa: B018
