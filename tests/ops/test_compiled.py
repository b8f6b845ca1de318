"""What the compiled CPU backend adds to the mathematics: one pass for both terms, compiled graphs, a cache on disk."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from laser_hf import LaserLoss
from laser_hf.ops import IDM, SoftDTWBackendError, pair_terms, soft_dtw, soft_dtw_divergence


def frames(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(shape, dtype=dtype), dim=-1)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("sigma", [1, 3, 100])
@pytest.mark.parametrize("weights", [{"total": 1.0}, {"soft_dtw": -2.0}, {"idm": 0.5}, {"total": 1.0, "idm": 3.0}])
def test_one_pass_equals_the_separate_terms(distance, sigma, weights):
    # Longer than two strips of rows; some frames nearer than the margin, some not.
    x, y = frames(3, 70, 5), frames(3, 66, 5, seed=1)
    lengths = torch.tensor([70, 1, 33]), torch.tensor([40, 66, 32])
    x[0, 7] = x[0, 20]
    x[2, 33:] = float("nan")
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    results = []
    for backend in ("reference", "cpu"):
        a, b = (t.detach().clone().requires_grad_() for t in (x, y))
        terms = LaserLoss(sigma=sigma, distance=distance, backend=backend)(a, lengths[0], b, lengths[1])
        sum(weight * (terms[name] * upstream).sum() for name, weight in weights.items()).backward()
        results.append([*(terms[name].detach() for name in LaserLoss.term_names), a.grad, b.grad])
    for expected, found in zip(*results, strict=True):
        # The distance of equal frames is rounding noise, different in each; its root has a weight of up to 170.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_one_pass_gradcheck(alpha):
    x, y = frames(2, 6, 4) * 0.5, frames(2, 5, 4, seed=1) * 0.5
    lengths = torch.tensor([6, 3]), torch.tensor([4, 5])
    loss = LaserLoss(gamma=0.5, alpha=alpha, sigma=2, backend="cpu")
    assert torch.autograd.gradcheck(
        # Clones: gradcheck changes its inputs in place between forward and backward.
        lambda a, b: loss(a.clone(), lengths[0], b.clone(), lengths[1])["total"],
        (x.requires_grad_(), y.requires_grad_()),
    )


def test_gradient_in_float32_is_close_to_float64():
    x, y = frames(2, 200, 256), frames(2, 180, 256, seed=1)
    results = []
    for dtype in (torch.float64, torch.float32):
        a, b = (t.to(dtype, copy=True).requires_grad_() for t in (x, y))
        soft_dtw_divergence(a, b, gamma=0.1, backend="cpu").sum().backward()
        results.append((a.grad, b.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_inside_a_compiled_graph(backend):
    x, y = frames(2, 9, 4, dtype=torch.float32), frames(2, 7, 4, seed=1, dtype=torch.float32)
    lengths = torch.tensor([9, 4]), torch.tensor([7, 5])
    loss = LaserLoss()

    def step(a, b, lengths_x, lengths_y):
        cost = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)
        return loss(a * 1.5, lengths_x, b, lengths_y)["total"].mean() + soft_dtw(cost, lengths_x, lengths_y).mean()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        a, b = (t.clone().requires_grad_() for t in (x, y))
        function(a, b, *lengths).backward()
        gradients.append((a.grad, b.grad))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_compiled_graph_refuses_wrong_lengths_too():
    compiled = torch.compile(soft_dtw, fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match="between 1 and 3"):
        compiled(torch.rand(1, 3, 4), torch.tensor([4]), torch.tensor([4]))


def test_a_second_derivative_is_refused():
    cost = torch.rand(1, 3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(soft_dtw(cost, backend="cpu").sum(), cost, create_graph=True)


def test_operators_keep_the_rules():
    """torch's own check of schema, fake results and derivative."""
    from laser_hf.ops.soft_dtw import operators

    cost = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    x, y = (t.requires_grad_() for t in (frames(2, 5, 3), frames(2, 4, 3, seed=1)))
    lengths = torch.tensor([5, 2]), torch.tensor([4, 1])
    torch.library.opcheck(operators.soft_dtw, (cost, torch.tensor([3, 2]), torch.tensor([4, 1]), 0.1, "cpu", True))
    weights = torch.rand(2, 2, dtype=torch.float64)
    torch.library.opcheck(operators.pair_terms, (x, y, *lengths, weights, 0.4, 0.1, 1, 1.1, False, "cpu"))


def test_threads_change_nothing():
    x, y = frames(5, 40, 6).requires_grad_(), frames(5, 35, 6, seed=1)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            value = soft_dtw_divergence(x, y, gamma=0.1, backend="cpu")
            results.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(three, one, rtol=1e-12, atol=1e-12)


def test_one_pass_has_no_reference():
    with pytest.raises(SoftDTWBackendError, match="'cpu' or 'triton'"):
        pair_terms(frames(1, 3, 2), frames(1, 3, 2), idm=IDM(1, 1.1, False), backend="reference")
    with pytest.raises(ValueError, match="both alike"):
        pair_terms(frames(1, 3, 2), frames(1, 3, 2).float())


_SECOND_PROCESS = """
import json, sys
import laser_hf.ops, torch
early = "numba" in sys.modules
x = torch.nn.functional.normalize(torch.randn(1, 9, 4), dim=-1).requires_grad_()
from laser_hf import LaserLoss
LaserLoss()(x, None, x.detach(), None)["total"].sum().backward()
from laser_hf.ops.soft_dtw import cpu_kernels as k, cpu_products as p
stats = [kernel.stats for kernel in (k.forward, k.backward, k.idm, p.scalar_products, p.pull)]
json.dump([early, sum(len(s.cache_hits) for s in stats), sum(len(s.cache_misses) for s in stats)], sys.stdout)
"""


@pytest.mark.slow
def test_a_second_process_does_not_compile_again():
    x = frames(1, 9, 4, dtype=torch.float32).requires_grad_()
    LaserLoss()(x, None, x.detach(), None)["total"].sum().backward()
    done = subprocess.run([sys.executable, "-c", _SECOND_PROCESS], capture_output=True, text=True, check=True)
    numba_at_import, hits, misses = json.loads(done.stdout)
    assert not numba_at_import
    assert (hits, misses) == (5, 0)
