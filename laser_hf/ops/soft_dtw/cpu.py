"""The compiled CPU backend: numba, one thread a problem, symmetric problems at half cost.

With P = exp(-R / gamma) the recursion of soft-DTW is linear,

    P[i, j] = exp(-C[i, j] / gamma) (P[i-1, j-1] + P[i-1, j] + P[i, j-1]),

so a cell costs one exponential (of a cost, outside the serial chain) and no logarithm. P leaves the range of
any float after a few dozen frames; every cell therefore carries a mantissa and a binary exponent of its own. The
forward pass keeps the shares of two of the three predecessors; the backward pass is their transposed recursion.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numba
import numpy as np
import torch
from torch.autograd.function import once_differentiable

# A summand 2^-63 below the largest is nothing in float64; the last entry says so.
_TABLE = 64
_SHIFTS = np.array([2.0**-i for i in range(_TABLE - 1)] + [0.0])
# 2^f = exp(f ln 2) by its Taylor series for f in (-1, 0]: the first term left out is below 2^-53.
_EXP2 = tuple(math.log(2) ** k / math.factorial(k) for k in range(15))
_EMPTY = -(2**50)  # exponent of P = 0, the border of the grid


_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def _scaled_cost(cost, scale, columns, mantissa, exponent):
    """exp(-cost / gamma) as mantissa in (1/2, 1] times 2^exponent, for one row; a loop that LLVM vectorises."""
    for j in range(columns):
        power = -cost[j] * scale
        whole = np.ceil(power)
        f = power - whole
        value = _EXP2[14] * f + _EXP2[13]
        value = value * f + _EXP2[12]
        value = value * f + _EXP2[11]
        value = value * f + _EXP2[10]
        value = value * f + _EXP2[9]
        value = value * f + _EXP2[8]
        value = value * f + _EXP2[7]
        value = value * f + _EXP2[6]
        value = value * f + _EXP2[5]
        value = value * f + _EXP2[4]
        value = value * f + _EXP2[3]
        value = value * f + _EXP2[2]
        value = value * f + _EXP2[1]
        mantissa[j] = value * f + _EXP2[0]
        exponent[j] = np.int64(whole)


@_compiled
def _shift(shifts, bits):
    """2^-bits for bits >= 0; unsigned, so that no code for negative indices is made."""
    return shifts[np.uint64(min(bits, 63))]


@_compiled
def _forward(cost, rows, columns, symmetric, gamma, shifts, share_diagonal, share_up):
    """Value of one problem; fills the shares of the diagonal and the upper predecessor of each cell.

    For a symmetric problem only cells with column <= row are visited.
    """
    scale = 1.0 / (gamma * math.log(2.0))
    row_mantissa = np.empty(columns)
    row_exponent = np.empty(columns, dtype=np.int64)
    # The previous row, shifted by one: index 0 is the border column.
    mantissas = np.zeros(columns + 1)
    exponents = np.full(columns + 1, _EMPTY, dtype=np.int64)
    above_mantissa = np.empty(columns)
    above_exponent = np.empty(columns, dtype=np.int64)
    diagonal_part = np.empty(columns)
    mantissas[0] = 0.5
    exponents[0] = 1
    for i in range(rows):
        width = min(i + 1, columns) if symmetric else columns
        _scaled_cost(cost[i], scale, width, row_mantissa, row_exponent)
        for j in range(width):
            # By symmetry P[i - 1, i] is P[i, i - 1], which the chain below adds.
            on_edge = symmetric and j == i and i > 0
            up_exponent = _EMPTY if on_edge else exponents[j + 1]
            up_mantissa = 0.0 if on_edge else mantissas[j + 1]
            top = max(exponents[j], up_exponent)
            diagonal_part[j] = mantissas[j] * _shift(shifts, top - exponents[j])
            above_mantissa[j] = diagonal_part[j] + up_mantissa * _shift(shifts, top - up_exponent)
            above_exponent[j] = top
        left_mantissa, left_exponent = 0.0, np.int64(_EMPTY)
        for j in range(width):
            top = max(above_exponent[j], left_exponent)
            lower_above = _shift(shifts, top - above_exponent[j])
            from_left = left_mantissa * _shift(shifts, top - left_exponent)
            from_above = above_mantissa[j] * lower_above
            mirrored = symmetric and j == i and i > 0
            total = from_above + (2.0 * from_left if mirrored else from_left)
            inverse = 1.0 / total
            share = diagonal_part[j] * lower_above * inverse
            share_diagonal[i, j] = share
            share_up[i, j] = from_left * inverse if mirrored else from_above * inverse - share
            value = total * row_mantissa[j]
            exponent = top + row_exponent[j]
            # value lies in (1/4, 3); bring it back to [1/2, 1).
            if value >= 1.0:
                value *= 0.5
                exponent += 1
                if value >= 1.0:
                    value *= 0.5
                    exponent += 1
            elif value < 0.5:
                value *= 2.0
                exponent -= 1
            left_mantissa, left_exponent = value, exponent
            mantissas[j] = value  # position j is read for the last time above; shifted below
            exponents[j] = exponent
        for j in range(width, 0, -1):
            mantissas[j] = mantissas[j - 1]
            exponents[j] = exponents[j - 1]
        mantissas[0] = 0.0
        exponents[0] = _EMPTY
    last = columns
    return -gamma * (math.log(mantissas[last]) + exponents[last] * math.log(2.0))


@_compiled
def _backward(share_diagonal, share_up, rows, columns, symmetric, occupancy):
    """Expected alignment of one problem, in place; both triangles of a symmetric one."""
    below = np.zeros(columns + 1)  # row i + 1 of the occupancy, with a border behind the last column
    current = np.zeros(columns + 1)
    for i in range(rows - 1, -1, -1):
        width = min(i + 1, columns) if symmetric else columns
        if i == rows - 1:
            for j in range(width):
                current[j] = 0.0
            current[columns - 1] = 1.0
        else:
            for j in range(width):
                current[j] = share_up[i + 1, j] * below[j]
            for j in range(min(width, columns - 1)):
                current[j] += share_diagonal[i + 1, j + 1] * below[j + 1]
            if symmetric:
                current[i] += share_up[i + 1, i] * below[i]  # the mirror image of the step to (i + 1, i)
        right = 0.0
        for j in range(width - 1, -1, -1):
            right = current[j] + right
            current[j] = right
            # Becomes what this cell hands to its left neighbour.
            if symmetric and j == i:
                right = right * share_up[i, j]
            else:
                right = right * (1.0 - share_diagonal[i, j] - share_up[i, j])
        for j in range(width):
            occupancy[i, j] = current[j]
        if symmetric:
            for j in range(width):
                occupancy[j, i] = current[j]
        below, current = current, below
        below[columns] = 0.0


def _solve(cost, rows, columns, symmetric, gamma, occupancy):
    """Value of one problem, and its expected alignment written to `occupancy` unless that is None."""
    shape = (rows, columns)
    share_diagonal, share_up = np.empty(shape, cost.dtype), np.empty(shape, cost.dtype)
    value = _forward(cost, rows, columns, symmetric, gamma, _SHIFTS, share_diagonal, share_up)
    if occupancy is not None:
        _backward(share_diagonal, share_up, rows, columns, symmetric, occupancy)
    return value


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="soft-dtw")


def solve(
    costs: list[torch.Tensor], symmetric: list[bool], gamma: float, with_alignment: bool
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Values `(problems,)` float64 and expected alignments of unpadded cost matrices `(m, n)`.

    Problems are dealt out to torch's number of threads, longest first.
    """
    alignments = [torch.empty_like(cost) if with_alignment else None for cost in costs]
    tasks = sorted(range(len(costs)), key=lambda task: -costs[task].numel())

    def run(task: int) -> float:
        cost, alignment = costs[task], alignments[task]
        return _solve(
            cost.numpy(),
            *cost.shape,
            symmetric[task],
            gamma,
            None if alignment is None else alignment.numpy(),
        )

    threads = min(torch.get_num_threads(), len(costs))
    results = map(run, tasks) if threads <= 1 else _pool(threads).map(run, tasks)
    values = torch.empty(len(costs), dtype=torch.float64)
    for task, value in zip(tasks, results, strict=True):
        values[task] = value
    return values, alignments


class CompiledSoftDTW(torch.autograd.Function):
    """`apply(cost, lengths_x, lengths_y, gamma)`; see `laser_hf.ops.soft_dtw` for shapes."""

    @staticmethod
    def forward(ctx, cost, lengths_x, lengths_y, gamma):
        sizes = list(zip(lengths_x.tolist(), lengths_y.tolist(), strict=True))
        costs = [matrix[:m, :n].contiguous() for matrix, (m, n) in zip(cost.detach(), sizes, strict=True)]
        values, alignments = solve(costs, [False] * len(costs), gamma, ctx.needs_input_grad[0])
        if ctx.needs_input_grad[0]:
            gradient = torch.zeros_like(cost)
            for entry, alignment, (m, n) in zip(gradient, alignments, sizes, strict=True):
                entry[:m, :n] = alignment
            ctx.save_for_backward(gradient)
        return values.to(cost.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.reshape(-1, 1, 1), None, None, None


def _cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = torch.addmm(x.square().sum(1, keepdim=True), x, y.T, alpha=-2.0)
    return squares.add_(y.square().sum(1))


def _pull(alignment: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gradient by x of sum_ij alignment_ij |x_i - y_j|^2."""
    return 2.0 * torch.addmm(alignment.sum(1, keepdim=True) * x, alignment, y, alpha=-1.0)


class CompiledDivergence(torch.autograd.Function):
    """`apply(x, y, lengths_x, lengths_y, gamma)`: frames to `xy - (xx + yy) / 2`, three problems a pair at once."""

    @staticmethod
    def forward(ctx, x, y, lengths_x, lengths_y, gamma):
        pairs = [
            (a[:m], b[:n])
            for a, b, m, n in zip(x.detach(), y.detach(), lengths_x.tolist(), lengths_y.tolist(), strict=True)
        ]
        costs = [_cost(*views) for a, b in pairs for views in ((a, b), (a, a), (b, b))]
        wanted = any(ctx.needs_input_grad[:2])
        values, alignments = solve(costs, [False, True, True] * len(pairs), gamma, wanted)
        if wanted:
            gradient_x, gradient_y = torch.zeros_like(x), torch.zeros_like(y)
            for index, (a, b) in enumerate(pairs):
                xy, xx, yy = alignments[3 * index : 3 * index + 3]
                # Both arguments of the symmetric problems move: half of twice the pull.
                gradient_x[index, : len(a)] = _pull(xy, a, b) - _pull(xx, a, a)
                gradient_y[index, : len(b)] = _pull(xy.T, b, a) - _pull(yy, b, b)
            ctx.save_for_backward(gradient_x, gradient_y)
        values = values.reshape(-1, 3)
        return (values[:, 0] - 0.5 * (values[:, 1] + values[:, 2])).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        gradient_x, gradient_y = ctx.saved_tensors
        scale = grad_output.reshape(-1, 1, 1)
        return gradient_x * scale, gradient_y * scale, None, None, None
