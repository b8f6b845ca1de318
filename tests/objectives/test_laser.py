"""LASER's loss against values of the authors' own code, brute force and autograd checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from laser_hf import LaserLoss
from laser_hf.objectives import contrastive_idm

# Computed with the released LASER loss (float32 inside): inputs, terms and gradients.
GOLDEN = np.load(Path(__file__).parent / "laser_loss_golden.npz")
CASES = sorted({int(name.split("_")[0].removeprefix("case")) for name in GOLDEN.files})


def brute_force_idm(x: torch.Tensor, sigma: int, margin: float, distance: str) -> torch.Tensor:
    """Eq. 1 and 2 of the paper, term by term."""
    n, total = len(x), torch.zeros((), dtype=x.dtype)
    for i in range(n):
        for j in range(n):
            if i == j:
                d = torch.zeros((), dtype=x.dtype)
            else:
                d = (x[i] - x[j]).square().sum()
                d = d if distance == "sqeuclidean" else d.sqrt()
            w = (i - j) ** 2 + 1
            total = total + (w * torch.relu(margin - d) if abs(i - j) >= sigma else d / w)
    return total / n**2


def golden(case: int, dtype=torch.float64):
    gamma, their_sigma, margin, alpha = GOLDEN[f"case{case}_params"]
    x, y = (torch.tensor(GOLDEN[f"case{case}_{name}"], dtype=dtype)[None].requires_grad_() for name in "xy")
    return x, y, {"gamma": gamma, "sigma": int(their_sigma) + 1, "margin": margin, "alpha": alpha}


@pytest.mark.parametrize("case", CASES)
def test_golden_values(case):
    x, y, parameters = golden(case)
    terms = LaserLoss(**parameters)(x, None, y, None)
    idm = GOLDEN[f"case{case}_idm_x"] + GOLDEN[f"case{case}_idm_y"]
    assert terms["soft_dtw"].item() == pytest.approx(
        GOLDEN[f"case{case}_soft_dtw_normalized"].item(), rel=2e-6, abs=2e-6
    )
    assert terms["idm"].item() == pytest.approx(idm, rel=1e-6, abs=1e-6)
    assert terms["total"].item() == pytest.approx(GOLDEN[f"case{case}_loss"].item(), rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_golden_gradients(case):
    x, y, parameters = golden(case)
    terms = LaserLoss(**parameters)(x, None, y, None)
    for name, key in (("total", "loss"), ("soft_dtw", "soft_dtw_normalized")):
        gradients = torch.autograd.grad(terms[name].sum(), (x, y), retain_graph=True)
        for gradient, letter in zip(gradients, "xy", strict=True):
            expected = torch.tensor(GOLDEN[f"case{case}_grad_{key}_{letter}"])
            scale = max(expected.abs().max().item(), 1.0)
            torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_close_to_golden(case):
    x, y, parameters = golden(case, torch.float32)
    terms = LaserLoss(**parameters)(x, None, y, None)
    assert terms["total"].dtype == torch.float32
    assert terms["total"].item() == pytest.approx(GOLDEN[f"case{case}_loss"].item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_idm_is_equation_1(sigma, distance):
    torch.manual_seed(sigma)
    x = torch.nn.functional.normalize(torch.randn(3, 9, 5, dtype=torch.float64), dim=-1)
    lengths = torch.tensor([9, 5, 1])
    expected = torch.stack([brute_force_idm(x[i, :n], sigma, 1.1, distance) for i, n in enumerate(lengths)])
    torch.testing.assert_close(contrastive_idm(x, lengths, sigma, 1.1, distance), expected)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("sigma", [1, 3])
def test_idm_gradcheck(sigma, distance):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, dtype=torch.float64).mul_(0.4).requires_grad_()
    lengths = torch.tensor([6, 4])
    assert torch.autograd.gradcheck(lambda a: contrastive_idm(a, lengths, sigma, 1.1, distance), x)


def test_idm_of_equal_frames_is_finite():
    """Digital silence gives equal frames, where the derivative of the root is infinite."""
    x = torch.ones(1, 12, 4).div_(2).requires_grad_()
    value = contrastive_idm(x)
    value.sum().backward()
    offsets = torch.arange(12)
    weights = (offsets[:, None] - offsets).square() + 1
    assert value.item() == pytest.approx(1.1 * (weights.sum() - 12).item() / 144, rel=1e-6)
    assert torch.isfinite(x.grad).all()


def test_idm_of_distant_frames_is_zero_at_sigma_one():
    assert contrastive_idm(torch.eye(6)[None], sigma=1, margin=1.1).item() == 0.0


@pytest.mark.parametrize("filler", [0.0, 3.0, float("nan")])
def test_padded_equals_alone(filler):
    torch.manual_seed(1)
    loss = LaserLoss()
    lengths_x, lengths_y = torch.tensor([8, 3, 1]), torch.tensor([5, 7, 1])
    x = torch.nn.functional.normalize(torch.randn(3, 8, 6), dim=-1)
    y = torch.nn.functional.normalize(torch.randn(3, 7, 6), dim=-1)
    for i in range(3):
        x[i, lengths_x[i] :] = filler
        y[i, lengths_y[i] :] = filler
    x, y = x.requires_grad_(), y.requires_grad_()
    together = loss(x, lengths_x, y, lengths_y)
    together["total"].sum().backward()
    for i, (m, n) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        a, b = x.detach()[i : i + 1, :m].requires_grad_(), y.detach()[i : i + 1, :n].requires_grad_()
        alone = loss(a, None, b, None)
        alone["total"].sum().backward()
        for name in loss.term_names:
            torch.testing.assert_close(together[name][i], alone[name][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad[i, :m], a.grad[0], rtol=1e-4, atol=1e-5)
        assert (x.grad[i, m:] == 0).all()


def test_total_is_the_weighted_sum_and_symmetric():
    torch.manual_seed(2)
    x = torch.nn.functional.normalize(torch.randn(2, 10, 6, dtype=torch.float64), dim=-1)
    y = torch.nn.functional.normalize(torch.randn(2, 12, 6, dtype=torch.float64), dim=-1)
    loss = LaserLoss(alpha=0.15, margin=1.0)
    terms, swapped = loss(x, None, y, None), loss(y, None, x, None)
    torch.testing.assert_close(terms["total"], terms["soft_dtw"] + 0.15 * terms["idm"])
    for name in loss.term_names:
        torch.testing.assert_close(terms[name], swapped[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "gamma"),
        ({"alpha": -0.1}, "alpha"),
        ({"sigma": 0}, "sigma"),
        ({"sigma": 1.5}, "sigma"),
        ({"margin": 0.0}, "margin"),
        ({"distance": "cosine"}, "euclidean, sqeuclidean"),
        ({"window": 1}, "laser has no option window; it takes gamma, alpha, sigma"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        LaserLoss(**arguments)


def test_idm_wants_floats_of_three_dimensions():
    with pytest.raises(ValueError, match="batch, frames, dim"):
        contrastive_idm(torch.rand(3, 4))
    with pytest.raises(ValueError, match="float32 or float64"):
        contrastive_idm(torch.rand(1, 3, 4).half())
