"""The CUDA backend: allocates, launches `triton_kernels` and multiplies matrices, without any host sync.

TF32 is off whatever the process-wide setting: a distance would be off by up to 1e-3.
"""

from __future__ import annotations

import contextlib
import math

import torch

from . import IDM, PairTerms
from . import triton_kernels as kernels

_TILE = 32
_LONGEST_STRIP = 1024


@contextlib.contextmanager
def _full_precision():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def launch_shape(rows: int) -> dict[str, int | bool]:
    """Compile-time parameters of `sweep` for a padded number of rows."""
    block = min(_LONGEST_STRIP, max(32, 1 << (rows - 1).bit_length()))
    return {"BLOCK": block, "STRIPS": rows > block, "STAGES": 4, "num_warps": max(1, block // 64)}


class _Batch:
    """Matrices `gram` (problems, M, N) and their kernel launches; C = a G, plus squared norms if given."""

    def __init__(self, gram, lengths_x, lengths_y, gamma, a, squares=None, first_symmetric=None):
        self.gram, self.lengths, self.gamma, self.a = gram.contiguous(), (lengths_x, lengths_y), gamma, a
        self.problems, self.rows, self.columns = gram.shape
        self.with_norms = squares is not None
        self.squares = squares if self.with_norms else (gram, gram)
        self.first_symmetric = self.problems if first_symmetric is None else first_symmetric
        tiles = -(-self.rows // _TILE)
        # The anti-diagonals of a row tile run from its first row's first cell to its last row's last cell.
        self.grid = (self.problems, tiles, -(-(self.columns + _TILE - 1) // _TILE))

    def solve(self, backward: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Values `(problems,)` in float64, and E in the skewed layout (only with `backward`)."""
        gram, shape = self.gram, (self.problems, self.columns, self.rows)
        powers = gram.new_empty(shape)
        kernels.skew[self.grid](
            gram, *self.squares, *self.lengths, powers, self.rows, self.columns, self.a,
            1.0 / (self.gamma * math.log(2.0)), self.first_symmetric, NORMS=self.with_norms, TILE=_TILE,
        )  # fmt: skip
        shares = [gram.new_empty(shape) if backward else gram for _ in range(2)]
        launch = launch_shape(self.rows)
        width = 2 * self.columns if launch["STRIPS"] else 1
        border = torch.empty((self.problems, width), dtype=torch.int64, device=gram.device)
        border_back = gram.new_empty((self.problems, width))
        mantissa = gram.new_empty(self.problems)
        exponent = torch.empty(self.problems, dtype=torch.int32, device=gram.device)
        kernels.sweep[(self.problems,)](
            powers, *shares, border, border_back, *self.lengths, mantissa, exponent, self.rows, self.columns,
            BACKWARD=backward, **launch,
        )  # fmt: skip
        values = -self.gamma * math.log(2.0) * (torch.log2(mantissa.double()) + exponent)
        return torch.where(exponent <= kernels._LOWEST.value, math.inf, values), powers

    def collect(self, aligned, weights, idm: IDM | None = None, idm_weights=None):
        """Gradient by C `(problems, M, N)`, and the sums `f` of Eq. 1 of each problem or None."""
        out = torch.empty_like(self.gram)
        sums = self.gram.new_empty((self.problems, self.grid[1] * self.grid[2])) if idm else out
        parameters = idm or IDM(1, 1.0, False)
        kernels.collect[self.grid](
            aligned, self.gram, *self.squares, *self.lengths, weights, weights if idm_weights is None else idm_weights,
            out, sums, self.rows, self.columns, self.a, self.first_symmetric, parameters.sigma, parameters.margin,
            IDM=idm is not None, SQUARED=parameters.squared, TILE=_TILE,
        )  # fmt: skip
        return out, sums.double().sum(1) if idm else None


def soft_dtw(cost, lengths_x, lengths_y, gamma: float, with_gradient: bool):
    """Values `(batch,)`, and expected alignments `(batch, m, n)` with `with_gradient`."""
    batch = _Batch(cost.detach(), lengths_x, lengths_y, gamma, 1.0)
    values, aligned = batch.solve(with_gradient)
    values = values.to(cost.dtype)
    if not with_gradient:
        return values, cost.new_empty(0)
    return values, batch.collect(aligned, cost.new_ones(len(cost)))[0]


def pair_terms(x, y, lengths_x, lengths_y, gamma: float, idm: IDM | None, weights):
    """As `cpu.pair_terms`."""
    (count, m, dim), n = x.shape, y.shape[1]
    size = max(m, n)
    frames = x.new_zeros((2, count, size, dim))
    for view, own, lengths in zip(frames, (x, y), (lengths_x, lengths_y), strict=True):
        padding = torch.arange(own.shape[1], device=x.device) >= lengths.unsqueeze(1)
        view[:, : own.shape[1]] = own.detach().masked_fill(padding.unsqueeze(2), 0.0)
    # Indexing by lists would copy them to the device, which is a host sync.
    first, second = torch.cat((frames[0], *frames)), torch.cat((frames[1], *frames))
    lengths = torch.cat((lengths_x, lengths_x, lengths_y)), torch.cat((lengths_y, lengths_x, lengths_y))
    with _full_precision():
        gram = torch.bmm(first, second.transpose(1, 2))
    squares = first.square().sum(2), second.square().sum(2)
    batch = _Batch(gram, *lengths, gamma, -2.0, squares, first_symmetric=count)
    values, aligned = batch.solve(weights is not None)
    xy, xx, yy = values.view(3, count).unbind(0)
    terms = xy - 0.5 * (xx + yy)
    if weights is None and idm is None:
        return PairTerms(terms, torch.zeros_like(terms))
    of_dtw, of_idm = x.new_zeros(2, count) if weights is None else weights
    # A frame occurs in both arguments of the distances within its sequence: twice the gradient, times 1/2.
    of_dtw = torch.cat((of_dtw, -of_dtw, -of_dtw))
    of_idm = torch.cat((of_idm, of_idm, of_idm)) * (2.0 / lengths[0].to(x.dtype).square())
    matrices, sums = batch.collect(aligned, of_dtw, idm, of_idm)
    regulariser = torch.zeros_like(terms)
    if idm is not None:
        regulariser = (sums / lengths[0].double().square()).view(3, count)[1:].sum(0)
    if weights is None:
        return PairTerms(terms, regulariser)
    a_xy, a_xx, a_yy = matrices.view(3, count, size, size).unbind(0)
    with _full_precision():
        gradients = [
            2.0 * (mass.unsqueeze(2) * own - torch.bmm(across, other) - torch.bmm(inner, own))
            for own, other, across, inner, mass in (
                (frames[0], frames[1], a_xy, a_xx, a_xy.sum(2) + a_xx.sum(2)),
                (frames[1], frames[0], a_xy.transpose(1, 2), a_yy, a_xy.sum(1) + a_yy.sum(2)),
            )
        ]
    return PairTerms(terms, regulariser, gradients[0][:, :m].contiguous(), gradients[1][:, :n].contiguous())
