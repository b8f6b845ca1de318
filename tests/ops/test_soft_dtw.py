"""Soft-DTW against brute force, autograd checks and the properties that padding must keep."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from laser_hf.ops import (
    BACKENDS as ALL_BACKENDS,
)
from laser_hf.ops import (
    SoftDTWBackendError,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
)

BACKENDS = [name for name in ALL_BACKENDS if name != "triton"]


def all_paths(m: int, n: int):
    """Every monotone alignment path from (0, 0) to (m - 1, n - 1)."""
    if (m, n) == (1, 1):
        yield [(0, 0)]
        return
    for before in ((m - 1, n - 1), (m - 1, n), (m, n - 1)):
        if min(before) >= 1:
            for path in all_paths(*before):
                yield [*path, (m - 1, n - 1)]


def brute_force(cost: torch.Tensor, gamma: float) -> float:
    """-gamma log sum over paths exp(-cost of the path / gamma): the definition."""
    costs = [sum(cost[i, j].item() for i, j in path) for path in all_paths(*cost.shape)]
    smallest = min(costs)
    return smallest - gamma * math.log(sum(math.exp((smallest - c) / gamma) for c in costs))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.001])
@pytest.mark.parametrize(("m", "n"), list(itertools.product(range(1, 5), repeat=2)))
def test_value_is_the_soft_minimum_over_all_paths(m, n, gamma, backend):
    torch.manual_seed(m * 10 + n)
    cost = torch.rand(3, m, n, dtype=torch.float64) * 2
    expected = torch.tensor([brute_force(matrix, gamma) for matrix in cost], dtype=torch.float64)
    torch.testing.assert_close(soft_dtw(cost, gamma=gamma, backend=backend), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_the_expected_alignment(backend):
    torch.manual_seed(0)
    cost, gamma = torch.rand(4, 3, dtype=torch.float64), 0.3
    paths = list(all_paths(4, 3))
    costs = torch.tensor([sum(cost[i, j].item() for i, j in path) for path in paths], dtype=torch.float64)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for path, probability in zip(paths, torch.softmax(-costs / gamma, 0), strict=True):
        for i, j in path:
            expected[i, j] += probability
    leaf = cost[None].clone().requires_grad_()
    soft_dtw(leaf, gamma=gamma, backend=backend).backward()
    torch.testing.assert_close(leaf.grad[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.01])
def test_gradcheck_ragged(gamma, backend):
    torch.manual_seed(1)
    cost = torch.rand(3, 6, 5, dtype=torch.float64, requires_grad=True)
    lengths_x, lengths_y = torch.tensor([6, 1, 4]), torch.tensor([5, 3, 1])
    assert torch.autograd.gradcheck(lambda c: soft_dtw(c, lengths_x, lengths_y, gamma, backend), cost, eps=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_gradcheck(backend):
    torch.manual_seed(2)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths_x, lengths_y = torch.tensor([5, 2]), torch.tensor([3, 4])
    assert torch.autograd.gradcheck(lambda a, b: soft_dtw_divergence(a, b, lengths_x, lengths_y, 0.5, backend), (x, y))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan"), float("inf")])
def test_padded_equals_alone(filler, backend):
    torch.manual_seed(3)
    lengths_x, lengths_y = torch.tensor([9, 4, 1, 7]), torch.tensor([2, 8, 1, 6])
    x, y = torch.randn(4, 9, 8), torch.randn(4, 8, 8)
    for i in range(4):
        x[i, lengths_x[i] :] = filler
        y[i, lengths_y[i] :] = filler
    x, y = x.requires_grad_(), y.requires_grad_()
    scale = torch.tensor([1.0, -2.0, 3.0, 0.5])
    together = soft_dtw_divergence(x, y, lengths_x, lengths_y, 0.1, backend)
    (together * scale).sum().backward()
    for i in range(4):
        m, n = lengths_x[i], lengths_y[i]
        a = x.detach()[i : i + 1, :m].requires_grad_()
        b = y.detach()[i : i + 1, :n].requires_grad_()
        alone = soft_dtw_divergence(a, b, gamma=0.1, backend=backend)
        (alone * scale[i]).sum().backward()
        torch.testing.assert_close(together[i], alone[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x.grad[i, :m], a.grad[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(y.grad[i, :n], b.grad[0], rtol=1e-5, atol=1e-6)
        assert (x.grad[i, m:] == 0).all()
        assert (y.grad[i, n:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuted_batch_gives_permuted_result(backend):
    torch.manual_seed(4)
    x, y = torch.randn(5, 12, 4), torch.randn(5, 10, 4)
    lengths_x, lengths_y = torch.tensor([12, 3, 7, 1, 9]), torch.tensor([10, 10, 2, 5, 8])
    order = torch.tensor([3, 0, 4, 2, 1])
    straight = soft_dtw_divergence(x, y, lengths_x, lengths_y, 0.1, backend)
    permuted = soft_dtw_divergence(x[order], y[order], lengths_x[order], lengths_y[order], 0.1, backend)
    torch.testing.assert_close(permuted, straight[order], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_finite_at_small_gamma_and_close_to_float64(gamma, scale, backend):
    torch.manual_seed(5)
    x = torch.nn.functional.normalize(torch.randn(2, 90, 16, dtype=torch.float64), dim=-1) * scale
    y = torch.nn.functional.normalize(torch.randn(2, 70, 16, dtype=torch.float64), dim=-1) * scale
    results = []
    for dtype in (torch.float64, torch.float32):
        a, b = (frames.detach().to(dtype).clone().requires_grad_() for frames in (x, y))
        value = soft_dtw_divergence(a, b, gamma=gamma, backend=backend)
        assert value.dtype == dtype
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(a.grad).all()
        results.append(value.detach().double())
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4 * scale**2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_goes_to_hard_dtw(backend):
    dtw = pytest.importorskip("dtw", reason="dtw-python is a development dependency")
    torch.manual_seed(6)
    cost = torch.rand(1, 25, 31, dtype=torch.float64)
    hard = dtw.dtw(cost[0].numpy(), step_pattern=dtw.symmetric1, distance_only=True).distance
    assert soft_dtw(cost, gamma=1e-3, backend=backend).item() == pytest.approx(hard, abs=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_sequences_have_divergence_zero(backend):
    x = torch.nn.functional.normalize(torch.randn(3, 40, 16, dtype=torch.float64), dim=-1).requires_grad_()
    value = soft_dtw_divergence(x, x.detach().clone(), gamma=0.1, backend=backend)
    torch.testing.assert_close(value, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alignment_rows_are_visited(backend):
    torch.manual_seed(7)
    alignment = soft_dtw_alignment(torch.randn(1, 9, 4), torch.randn(1, 6, 4), gamma=0.1, backend=backend)
    assert alignment.shape == (1, 9, 6)
    assert alignment[0, 0, 0] == pytest.approx(1.0)
    assert alignment[0, -1, -1] == pytest.approx(1.0)
    assert (alignment.sum(2) >= 1 - 1e-5).all()
    assert not alignment.requires_grad


def test_empty_batch_has_a_gradient():
    cost = torch.zeros(0, 3, 4, requires_grad=True)
    value = soft_dtw(cost)
    assert value.shape == (0,)
    value.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(3, 4),), "shape"),
        ((torch.rand(1, 3, 4, dtype=torch.bfloat16),), "float32 or float64"),
        ((torch.rand(1, 0, 4),), "at least one row"),
        ((torch.rand(2, 3, 4), torch.tensor([3])), "lengths_x must have shape"),
        ((torch.rand(2, 3, 4), torch.tensor([3, 4])), "between 1 and 3"),
        ((torch.rand(2, 3, 4), torch.tensor([3, 0])), "between 1 and 3"),
        ((torch.rand(2, 3, 4), None, None, 0.0), "gamma"),
        ((torch.rand(2, 3, 4), None, None, float("nan")), "gamma"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        soft_dtw(*arguments)


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(SoftDTWBackendError, match="auto, reference, cpu"):
        soft_dtw(torch.rand(1, 2, 2), backend="cuda")


def test_frames_that_do_not_belong_together():
    with pytest.raises(ValueError, match="equal batch and d"):
        soft_dtw_divergence(torch.rand(2, 3, 4), torch.rand(2, 3, 5))


@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.001])
@pytest.mark.parametrize(("m", "n"), [(1, 300), (300, 1), (63, 65), (128, 2), (260, 231)])
def test_compiled_equals_reference(m, n, gamma):
    """Long enough for exp(-R / gamma) to leave the range of any float many times over."""
    torch.manual_seed(m)
    x = torch.nn.functional.normalize(torch.randn(2, m, 24, dtype=torch.float64), dim=-1)
    y = torch.nn.functional.normalize(torch.randn(2, n, 24, dtype=torch.float64), dim=-1)
    lengths_x, lengths_y = torch.tensor([m, max(m - 7, 1)]), torch.tensor([max(n - 5, 1), n])
    results = {}
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float64), ("cpu", torch.float32)):
        a, b = (frames.to(dtype, copy=True).requires_grad_() for frames in (x, y))
        value = soft_dtw_divergence(a, b, lengths_x, lengths_y, gamma, backend)
        value.sum().backward()
        results[backend, dtype] = [t.detach().double() for t in (value, a.grad, b.grad)]
    reference = results["reference", torch.float64]
    for found, expected in zip(results["cpu", torch.float64], reference, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    value, *gradients = results["cpu", torch.float32]
    torch.testing.assert_close(value, reference[0], rtol=1e-5, atol=2e-5)
    if gamma >= 0.1:  # for smaller gamma the rounding of float32 costs changes the path
        for found, expected in zip(gradients, reference[1:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
