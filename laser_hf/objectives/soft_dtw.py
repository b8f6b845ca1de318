"""Normalised soft-DTW alone: LASER without its regulariser, an ablation of the paper.

Meghanani & Hain, "LASER: Learning by Aligning Self-supervised Representations of Speech for Improving
Content-related Tasks", Interspeech 2024, Eq. 3 and Table 3. Nothing keeps the frames apart: training collapses.
"""

from __future__ import annotations

import torch

from ..ops import soft_dtw_divergence
from .laser import LaserLoss
from .objective import Objective, check_gamma, in_full_precision


class SoftDTWLoss(Objective):
    """Normalised soft-DTW of a ragged batch of pairs, always computed in float32 (float64 stays float64).

    Args:
        gamma: smoothing of soft-DTW.
        backend: of `laser_hf.ops.soft_dtw`.

    Raises:
        ValueError: gamma <= 0.
    """

    term_names = ("total", "soft_dtw")
    citation = LaserLoss.citation

    def __init__(self, gamma: float = 0.1, backend: str = "auto"):
        super().__init__()
        check_gamma(gamma)
        self.gamma = gamma
        self.backend = backend

    def forward(
        self, x: torch.Tensor, lengths_x: torch.Tensor, y: torch.Tensor, lengths_y: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss terms of each pair.

        Args:
            x: projected unit-norm frames of one view, `(batch, m, dim)`.
            lengths_x: frames in use, `(batch,)`.
            y: frames of the other view, `(batch, n, dim)`.
            lengths_y: frames in use, `(batch,)`.

        Returns:
            `total` and `soft_dtw`, each `(batch,)` and the same.
        """
        with torch.autocast(device_type=x.device.type, enabled=False):
            x, y = in_full_precision(x, y)
            soft_dtw = soft_dtw_divergence(x, y, lengths_x, lengths_y, self.gamma, self.backend)
            return {"total": soft_dtw, "soft_dtw": soft_dtw}

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, backend={self.backend!r}"
