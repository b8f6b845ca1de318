"""The CPU backend: each pair is three problems, and each thread solves one problem at a time in its scratch memory.

The IDM term needs the same distances as soft-DTW of the frames with themselves: one more pass and no further product.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from . import IDM, PairTerms
from . import cpu_kernels as kernels
from . import cpu_products as products

_adding = threading.Lock()


@dataclass
class Problem:
    """One alignment, of flat frames `x` and `y` or of the flat costs `matrix`, `stride` apart.

    Costs are solved in place: the gradient by the costs replaces them. Of frames the gradients by x and y are added to
    `into_x` and `into_y`: `weight` times that of soft-DTW and `idm_weight` times that of `idm`. A symmetric problem has
    the same frames twice and adds to `into_x` alone.
    """

    rows: int
    columns: int
    x: np.ndarray | None = None
    y: np.ndarray | None = None
    into_x: np.ndarray | None = None
    into_y: np.ndarray | None = None
    matrix: np.ndarray | None = None
    stride: int = 0
    symmetric: bool = False
    weight: float = 1.0
    idm: IDM | None = None
    idm_weight: float = 0.0
    value: float = 0.0
    idm_value: float = 0.0


class _Scratch:
    """Work arrays of one thread, large enough for each of the problems."""

    def __init__(self, problems: Sequence[Problem], dim: int, dtype: np.dtype) -> None:
        longest = max(max(p.rows, p.columns) for p in problems)
        self.shares = np.empty(max(kernels.shares_size(p.rows, p.columns, p.symmetric) for p in problems), dtype)
        self.powers, self.work = np.empty(kernels.strip_size(longest)), np.empty(kernels.WORK)
        self.border = np.empty(2 * (longest + 1))
        self.squares = np.zeros((2, longest))
        if dim:
            wide, tall = products.width(dtype), products.padded(longest, products.ROWS)
            self.packed = [np.empty(size, dtype) for size in products.packed_sizes(longest, dim, dtype)]
            self.gradient = np.empty((tall, products.padded(dim, wide)), dtype)
            self.stride = products.padded(longest, wide)
            self.matrix = np.empty(tall * self.stride, dtype)


def _solve(p: Problem, dim: int, gamma: float, with_gradient: bool, s: _Scratch) -> None:
    m, n, (u, v), keep = p.rows, p.columns, s.squares, 0.0
    matrix, stride, a = (s.matrix, s.stride, -2.0) if dim else (p.matrix, p.stride, 1.0)
    if dim:
        products.scalar_products(p.x, p.y, m, n, dim, p.symmetric, matrix, stride, u, v, *s.packed)
    where, of_costs = (matrix, stride, m, n), (u, v, a, p.symmetric)
    p.value = kernels.forward(*where, *of_costs, gamma, s.shares, s.powers, s.work, s.border)
    if p.idm is not None:
        p.idm_value = kernels.idm(matrix, stride, m, u, *p.idm, p.idm_weight, s.border)
        keep = 1.0
    if not with_gradient:
        return
    kernels.backward(s.shares, m, n, p.symmetric, keep, p.weight, matrix, stride, s.work, s.border)
    for into, *steps in ((p.into_x, stride, 1, m, n, p.x, p.y), (p.into_y, 1, stride, n, m, p.y, p.x)):
        if into is not None:
            products.pull(matrix, *steps, dim, p.symmetric, s.gradient.reshape(-1), *s.packed, s.work)
            with _adding:
                into += s.gradient[: len(into), :dim]


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="soft-dtw")


def solve(problems: Sequence[Problem], dim: int, dtype: np.dtype, gamma: float, with_gradient: bool) -> None:
    """Solve all problems, longest first, on as many threads as torch uses; `dim` is 0 for problems of costs."""
    ordered = sorted(problems, key=lambda p: -p.rows * p.columns * (1 if p.symmetric else 2))
    queue, lock = iter(ordered), threading.Lock()

    def next_problem() -> Problem | None:
        with lock:
            return next(queue, None)

    def work() -> None:
        scratch = _Scratch(ordered, dim, dtype)
        for problem in iter(next_problem, None):
            _solve(problem, dim, gamma, with_gradient, scratch)

    threads = min(torch.get_num_threads(), len(problems))
    if threads <= 1:
        work()
        return
    for running in [_pool(threads).submit(work) for _ in range(threads)]:
        running.result()


def _sizes(lengths_x: Tensor, lengths_y: Tensor, longest_x: int, longest_y: int) -> list[tuple[int, int]]:
    """Lengths as numbers, checked: a compiled graph has not checked them, and a kernel would leave its matrix."""
    sizes = list(zip(lengths_x.tolist(), lengths_y.tolist(), strict=True))
    for rows, columns in sizes:
        if not (1 <= rows <= longest_x and 1 <= columns <= longest_y):
            raise ValueError(f"lengths must be between 1 and {longest_x}, {longest_y}; got {rows}, {columns}")
    return sizes


def soft_dtw(
    cost: Tensor, lengths_x: Tensor, lengths_y: Tensor, gamma: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Values `(batch,)`, and expected alignments `(batch, m, n)` with `with_gradient`."""
    _, m, n = cost.shape
    matrix = cost.detach().clone(memory_format=torch.contiguous_format)
    problems = [
        Problem(rows, columns, matrix=costs.numpy().reshape(-1), stride=n)
        for costs, (rows, columns) in zip(matrix, _sizes(lengths_x, lengths_y, m, n), strict=True)
    ]
    solve(problems, 0, matrix.numpy().dtype, gamma, with_gradient)
    values = torch.tensor([p.value for p in problems], dtype=torch.float64).to(cost.dtype)
    if not with_gradient:
        return values, cost.new_empty(0)
    for alignment, problem in zip(matrix, problems, strict=True):
        alignment[problem.rows :] = 0.0
        alignment[:, problem.columns :] = 0.0
    return values, matrix


def pair_terms(
    x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, gamma: float, idm: IDM | None, weights: Tensor | None
) -> PairTerms:
    """Normalised soft-DTW and, with `idm`, `f(X) / m^2 + f(Y) / n^2` of a padded batch of pairs.

    `weights` are those of the two terms in each pair's gradient, `(2, batch)`; `None` for values alone.
    """
    views = [view.detach().contiguous() for view in (x, y)]
    gradients = [torch.zeros_like(view) for view in views]
    of_terms = [[0.0] * len(x)] * 2 if weights is None else weights.tolist()
    dim, triples = x.shape[2], []
    sizes = _sizes(lengths_x, lengths_y, x.shape[1], y.shape[1])
    for index, (lengths, of_dtw, of_idm) in enumerate(zip(sizes, *of_terms, strict=True)):
        a, b = (view[index, :count].numpy().reshape(-1) for view, count in zip(views, lengths, strict=True))
        into_a, into_b = (into[index, :count].numpy() for into, count in zip(gradients, lengths, strict=True))
        triple = [Problem(*lengths, a, b, into_a, into_b, weight=of_dtw)]
        for own, into_own, count in zip((a, b), (into_a, into_b), lengths, strict=True):
            # A frame occurs in both arguments of the distances within its sequence: twice the gradient, times 1/2.
            how = {"symmetric": True, "weight": -of_dtw, "idm": idm, "idm_weight": 2.0 * of_idm / count**2}
            triple.append(Problem(count, count, own, own, into_own, **how))
        triples.append(triple)
    solve([p for triple in triples for p in triple], dim, views[0].numpy().dtype, gamma, weights is not None)
    soft_dtw = [xy.value - 0.5 * (xx.value + yy.value) for xy, xx, yy in triples]
    regulariser = [sum(own.idm_value / own.rows**2 for own in triple[1:]) for triple in triples]
    terms = (torch.tensor(values, dtype=torch.float64) for values in (soft_dtw, regulariser))
    return PairTerms(*terms, *(gradients if weights is not None else ()))
