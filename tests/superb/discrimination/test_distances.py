"""DTW between stretches of frames, against an explicit walk of all paths and the dtw package."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.superb.discrimination.comparisons import dtw_distances
from laser_hf.superb.discrimination.tokens import Token, token_frames


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def cosine_costs(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return (1 - a.double() @ b.double().T).clamp(min=0).numpy()


def cheapest_path(cost: np.ndarray) -> float:
    """The smallest path cost over an explicit walk of every path, a diagonal step counting twice."""

    def walk(i: int, j: int, total: float) -> float:
        if (i, j) == (cost.shape[0] - 1, cost.shape[1] - 1):
            return total
        best = math.inf
        if i + 1 < cost.shape[0]:
            best = min(best, walk(i + 1, j, total + cost[i + 1, j]))
        if j + 1 < cost.shape[1]:
            best = min(best, walk(i, j + 1, total + cost[i, j + 1]))
        if i + 1 < cost.shape[0] and j + 1 < cost.shape[1]:
            best = min(best, walk(i + 1, j + 1, total + 2 * cost[i + 1, j + 1]))
        return best

    return walk(0, 0, 2 * cost[0, 0])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_dtw_equals_walking_every_path(lengths, data):
    segments = [unit_rows(length, 8, seed=number) for number, length in enumerate(lengths)]
    index = st.integers(0, len(lengths) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), max_size=8))
    found = dtw_distances(segments, [first for first, _ in pairs], [second for _, second in pairs])
    expected = [
        cheapest_path(cosine_costs(segments[first], segments[second])) / (lengths[first] + lengths[second])
        for first, second in pairs
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dtw_of_many_pairs_equals_the_dtw_package(capsys):
    dtw = pytest.importorskip("dtw")
    capsys.readouterr()  # its greeting
    generator = np.random.default_rng(0)
    segments = [unit_rows(int(length), 12, seed=i) for i, length in enumerate(generator.integers(1, 30, 40))]
    first, second = generator.integers(0, 40, 200), generator.integers(0, 40, 200)
    expected = []
    for i, j in zip(first, second, strict=True):
        cost = cosine_costs(segments[i], segments[j])
        found = dtw.dtw(cost, step_pattern="symmetric2", distance_only=True)
        # The package counts the first cell once; Sakoe and Chiba's start counts it twice like a diagonal
        # step. Every path has that cell, so the best path is the same one.
        expected.append((found.distance + cost[0, 0]) / sum(cost.shape))
    np.testing.assert_allclose(dtw_distances(segments, first, second), expected, atol=1e-6)


def test_dtw_does_not_depend_on_the_other_pairs_or_the_order():
    segments = [unit_rows(length, 12, seed=length) for length in range(1, 25)]
    first, second = np.triu_indices(24, k=1)
    whole = dtw_distances(segments, first, second)
    np.testing.assert_allclose(dtw_distances(segments, second, first), whole, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(first))[::3]  # with gaps: columns are gathered, not sliced
    np.testing.assert_allclose(dtw_distances(segments, first[order], second[order]), whole[order], atol=1e-6)
    twice = dtw_distances(segments, [3, 3, 3], [7, 5, 7])
    assert twice[0] == twice[2] != twice[1]


def test_dtw_of_a_stretched_copy_is_zero():
    a = unit_rows(6, 8)
    stretched = a.repeat_interleave(torch.tensor([1, 3, 2, 1, 4, 2]), dim=0)
    assert dtw_distances([a, stretched], [0], [1])[0] == pytest.approx(0, abs=1e-6)


def test_dtw_of_a_zero_frame_is_one():
    assert dtw_distances([torch.zeros(3, 4), unit_rows(5, 4)], [0], [1])[0] == pytest.approx(1)


def test_stretches_without_frames_are_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        dtw_distances([unit_rows(3, 4), torch.zeros(0, 4)], [0], [1])


@pytest.mark.parametrize("first_seconds", [None, 0.0125])
@pytest.mark.parametrize("rate", [50.0, 100.0])
def test_a_token_has_the_frames_within_it(rate, first_seconds):
    frames = {"u": unit_rows(40, 3)}
    times = (torch.arange(40) + 0.5) / rate if first_seconds is None else first_seconds + torch.arange(40) / rate
    for start, duration in ((0.0, 0.1), (0.063, 0.11), (0.2, 0.05), (0.15, 0.031)):
        inside = (times >= start) & (times < start + duration)
        (found,) = token_frames(frames, [Token("u", start, duration, "x", "s")], rate, first_seconds)
        torch.testing.assert_close(found, frames["u"][inside])


def test_a_token_shorter_than_a_frame_has_the_nearest_one():
    frames = {"u": unit_rows(10, 3)}
    (found,) = token_frames(frames, [Token("u", 0.061, 0.002, "x", "s")])
    torch.testing.assert_close(found, frames["u"][3:4])
    (found,) = token_frames(frames, [Token("u", 0.0, 0.004, "x", "s")], first_seconds=0.0125)
    torch.testing.assert_close(found, frames["u"][:1])
