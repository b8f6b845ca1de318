"""SCORE: normalised soft-DTW per frame between a trained encoder and its frozen twin."""

from __future__ import annotations

import torch

from ..plugins import Option
from .laser import SoftDTWLoss


class ScoreLoss(SoftDTWLoss):
    """The SCORE loss, with soft-DTW normalised as in LASER's Eq. 3:

        L = softDTW_gamma(X, Y) / (m + n)

    X are frames of the encoder that is trained, Y those of its twin with the initial weights, which keeps X from
    collapsing. The trainer runs the twin and draws for each pair which of the two hears the perturbed view.

    Terms: `total`; `soft_dtw`, before the division. Options: `gamma`, `twin_dropout` (read by the trainer).
    """

    name = "score"
    title = "SCORE"
    summary = (
        "A trained encoder and its frozen twin hear the two views; the trained frames are aligned with the twin's by "
        "normalised soft-DTW divided by the number of frames."
    )
    paper = (
        "Meghanani and Hain, SCORE: Self-supervised Correspondence Fine-tuning for Improved Content Representations, "
        "ICASSP 2024, https://arxiv.org/abs/2403.06260"
    )
    bibtex = """\
@inproceedings{meghanani2024score,
  title     = "{SCORE}: Self-supervised Correspondence Fine-tuning for Improved Content Representations",
  author    = "Meghanani, Amit and Hain, Thomas",
  booktitle = "Proc. ICASSP",
  year      = "2024",
  eprint    = "2403.06260",
  archivePrefix = "arXiv"
}"""
    options = (
        *SoftDTWLoss.options,
        Option("twin_dropout", True, "dropout in the frozen twin too while training, as in the released code"),
    )
    needs_twin = True

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        soft_dtw = super().terms(x, m, y, n)["soft_dtw"]
        return {"total": soft_dtw / (m + n), "soft_dtw": soft_dtw}
