"""The frame-wise loss against sums in plain Python, autograd checks, and the regulariser of LASER."""

from __future__ import annotations

import pytest
import torch

from laser_hf.objectives import LaserLoss, MseIdmLoss, contrastive_idm


def unit_frames(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype, generator=generator), dim=-1)


def by_loops(x: list, y: list, alpha: float, sigma: int, margin: float) -> tuple[float, float, float]:
    """The equation of the docstring for one pair, number by number."""
    mse = sum((a - b) ** 2 for p, q in zip(x, y, strict=True) for a, b in zip(p, q, strict=True))
    idm = 0.0
    for view in (x, y):
        for i, p in enumerate(view):
            for j, q in enumerate(view):
                d = sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) ** 0.5
                w = (i - j) ** 2 + 1
                idm += (w * max(0.0, margin - d) if abs(i - j) >= sigma else d / w) / len(view) ** 2
    return mse + alpha * idm, mse, idm


@pytest.mark.parametrize(("alpha", "sigma", "margin"), [(0.4, 1, 1.1), (0.15, 3, 1.0), (0.0, 1, 1.1)])
def test_values_are_the_equation(alpha, sigma, margin):
    x, y, lengths = unit_frames(3, 8, 5), unit_frames(3, 8, 5, seed=1), (8, 4, 1)
    loss = MseIdmLoss(alpha=alpha, sigma=sigma, margin=margin)
    terms = loss(x, torch.tensor(lengths), y, torch.tensor(lengths))
    expected = [by_loops(x[i, :m].tolist(), y[i, :m].tolist(), alpha, sigma, margin) for i, m in enumerate(lengths)]
    for index, name in enumerate(("total", "mse", "idm")):
        assert terms[name].tolist() == pytest.approx([one[index] for one in expected], rel=1e-10, abs=1e-12), name


def test_the_error_is_a_sum_and_no_mean():
    """Torch's own summed error, which the released code uses; unit frames that are opposite differ by 2."""
    x, y = unit_frames(1, 30, 16), unit_frames(1, 30, 16, seed=1)
    mse = MseIdmLoss()(x, None, y, None)["mse"]
    assert mse.item() == pytest.approx(torch.nn.MSELoss(reduction="sum")(x, y).item())
    assert MseIdmLoss()(x, None, -x, None)["mse"].item() == pytest.approx(30 * 4)


@pytest.mark.parametrize("parameters", [{}, {"distance": "sqeuclidean", "sigma": 2}, {"reference_frames": 50}])
def test_the_regulariser_is_that_of_laser(parameters):
    x, y, lengths = unit_frames(2, 9, 5), unit_frames(2, 9, 5, seed=1), torch.tensor([9, 6])
    ours = MseIdmLoss(**parameters)(x, lengths, y, lengths)["idm"]
    torch.testing.assert_close(ours, LaserLoss(**parameters)(x, lengths, y, lengths)["idm"])


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
def test_gradcheck(distance):
    x, y = (0.6 * unit_frames(2, 5, 4, seed=seed) for seed in (0, 1))
    lengths, loss = torch.tensor([5, 3]), MseIdmLoss(distance=distance, sigma=2)
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: loss(a, lengths, b, lengths)["total"], inputs)


def test_without_the_regulariser_collapse_is_a_minimum_and_with_it_not():
    alike = unit_frames(1, 1, 8).expand(1, 40, 8)
    spread = torch.eye(8, dtype=torch.float64).repeat(5, 1)[None]
    assert MseIdmLoss(alpha=0.0)(alike, None, alike, None)["total"].item() == 0
    collapsed, good = (MseIdmLoss()(frames, None, frames, None)["total"].item() for frames in (alike, spread))
    assert collapsed > good
    assert collapsed == pytest.approx(0.8 * contrastive_idm(alike).item())
