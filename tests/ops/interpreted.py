"""Runs the CUDA kernels through Triton's interpreter on the CPU and prints how far they are from the oracle, as JSON.

A program of its own, because the interpreter is chosen when the kernels are imported.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import torch

from laser_hf import LaserLoss
from laser_hf.ops import soft_dtw
from laser_hf.ops.soft_dtw import triton_backend

# Lanes outside of the grid divide 0 by 0. numpy warns about it, a GPU does not.
warnings.filterwarnings("ignore", category=RuntimeWarning)

COSTS = [
    # rows and columns with padding, lengths, gammas, rows per strip (None: as on a GPU)
    (1, 1, [1], [1], [1.0], None),
    (2, 3, [2, 1], [3, 2], [1.0, 0.001], None),
    (5, 3, [5, 1], [3, 2], [0.1, 0.01], None),
    (9, 4, [9, 5], [3, 4], [0.1], 4),
]


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def costs() -> list[dict]:
    found = []
    for m, n, lengths_x, lengths_y, gammas, strip in COSTS:
        triton_backend._LONGEST_STRIP = strip or 1024
        torch.manual_seed(m * n)
        cost = torch.rand(len(lengths_x), m, n) * 2
        lengths = torch.tensor(lengths_x), torch.tensor(lengths_y)
        for i, (rows, columns) in enumerate(zip(lengths_x, lengths_y, strict=True)):
            cost[i, rows:] = float("nan")
            cost[i, :, columns:] = float("nan")
        upstream = torch.linspace(-3.0, 1.5, len(cost))
        for gamma in gammas:
            results = []
            for dtype, backend in ((torch.float64, "reference"), (torch.float32, "triton")):
                leaf = cost.to(dtype, copy=True).requires_grad_()
                value = soft_dtw(leaf, *lengths, gamma, backend)
                (value * upstream.to(dtype)).sum().backward()
                results.append((value.detach(), leaf.grad))
            (value, gradient), (own_value, own_gradient) = results
            found.append(
                {
                    "case": f"{m}x{n}, gamma {gamma}, strips of {strip}",
                    "value": largest(value, own_value),
                    "gradient": largest(gradient, own_gradient),
                    "value_without_gradient": largest(value, soft_dtw(cost, *lengths, gamma, "triton")),
                }
            )
    triton_backend._LONGEST_STRIP = 1024
    return found


def losses() -> list[dict]:
    found = []
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1) * 0.8
    y = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1) * 0.8
    x[0, 3] = x[0, 1]
    lengths = torch.tensor([4, 2]), torch.tensor([2, 3])
    x[1, 2:] = float("nan")
    for sigma, distance in ((1, "euclidean"), (2, "sqeuclidean")):
        results = []
        for dtype, backend in ((torch.float64, "reference"), (torch.float32, "triton")):
            a, b = (frames.to(dtype, copy=True).requires_grad_() for frames in (x, y))
            terms = LaserLoss(sigma=sigma, distance=distance, backend=backend)(a, lengths[0], b, lengths[1])
            weights = {"total": 1.0, "soft_dtw": 0.5, "idm": -0.25} if sigma == 2 else {"total": 2.0}
            sum(weight * terms[name].sum() for name, weight in weights.items()).backward()
            results.append([*(terms[name].detach() for name in LaserLoss.term_names), a.grad, b.grad])
        names = (*LaserLoss.term_names, "gradient_x", "gradient_y")
        found.append(
            {"case": f"sigma {sigma}, {distance}"}
            | {name: largest(*pair) for name, pair in zip(names, zip(*results, strict=True), strict=True)}
        )
    return found


def extremes() -> dict:
    """A cost that is not finite must not come out as a number, nor one beyond the range of the exponents."""
    bad = torch.rand(1, 2, 2)
    bad[0, 1, 0] = float("nan")
    return {
        "nan": soft_dtw(bad, gamma=1.0, backend="triton").item(),
        "huge": soft_dtw(torch.full((1, 2, 2), 1e9), gamma=0.1, backend="triton").item(),
    }


def compiled() -> float:
    """Distance of a loss inside a compiled graph from the same loss outside."""
    loss, x = LaserLoss(backend="triton"), torch.nn.functional.normalize(torch.randn(1, 2, 4), dim=-1)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    lengths = torch.tensor([2])
    torch.compile(lambda t: loss(t, lengths, x, lengths)["total"].sum() * 2, fullgraph=True, backend="eager")(
        a
    ).backward()
    (loss(b, lengths, x, lengths)["total"].sum() * 2).backward()
    return largest(a.grad, b.grad)


if __name__ == "__main__":
    json.dump({"costs": costs(), "losses": losses(), "extremes": extremes(), "compiled": compiled()}, sys.stdout)
