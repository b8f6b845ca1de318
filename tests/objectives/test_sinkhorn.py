"""Sinkhorn against explicit loops, by the properties of its limit, and spread over processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from laser_hf.objectives import sinkhorn


def by_loops(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """SwAV's steps with all their constants, entry by entry: Q is codes by frames, its sum 1."""
    frames, codes = scores.shape
    q = [[math.exp(scores[b, k] / epsilon) for b in range(frames)] for k in range(codes)]
    everything = sum(map(sum, q))
    q = [[value / everything for value in row] for row in q]
    for _ in range(iterations):
        for k in range(codes):
            total = sum(q[k])
            q[k] = [value / (total * codes) for value in q[k]]
        for b in range(frames):
            total = sum(q[k][b] for k in range(codes))
            for k in range(codes):
                q[k][b] /= total * frames
    return np.array([[q[k][b] * frames for k in range(codes)] for b in range(frames)])


def similarities(frames: int, codes: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(frames, codes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("iterations", [1, 3, 7])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 1.0])
@pytest.mark.parametrize(("frames", "codes"), [(1, 2), (5, 3), (4, 9), (20, 4)])
def test_values_are_the_steps_of_swav(frames, codes, epsilon, iterations):
    scores = similarities(frames, codes)
    expected = torch.from_numpy(by_loops(scores.numpy(), epsilon, iterations))
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, rtol=1e-9, atol=1e-12)


def test_a_case_by_hand():
    """exp of the scores is [[2, 1], [1, 1]]: codes to 1 gives [[2/3, 1/2], [1/3, 1/2]], then frames to 1."""
    scores = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    expected = torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), expected)


def test_float32_is_close_to_float64():
    scores = similarities(300, 64)
    close = sinkhorn(scores.float(), 0.02, 3)
    assert close.dtype == torch.float32
    torch.testing.assert_close(close.double(), sinkhorn(scores, 0.02, 3), rtol=0, atol=2e-5)


def test_frames_sum_to_one_and_codes_become_balanced():
    scores = similarities(40, 8)
    off = []
    for iterations in (1, 10, 1000):
        q = sinkhorn(scores, 0.1, iterations)
        torch.testing.assert_close(q.sum(dim=1), torch.ones(40, dtype=torch.float64))
        off.append((q.sum(dim=0) - 5).abs().max().item())
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-9


def test_a_constant_per_code_changes_nothing():
    scores, constant = similarities(12, 5), similarities(1, 5, seed=1)
    for iterations in (1, 3):
        torch.testing.assert_close(sinkhorn(scores + constant, 0.1, iterations), sinkhorn(scores, 0.1, iterations))


def test_a_constant_per_frame_changes_nothing_in_the_limit():
    scores, constant = similarities(12, 5), similarities(12, 1, seed=1)
    assert not torch.allclose(sinkhorn(scores + constant, 0.1, 1), sinkhorn(scores, 0.1, 1), atol=1e-3)
    torch.testing.assert_close(sinkhorn(scores + constant, 0.1, 1000), sinkhorn(scores, 0.1, 1000))


def test_permuted_frames_and_codes_permute_the_result():
    scores = similarities(12, 5)
    frames, codes = torch.randperm(12), torch.randperm(5)
    torch.testing.assert_close(sinkhorn(scores[frames][:, codes], 0.05, 3), sinkhorn(scores, 0.05, 3)[frames][:, codes])


@pytest.mark.parametrize("epsilon", [0.02, 1e-4, 1e-8])
def test_small_epsilon_stays_finite_in_float32(epsilon):
    """Below 0.011 the exponential of a cosine leaves float32, where the plain steps give NaN."""
    q = sinkhorn(similarities(50, 10).float(), epsilon, 3)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(50))


def test_equal_frames_are_spread_over_all_codes():
    q = sinkhorn(similarities(1, 8).expand(30, 8), 0.02, 3)
    torch.testing.assert_close(q, torch.full_like(q, 1 / 8))


def test_without_frames_and_without_graph():
    assert sinkhorn(torch.empty(0, 5), 0.02, 3).shape == (0, 5)
    assert not sinkhorn(similarities(4, 3).requires_grad_(), 0.02, 3).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(2, 3, 4), 0.02, 3), "frames, codes"),
        ((torch.rand(2, 3).half(), 0.02, 3), "float32 or float64"),
        ((torch.rand(2, 3), 0.0, 3), "epsilon"),
        ((torch.rand(2, 3), 0.02, 0), "iterations"),
        ((torch.rand(2, 3), 0.02, 1.5), "iterations"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(*arguments)
