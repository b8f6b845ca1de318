"""Normalised soft-DTW alone: LASER without its regulariser, an ablation of the paper."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..ops import soft_dtw_divergence
from ..plugins import Option
from .objective import Objective


class SoftDTWLoss(Objective):
    """Normalised soft-DTW (LASER, Eq. 3). Nothing keeps the frames apart, so training collapses (Table 3).

    Terms: `total` and `soft_dtw`, which are the same.

    Args:
        backend: of `laser_hf.ops.soft_dtw`.
        options: `gamma`.
    """

    name = "soft_dtw"
    title = "soft-DTW alone"
    summary = (
        "The frames of the two views are aligned by normalised soft-DTW. This is LASER without its regulariser: "
        "nothing keeps the frames from becoming alike."
    )
    paper = (
        "Meghanani and Hain, LASER: Learning by Aligning Self-supervised Representations of Speech for Improving "
        "Content-related Tasks, Interspeech 2024, https://arxiv.org/abs/2406.09153"
    )
    bibtex = """\
@inproceedings{meghanani2024laser,
  title     = "{LASER}: Learning by Aligning Self-supervised Representations of Speech
               for Improving Content-related Tasks",
  author    = "Meghanani, Amit and Hain, Thomas",
  booktitle = "Proc. Interspeech",
  year      = "2024",
  eprint    = "2406.09153",
  archivePrefix = "arXiv"
}"""
    options = (Option("gamma", 0.1, "smoothing of soft-DTW", above=0),)
    term_labels: ClassVar = {"total": "total loss", "soft_dtw": "normalised soft-DTW"}

    def __init__(self, *, backend: str = "auto", **options: Any):
        super().__init__(**options)
        self.backend = backend

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        soft_dtw = soft_dtw_divergence(x, y, m, n, self.gamma, self.backend)
        return {"total": soft_dtw, "soft_dtw": soft_dtw}
