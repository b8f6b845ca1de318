"""The CPU backend: each pair is three problems, and each thread solves one problem at a time.

The distances are matrix products of unpadded frames; the kernels of `cpu_kernels` do the rest in place. The IDM term
needs the same distances as soft-DTW of the frames with themselves: one more pass over them and no further product.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from . import IDM, PairTerms
from . import cpu_kernels as kernels


@dataclass
class Problem:
    """One alignment: `C[i, j] = u[i] + v[j] + a G[i, j]` with G the flat `matrix` from `base`, rows `stride` apart.

    Solving replaces G by the gradient by C: `weight` times that of soft-DTW plus `idm_weight` times that of `idm`.
    """

    matrix: np.ndarray
    base: int
    stride: int
    rows: int
    columns: int
    u: np.ndarray
    v: np.ndarray
    a: float
    symmetric: bool = False
    weight: float = 1.0
    idm: IDM | None = None
    idm_weight: float = 0.0
    value: float = 0.0
    idm_value: float = 0.0


def _scratch(problems: Sequence[Problem]) -> tuple[np.ndarray, ...]:
    """Work arrays of one thread, large enough for each of the problems."""
    columns = max(problem.columns for problem in problems)
    shares = max(kernels.shares_size(p.rows, p.columns, p.symmetric) for p in problems)
    sizes = kernels.strip_size(columns), kernels.WORK, 2 * (columns + 1)
    return np.empty(shares, problems[0].matrix.dtype), *map(np.empty, sizes)


def _solve(p: Problem, gamma: float, with_gradient: bool, shares, powers, work, border) -> None:
    where, shape, keep = (p.matrix, p.base, p.stride), (p.rows, p.columns), 0.0
    p.value = kernels.forward(*where, *shape, p.u, p.v, p.a, p.symmetric, gamma, shares, powers, work, border)
    if p.idm is not None:
        p.idm_value = kernels.idm(*where, p.rows, p.u, *p.idm, p.idm_weight, border)
        keep = 1.0
    if with_gradient:
        kernels.backward(shares, *shape, p.symmetric, keep, p.weight, *where, work, border)
        if p.symmetric:
            kernels.mirror(*where, p.rows)


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="soft-dtw")


def solve(problems: Sequence[Problem], gamma: float, with_gradient: bool) -> None:
    """Solve all problems in place, longest first, on as many threads as torch uses."""
    ordered = sorted(problems, key=lambda p: -p.rows * p.columns * (1 if p.symmetric else 2))
    queue, lock = iter(ordered), threading.Lock()

    def next_problem() -> Problem | None:
        with lock:
            return next(queue, None)

    def work() -> None:
        scratch = _scratch(ordered)
        for problem in iter(next_problem, None):
            _solve(problem, gamma, with_gradient, *scratch)

    threads = min(torch.get_num_threads(), len(problems))
    if threads <= 1:
        work()
        return
    for running in [_pool(threads).submit(work) for _ in range(threads)]:
        running.result()


def _sizes(lengths_x: torch.Tensor, lengths_y: torch.Tensor, longest_x: int, longest_y: int) -> list[tuple[int, int]]:
    """Lengths as numbers, checked: a compiled graph has not checked them, and a kernel would leave its matrix."""
    sizes = list(zip(lengths_x.tolist(), lengths_y.tolist(), strict=True))
    for rows, columns in sizes:
        if not (1 <= rows <= longest_x and 1 <= columns <= longest_y):
            raise ValueError(f"lengths must be between 1 and {longest_x}, {longest_y}; got {rows}, {columns}")
    return sizes


def soft_dtw(
    cost: torch.Tensor, lengths_x: torch.Tensor, lengths_y: torch.Tensor, gamma: float, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values `(batch,)`, and expected alignments `(batch, m, n)` with `with_gradient`."""
    _, m, n = cost.shape
    matrix = cost.detach().clone(memory_format=torch.contiguous_format)
    flat, zeros = matrix.numpy().reshape(-1), np.zeros(max(m, n))
    problems = [
        Problem(flat, index * m * n, n, rows, columns, zeros, zeros, 1.0)
        for index, (rows, columns) in enumerate(_sizes(lengths_x, lengths_y, m, n))
    ]
    solve(problems, gamma, with_gradient)
    values = torch.tensor([p.value for p in problems], dtype=torch.float64).to(cost.dtype)
    if not with_gradient:
        return values, cost.new_empty(0)
    for alignment, problem in zip(matrix, problems, strict=True):
        alignment[problem.rows :] = 0.0
        alignment[:, problem.columns :] = 0.0
    return values, matrix


def pair_terms(
    x: torch.Tensor,
    y: torch.Tensor,
    lengths_x: torch.Tensor,
    lengths_y: torch.Tensor,
    gamma: float,
    idm: IDM | None,
    weights: tuple[torch.Tensor, torch.Tensor] | None,
) -> PairTerms:
    """Normalised soft-DTW and, with `idm`, `f(X) / m^2 + f(Y) / n^2` of a padded batch of pairs.

    `weights` are those of the two terms in each pair's gradient, two tensors `(batch,)`; `None` for values alone.
    """
    x, y = x.detach(), y.detach()
    with_gradient = weights is not None
    of_terms = [weight.tolist() for weight in weights] if with_gradient else [[0.0] * len(x)] * 2
    sizes = _sizes(lengths_x, lengths_y, x.shape[1], y.shape[1])
    pairs = [(a[:m], b[:n]) for a, b, (m, n) in zip(x, y, sizes, strict=True)]
    problems = []
    for (a, b), of_dtw, of_idm in zip(pairs, *of_terms, strict=True):
        squares_a, squares_b = (frames.double().square().sum(1).numpy() for frames in (a, b))
        problems.append(_problem(a, b, squares_a, squares_b, weight=of_dtw))
        for own, squares in ((a, squares_a), (b, squares_b)):
            # A frame occurs in both arguments of the distances within its sequence: twice the gradient, times 1/2.
            how = {"symmetric": True, "weight": -of_dtw, "idm": idm, "idm_weight": 2.0 * of_idm / len(own) ** 2}
            problems.append(_problem(own, own, squares, squares, **how))
    solve(problems, gamma, with_gradient)
    triples = [problems[at : at + 3] for at in range(0, len(problems), 3)]
    soft_dtw = torch.tensor([xy.value - 0.5 * (xx.value + yy.value) for xy, xx, yy in triples], dtype=torch.float64)
    sums = [sum(own.idm_value / own.rows**2 for own in triple[1:]) for triple in triples]
    regulariser = torch.tensor(sums, dtype=torch.float64)
    if not with_gradient:
        return PairTerms(soft_dtw, regulariser)
    gradient_x, gradient_y = x.new_zeros(x.shape), y.new_zeros(y.shape)
    for index, ((a, b), triple) in enumerate(zip(pairs, triples, strict=True)):
        xy, xx, yy = (torch.from_numpy(p.matrix).view(p.rows, p.columns) for p in triple)
        _pull(gradient_x[index, : len(a)], a, ((xy, b), (xx, a)))
        _pull(gradient_y[index, : len(b)], b, ((xy.T, a), (yy, b)))
    return PairTerms(soft_dtw, regulariser, gradient_x, gradient_y)


def _problem(a: torch.Tensor, b: torch.Tensor, u: np.ndarray, v: np.ndarray, **rest) -> Problem:
    return Problem(torch.mm(a, b.T).numpy().reshape(-1), 0, len(b), len(a), len(b), u, v, -2.0, **rest)


def _pull(out: torch.Tensor, x: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write to `out` the gradient by x of the sum over `parts` (A, y) of sum_ij A_ij |x_i - y_j|^2."""
    mass = sum(matrix.sum(1, keepdim=True) for matrix, _ in parts)
    torch.mul(x, mass, out=out)
    for matrix, y in parts:
        out.addmm_(matrix, y, alpha=-1.0)
    out.mul_(2.0)
