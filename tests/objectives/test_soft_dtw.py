"""Soft-DTW as a loss of its own, and per frame as in SCORE, against the recursion in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from laser_hf import LaserLoss
from laser_hf.objectives import ScoreLoss, SoftDTWLoss

LOSSES = [SoftDTWLoss, ScoreLoss]


def unit_frames(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def recursion(x: list, y: list, gamma: float) -> float:
    """Soft-DTW of squared Euclidean costs, cell by cell (Cuturi & Blondel 2017, Algorithm 1)."""
    r = [[math.inf] * (len(y) + 1) for _ in range(len(x) + 1)]
    r[0][0] = 0.0
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            before = (r[i - 1][j - 1], r[i - 1][j], r[i][j - 1])
            smallest = min(before)
            softmin = smallest - gamma * math.log(sum(math.exp((smallest - value) / gamma) for value in before))
            r[i][j] = softmin + sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    return r[-1][-1]


def normalised(x: torch.Tensor, y: torch.Tensor, gamma: float) -> float:
    x, y = x.tolist(), y.tolist()
    return recursion(x, y, gamma) - 0.5 * (recursion(x, x, gamma) + recursion(y, y, gamma))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_values_are_the_recursion(gamma, backend):
    x, y, lengths = unit_frames(3, 8, 5), unit_frames(3, 7, 5, seed=1), ((8, 4, 1), (5, 7, 2))
    arguments = (x, torch.tensor(lengths[0]), y, torch.tensor(lengths[1]))
    expected = [normalised(x[i, :m], y[i, :n], gamma) for i, (m, n) in enumerate(zip(*lengths, strict=True))]
    per_frame = [value / (m + n) for value, m, n in zip(expected, *lengths, strict=True)]
    soft_dtw, score = (loss(gamma=gamma, backend=backend)(*arguments) for loss in LOSSES)
    for terms, total in ((soft_dtw, expected), (score, per_frame)):
        assert tuple(terms) == ("total", "soft_dtw")
        assert terms["soft_dtw"].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert terms["total"].tolist() == pytest.approx(total, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_dtw_is_laser_without_its_regulariser(dtype):
    x, y = (unit_frames(3, 20, 6, seed=seed, dtype=dtype).requires_grad_() for seed in (0, 1))
    lengths_x, lengths_y = torch.tensor([20, 12, 3]), torch.tensor([17, 20, 5])
    laser = LaserLoss(alpha=0.0)(x, lengths_x, y, lengths_y)
    terms = SoftDTWLoss()(x, lengths_x, y, lengths_y)
    for name, value in terms.items():
        torch.testing.assert_close(value, laser[name])
    theirs = torch.autograd.grad(laser["total"].sum(), (x, y))
    for ours, gradient in zip(torch.autograd.grad(terms["total"].sum(), (x, y)), theirs, strict=True):
        torch.testing.assert_close(ours, gradient)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    x, y = unit_frames(2, 5, 4).requires_grad_(), unit_frames(2, 4, 4, seed=1).requires_grad_()
    lengths_x, lengths_y = torch.tensor([5, 3]), torch.tensor([2, 4])
    assert torch.autograd.gradcheck(lambda a, b: loss()(a, lengths_x, b, lengths_y)["total"], (x, y))


def test_score_of_an_utterance_and_itself_is_zero():
    x = unit_frames(1, 12, 6)
    assert ScoreLoss()(x, None, x, None)["total"].item() == pytest.approx(0.0, abs=1e-12)


def test_score_without_lengths_counts_all_frames():
    x, y = unit_frames(2, 8, 5), unit_frames(2, 7, 5, seed=1)
    terms = ScoreLoss()(x, None, y, None)
    torch.testing.assert_close(terms["total"], terms["soft_dtw"] / 15)


@pytest.mark.parametrize("filler", [3.0, float("nan")])
@pytest.mark.parametrize("loss", LOSSES)
def test_padded_equals_alone(loss, filler):
    x, y = unit_frames(3, 8, 6), unit_frames(3, 7, 6, seed=1)
    lengths_x, lengths_y = torch.tensor([8, 3, 1]), torch.tensor([5, 7, 1])
    for i in range(3):
        x[i, lengths_x[i] :] = filler
        y[i, lengths_y[i] :] = filler
    x.requires_grad_()
    together = loss()(x, lengths_x, y, lengths_y)
    together["total"].sum().backward()
    for i, (m, n) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        own = x.detach()[i : i + 1, :m].requires_grad_()
        alone = loss()(own, None, y[i : i + 1, :n], None)
        alone["total"].sum().backward()
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i], value[0])
        torch.testing.assert_close(x.grad[i, :m], own.grad[0])
        assert (x.grad[i, m:] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf")])
def test_gamma_must_be_positive_and_finite(loss, gamma):
    with pytest.raises(ValueError, match="gamma must be at least 1e-06"):
        loss(gamma=gamma)
