"""Contrastive inverse-difference-moment regulariser (IDM term) in plain PyTorch: repels frames far apart in time.

LASER, Eq. 1 and 2, after Haresh et al., "Learning by Aligning Videos in Time" (CVPR 2021). The LASER paper writes a
squared distance; the released code, which gave the published results, uses the unsquared one.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from ..ops.soft_dtw.api import check_lengths, check_tensor, frames_in_use, squared_euclidean
from ..plugins import NOISE_ROBUST_BIBTEX, NOISE_ROBUST_PAPER, Option
from .objective import Objective

_DISTANCES = ("euclidean", "sqeuclidean")
IDM_OPTIONS = (
    Option("alpha", 0.4, "weight of the regulariser (IDM term); 0: none", low=0),
    Option("sigma", 1, "window of the regulariser in frames", low=1),
    Option("margin", 1.1, "distance beyond which frames do not repel (WavLM: 1.0)", above=0),
    Option("distance", "euclidean", "distance of the regulariser; released: euclidean", choices=_DISTANCES),
    Option("reference_frames", None, "regulariser weights as if every utterance had so many frames", kind=int, low=1),
)


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

    Frames at least `sigma` apart repel each other up to `margin`; nearer ones attract. With `sigma=1` only a frame and
    itself attract, at distance 0: the term is purely repulsive, as published (the released code calls that window 0).

    W counts frames, so the value grows with the square of the length m. `reference_frames` r prevents that by
    W_ij = ((i - j) r / m)^2 + 1: every utterance has the weights of one with r frames, stretched to its own length, as
    Haresh et al. divide positions by the length. The window of y still counts frames.

    Args:
        x: frames `(batch, frames, dim)`, float32 or float64.
        lengths: frames in use, `(batch,)`; `None` for all. Padding changes neither value nor gradient.
        sigma: window in frames, at least 1.
        margin: distance beyond which far frames no longer repel, in units of `distance`.
        distance: "euclidean" (released code) or "sqeuclidean" (paper).
        reference_frames: length at which scaled offsets equal raw ones; `None` for raw offsets, as published.

    Returns:
        `(batch,)`, not negative.

    Raises:
        ValueError: wrong shape, half precision, unknown distance, sigma < 1, margin <= 0, reference_frames < 1.
    """
    check_tensor("x", x, "(batch, frames, dim)", 3)
    for option, value in zip(IDM_OPTIONS[1:], (sigma, margin, distance, reference_frames), strict=True):
        option.check(value)
    batch, longest, _ = x.shape
    lengths = check_lengths(lengths, batch, longest, x.device, "lengths")
    valid = frames_in_use(lengths, longest)
    d = _distances(x.masked_fill(~valid.unsqueeze(2), 0.0), distance)
    index = torch.arange(longest, device=x.device)
    offset = (index.unsqueeze(0) - index.unsqueeze(1)).to(x.dtype)
    scale = 1.0 if reference_frames is None else (reference_frames / lengths.to(x.dtype))[:, None, None]
    weight = (offset * scale).square() + 1.0
    terms = torch.where(offset.abs() >= sigma, weight * (margin - d).clamp(min=0.0), d / weight)
    terms = terms.masked_fill(~(valid.unsqueeze(2) & valid.unsqueeze(1)), 0.0)
    return terms.sum(dim=(1, 2)) / lengths.to(x.dtype).square()


def idm_of_both(options, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """`contrastive_idm` of two views, added; its parameters are attributes of `options`."""
    parameters = (options.sigma, options.margin, options.distance, options.reference_frames)
    return contrastive_idm(x, m, *parameters) + contrastive_idm(y, n, *parameters)


class MseIdmLoss(Objective):
    """Frame t of one view is pulled towards frame t of the other:

        L = sum_t sum_d (X_td - X'_td)^2 + alpha (f(X) / m^2 + f(X') / m^2)

    The squared error is summed over frames and dimensions and divided by nothing, so it grows with the length, as
    soft-DTW does. All is as in the released code, which takes one pair at a time and `nn.MSELoss(reduction="sum")`; its
    README gives alpha and margin as for LASER.

    Terms: `total`; `mse`; `idm`, the sum over both views before alpha: `total = mse + alpha * idm`.

    Args:
        options: `alpha`, `sigma`, `margin`, `distance`, `reference_frames`; see `contrastive_idm`.
    """

    name = "mse_idm"
    title = "MSE + IDM"
    summary = (
        "Each frame of one view is pulled towards the frame of the other view at the same time; a regulariser (IDM "
        "term) keeps frames far apart in time from becoming alike."
    )
    paper, bibtex = NOISE_ROBUST_PAPER, NOISE_ROBUST_BIBTEX
    options = IDM_OPTIONS
    term_labels: ClassVar = {"total": "total loss", "mse": "summed squared error", "idm": "regulariser (IDM term)"}
    short_labels: ClassVar = {"mse": "MSE", "idm": "IDM"}
    equal_lengths = True
    anti_collapse = "--alpha"

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        # Padding is replaced before the subtraction: a NaN there would reach the gradients.
        padding = ~frames_in_use(m, x.shape[1]).unsqueeze(2)
        mse = (x.masked_fill(padding, 0.0) - y.masked_fill(padding, 0.0)).square().sum(dim=(1, 2))
        idm = idm_of_both(self, x, m, y, n)
        return {"total": mse + self.alpha * idm, "mse": mse, "idm": idm}
