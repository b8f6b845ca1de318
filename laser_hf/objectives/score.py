"""SCORE: normalised soft-DTW per frame between a trained network and its frozen twin.

Meghanani & Hain, "SCORE: Self-supervised Correspondence Fine-tuning for Improved Content Representations", ICASSP
2024:

    L = softDTW_gamma(X, Y) / (m + n),   normalised as LASER's Eq. 3

X are frames of the network that is trained, Y those of its twin with the initial weights, which keeps X from
collapsing. Which of the two hears the perturbed speech is drawn per pair. All of that lies with the caller; here is
the loss.
"""

from __future__ import annotations

import torch

from ..ops import soft_dtw_divergence
from ..ops.soft_dtw.api import check_lengths
from .objective import Objective, check_gamma, in_full_precision


class ScoreLoss(Objective):
    """The SCORE loss of a ragged batch of pairs, always computed in float32 (float64 stays float64).

    Args:
        gamma: smoothing of soft-DTW.
        backend: of `laser_hf.ops.soft_dtw`.

    Raises:
        ValueError: gamma <= 0.
    """

    term_names = ("total", "soft_dtw")
    citation = (
        "@inproceedings{meghanani24_icassp, title={SCORE: Self-supervised Correspondence Fine-tuning for Improved "
        "Content Representations}, author={Amit Meghanani and Thomas Hain}, booktitle={ICASSP}, year={2024}}"
    )

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
            x: projected unit-norm frames of the trained network, `(batch, m, dim)`.
            lengths_x: frames in use, `(batch,)`.
            y: frames of the frozen twin, `(batch, n, dim)`.
            lengths_y: frames in use, `(batch,)`.

        Returns:
            `total` and `soft_dtw` (normalised soft-DTW, before the division), each `(batch,)`;
            `total = soft_dtw / (lengths_x + lengths_y)`.
        """
        with torch.autocast(device_type=x.device.type, enabled=False):
            x, y = in_full_precision(x, y)
            lengths_x = check_lengths(lengths_x, len(x), x.shape[1], x.device, "lengths_x")
            lengths_y = check_lengths(lengths_y, len(y), y.shape[1], y.device, "lengths_y")
            soft_dtw = soft_dtw_divergence(x, y, lengths_x, lengths_y, self.gamma, self.backend)
            return {"total": soft_dtw / (lengths_x + lengths_y), "soft_dtw": soft_dtw}

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, backend={self.backend!r}"
