"""Contrastive inverse-difference-moment regulariser: repels frames far apart in time (LASER, Eq. 1 and 2).

From Haresh et al., "Learning by Aligning Videos in Time" (CVPR 2021). Two distances exist in the world: the
LASER paper writes a squared one, the released code, from which the published results come, uses the unsquared.

Here in plain PyTorch, for any device and precision. Beside soft-DTW the compiled backends compute it on soft-DTW's own
distances (`laser_hf.ops.pair_terms`), which is what `LaserLoss` asks for.
"""

from __future__ import annotations

import torch

from ..ops.soft_dtw.api import check_lengths, squared_euclidean

DISTANCES = ("euclidean", "sqeuclidean")


def _distances(x: torch.Tensor, distance: str) -> torch.Tensor:
    # The matrix product leaves rounding noise on the diagonal, whose root would be 1e-4 and not 0.
    diagonal = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    squared = squared_euclidean(x, x).clamp(min=0.0).masked_fill(diagonal, 0.0)
    if distance == "sqeuclidean":
        return squared
    # The derivative of the root at 0 is infinite; equal frames get the subgradient 0 instead.
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def contrastive_idm(
    x: torch.Tensor,
    lengths: torch.Tensor | None = None,
    sigma: int = 1,
    margin: float = 1.1,
    distance: str = "euclidean",
    reference_frames: int | None = None,
) -> torch.Tensor:
    """`f(X) / m^2` of each utterance of a padded batch (LASER, Eq. 1).

        f(X) = sum_ij  y_ij W_ij max(0, margin - D_ij) + (1 - y_ij) D_ij / W_ij
        W_ij = (i - j)^2 + 1,   y_ij = 1 where |i - j| >= sigma, else 0

    Frames at least `sigma` apart repel up to `margin`; nearer ones attract. `sigma=1` leaves only the diagonal
    to the attraction, where D is 0: purely repulsive, as published (the released code calls that window 0). W
    counts raw frames, so the value grows with the square of the length m. With `reference_frames` r it does not:

        W_ij = ((i - j) r / m)^2 + 1

    gives every utterance the weights of one of r frames, stretched over its own length. The window of y stays in raw
    frames. (Haresh et al. likewise divide positions by the length.)

    Args:
        x: frames `(batch, frames, dim)`, float32 or float64.
        lengths: frames in use, `(batch,)`; `None` for all. Padding changes neither value nor gradient.
        sigma: window in frames, at least 1.
        margin: distance beyond which far frames no longer repel, in units of `distance`.
        distance: "euclidean" (released code) or "sqeuclidean" (paper).
        reference_frames: length in frames at which scaled offsets equal raw ones; `None` for raw offsets, as
            published.

    Returns:
        `(batch,)`, not negative.

    Raises:
        ValueError: wrong shape, half precision, unknown distance, sigma < 1, margin <= 0,
            reference_frames < 1.
    """
    if x.dim() != 3:
        raise ValueError(f"x must have shape (batch, frames, dim), got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}; cast it with .float() first")
    check_idm_parameters(sigma, margin, distance, reference_frames)
    batch, longest, _ = x.shape
    lengths = check_lengths(lengths, batch, longest, x.device, "lengths")
    index = torch.arange(longest, device=x.device)
    valid = index < lengths.unsqueeze(1)
    d = _distances(x.masked_fill(~valid.unsqueeze(2), 0.0), distance)
    offset = index.unsqueeze(0) - index.unsqueeze(1)
    if reference_frames is None:
        weight = offset.square().to(x.dtype) + 1.0
    else:
        scale = reference_frames / lengths.to(x.dtype)
        weight = (offset * scale[:, None, None]).square() + 1.0
    terms = torch.where(offset.abs() >= sigma, weight * (margin - d).clamp(min=0.0), d / weight)
    terms = terms.masked_fill(~(valid.unsqueeze(2) & valid.unsqueeze(1)), 0.0)
    return terms.sum(dim=(1, 2)) / lengths.to(x.dtype).square()


def check_idm_parameters(sigma: int, margin: float, distance: str, reference_frames: int | None = None) -> None:
    """Raise `ValueError` on a window, margin, distance or length that the regulariser is not defined for."""
    counts = {"sigma": sigma} if reference_frames is None else {"sigma": sigma, "reference_frames": reference_frames}
    for name, frames in counts.items():
        if isinstance(frames, bool) or int(frames) != frames or frames < 1:
            raise ValueError(f"{name} must be a whole number of frames, at least 1, got {frames!r}")
    if not 0 < margin < float("inf"):
        raise ValueError(f"margin must be a positive finite number, got {margin!r}")
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
