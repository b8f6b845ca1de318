"""The oracle backend: plain PyTorch, vectorised over the batch and over each anti-diagonal.

The recursion of Cuturi & Blondel (2017), Algorithms 1 and 2,

    R[i, j] = C[i, j] + softmin_gamma(R[i-1, j-1], R[i-1, j], R[i, j-1])

runs in float64 whatever the input, as the released LASER code does. The backward pass is the transposed recursion of
each cell's softmin weights, without exponentials or differences of large numbers: finite at gamma = 0.001.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

# For +inf outside the grid, which would give inf - inf in the softmin; finite after a division by the smallest gamma.
_OUTSIDE = 1e30


def _to_diagonals(cost: torch.Tensor) -> torch.Tensor:
    """Skew `cost` (batch, m, n) to (m + n - 1, batch, m): entry [k, b, i] is cost[b, i, k - i]."""
    batch, m, n = cost.shape
    padded = torch.nn.functional.pad(cost, (0, m), value=_OUTSIDE)
    # Dropping the last m entries makes every row one entry shorter, which shifts row i right by i.
    skewed = padded.reshape(batch, m * (n + m))[:, : m * (n + m) - m].reshape(batch, m, n + m - 1)
    return skewed.permute(2, 0, 1).contiguous()


def _from_diagonals(skewed: torch.Tensor, m: int, n: int) -> torch.Tensor:
    """Inverse of `_to_diagonals`: (m + n - 1, batch, m) to (batch, m, n)."""
    batch = skewed.shape[1]
    flat = skewed.permute(1, 2, 0).reshape(batch, m * (n + m - 1))
    return torch.nn.functional.pad(flat, (0, m)).reshape(batch, m, n + m)[:, :, :n]


class ReferenceSoftDTW(torch.autograd.Function):
    """`apply(cost, lengths_x, lengths_y, gamma)`; see `laser_hf.ops.soft_dtw` for shapes."""

    @staticmethod
    def forward(ctx, cost, lengths_x, lengths_y, gamma):
        batch, m, n = cost.shape
        diagonals, count = _to_diagonals(cost.detach().to(torch.float64)), m + n - 1
        ctx.geometry = m, n
        ctx.set_materialize_grads(False)
        # Index 0 of the last axis is the border row i = -1, so that row i sits at i + 1.
        before = diagonals.new_full((batch, m + 1), _OUTSIDE)  # diagonal k - 2
        previous = diagonals.new_full((batch, m + 1), _OUTSIDE)  # diagonal k - 1
        before[:, 0] = 0.0  # R[-1, -1], where every path begins
        weights = cost.new_empty((count, 3, batch, m))
        values = diagonals.new_zeros(batch)
        last_diagonal = lengths_x + lengths_y - 2
        last_row = lengths_x.unsqueeze(1)  # position of row lengths_x - 1
        for k in range(count):
            arrivals = torch.stack((before[:, :-1], previous[:, :-1], previous[:, 1:]))
            smallest = arrivals.amin(0)
            exponentials = torch.exp((smallest - arrivals) / gamma)
            total = exponentials.sum(0)
            weights[k] = exponentials / total
            current = torch.full_like(previous, _OUTSIDE)
            current[:, 1:] = (diagonals[k] + smallest - gamma * torch.log(total)).clamp(max=_OUTSIDE)
            values = torch.where(last_diagonal == k, current.gather(1, last_row).squeeze(1), values)
            before, previous = previous, current
        ctx.save_for_backward(weights, lengths_x, lengths_y)
        return values.to(cost.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        if grad_output is None:
            return (None,) * 4
        weights, lengths_x, lengths_y = ctx.saved_tensors
        (m, n), (count, _, batch, _) = ctx.geometry, weights.shape
        occupancy = weights.new_zeros((count, batch, m))
        last_diagonal = lengths_x + lengths_y - 2
        is_last_row = torch.arange(m, device=weights.device) == (lengths_x - 1).unsqueeze(1)
        pad = torch.nn.functional.pad
        for k in range(count - 1, -1, -1):
            # The end cell of every utterance starts the recursion; padding never receives anything.
            current = ((last_diagonal == k).unsqueeze(1) & is_last_row).to(weights.dtype)
            if k + 1 < count:
                sent = weights[k + 1] * occupancy[k + 1]
                current = current + sent[2] + pad(sent[1][:, 1:], (0, 1))
            if k + 2 < count:
                current = current + pad((weights[k + 2, 0] * occupancy[k + 2])[:, 1:], (0, 1))
            occupancy[k] = current
        gradient = _from_diagonals(occupancy, m, n) * grad_output.reshape(batch, 1, 1)
        return gradient, None, None, None
