"""What every training objective has in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class Objective(nn.Module):
    """A loss of a ragged batch of pairs of views, computed on projected frames.

    `forward(x, lengths_x, y, lengths_y)` takes the frames of the two views, `(batch, frames, dim)`, and the frames in
    use, `(batch,)`, and returns a tensor `(batch,)` under each of `term_names`. It computes in float32 whatever
    autocast says (float64 stays float64) and takes batches without any row.

    Attributes:
        term_names: names of the terms; the first is "total", the one that is differentiated.
        citation: BibTeX of the paper.
        unit: "pairs" where the loss of an update is the mean of `total` over its pairs; "frames" where terms are sums
            over the frames of a pair, and the loss is their sum over the update by its number of frames.
    """

    term_names: ClassVar[tuple[str, ...]] = ("total",)
    citation: ClassVar[str] = ""
    unit: ClassVar[str] = "pairs"

    def prepare_update(self) -> None:
        """Called in training before the first forward call of each optimiser update; here nothing to do."""


def check_gamma(gamma: float) -> None:
    """Raise `ValueError` on a smoothing that soft-DTW is not defined for."""
    if not 0 < gamma < float("inf"):
        raise ValueError(f"gamma must be a positive finite number, got {gamma!r}")


def in_full_precision(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both views in float32, or as they are where `x` is float64."""
    return (x, y) if x.dtype == torch.float64 else (x.float(), y.float())
