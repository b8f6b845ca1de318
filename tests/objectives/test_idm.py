"""The regulariser with offsets scaled by the length, against Eq. 1 and 2 term by term."""

from __future__ import annotations

import pytest
import torch

from laser_hf import LaserLoss
from laser_hf.objectives import contrastive_idm


def unit_frames(*shape: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def brute_force(x: torch.Tensor, sigma: int, margin: float, distance: str, reference_frames: int) -> float:
    m, total = len(x), 0.0
    for i in range(m):
        for j in range(m):
            squared = sum((a - b) ** 2 for a, b in zip(x[i].tolist(), x[j].tolist(), strict=True))
            d = squared if distance == "sqeuclidean" else squared**0.5
            w = ((i - j) * reference_frames / m) ** 2 + 1
            total += w * max(0.0, margin - d) if abs(i - j) >= sigma else d / w
    return total / m**2


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("sigma", [1, 3])
@pytest.mark.parametrize("reference_frames", [1, 6, 250])
def test_scaled_offsets_are_the_equation(reference_frames, sigma, distance):
    x, lengths = unit_frames(3, 9, 5), torch.tensor([9, 5, 1])
    expected = [brute_force(x[i, :m], sigma, 1.1, distance, reference_frames) for i, m in enumerate(lengths.tolist())]
    value = contrastive_idm(x, lengths, sigma, 1.1, distance, reference_frames)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("sigma", [1, 3])
def test_gradcheck(sigma, distance):
    x, lengths = (0.6 * unit_frames(2, 6, 4)).requires_grad_(), torch.tensor([6, 4])
    assert torch.autograd.gradcheck(lambda a: contrastive_idm(a, lengths, sigma, 1.1, distance, 50), x)


def test_an_utterance_of_the_reference_length_has_raw_offsets():
    x, lengths = unit_frames(2, 9, 5), torch.tensor([9, 6])
    raw, scaled = contrastive_idm(x, lengths), contrastive_idm(x, lengths, reference_frames=9)
    assert scaled[0] == raw[0]
    assert scaled[1] > raw[1]


def test_the_value_is_bounded_whatever_the_length():
    """With all frames alike the raw value grows as m^2; the scaled one stays below margin (r^2 / 6 + 1)."""
    lengths, r, margin = (10, 40, 160, 640), 40, 1.1
    alike = [torch.ones(1, m, 4, dtype=torch.float64) / 2 for m in lengths]
    raw = [contrastive_idm(x, margin=margin).item() for x in alike]
    scaled = [contrastive_idm(x, margin=margin, reference_frames=r).item() for x in alike]
    assert raw[3] / raw[2] == pytest.approx(16, rel=0.01)
    assert all(value < margin * (r**2 / 6 + 1) for value in scaled)
    assert scaled[3] / scaled[2] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("filler", [0.0, 3.0, float("nan")])
def test_padded_equals_alone(filler):
    x, lengths = unit_frames(3, 8, 6), torch.tensor([8, 3, 1])
    for i, m in enumerate(lengths):
        x[i, m:] = filler
    x.requires_grad_()
    together = contrastive_idm(x, lengths, reference_frames=20)
    together.sum().backward()
    for i, m in enumerate(lengths):
        own = x.detach()[i : i + 1, :m].requires_grad_()
        alone = contrastive_idm(own, reference_frames=20)
        alone.sum().backward()
        torch.testing.assert_close(together[i], alone[0])
        torch.testing.assert_close(x.grad[i, :m], own.grad[0])
        assert (x.grad[i, m:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_loss_scales_the_regulariser_of_both_views(backend, dtype):
    x, y = unit_frames(2, 9, 5).to(dtype), unit_frames(2, 7, 5, seed=1).to(dtype)
    lengths_x, lengths_y = torch.tensor([9, 6]), torch.tensor([5, 7])
    raw = LaserLoss(alpha=0.3, sigma=2, backend=backend)(x, lengths_x, y, lengths_y)
    terms = LaserLoss(alpha=0.3, sigma=2, backend=backend, reference_frames=30)(x, lengths_x, y, lengths_y)
    idm = contrastive_idm(x, lengths_x, 2, reference_frames=30) + contrastive_idm(y, lengths_y, 2, reference_frames=30)
    assert terms["total"].dtype == dtype
    torch.testing.assert_close(terms["soft_dtw"], raw["soft_dtw"])
    torch.testing.assert_close(terms["idm"], idm)
    torch.testing.assert_close(terms["total"], raw["soft_dtw"] + 0.3 * idm)


def test_the_loss_with_the_common_length_as_reference_is_the_published_one():
    x, y = (unit_frames(2, 9, 5, seed=seed).requires_grad_() for seed in (0, 1))
    published, scaled = (LaserLoss(reference_frames=r)(x, None, y, None) for r in (None, 9))
    for name, value in published.items():
        torch.testing.assert_close(scaled[name], value)
    for theirs, ours in zip(
        torch.autograd.grad(published["total"].sum(), (x, y)),
        torch.autograd.grad(scaled["total"].sum(), (x, y)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [0, -3, 2.5, True])
def test_reference_frames_is_a_positive_whole_number(bad):
    with pytest.raises(ValueError, match=r"reference_frames must be (a whole number|at least 1), got"):
        LaserLoss(reference_frames=bad)
    with pytest.raises(ValueError, match="reference_frames"):
        contrastive_idm(unit_frames(1, 3, 4), reference_frames=bad)
