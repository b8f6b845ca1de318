"""Soft-DTW (Cuturi & Blondel, ICML 2017) over ragged batches: checks in `api`, one module for each backend."""

from typing import NamedTuple

import torch


class IDM(NamedTuple):
    """Parameters of LASER's regulariser; see `laser_hf.objectives.contrastive_idm`."""

    sigma: int
    margin: float
    squared: bool


class PairTerms(NamedTuple):
    """Terms of each pair, `(batch,)` float64, and, if asked for, gradients of their weighted sum by the frames."""

    soft_dtw: torch.Tensor
    idm: torch.Tensor
    gradient_x: torch.Tensor | None = None
    gradient_y: torch.Tensor | None = None
