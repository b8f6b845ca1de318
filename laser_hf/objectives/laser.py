"""LASER: normalised soft-DTW, kept from collapsing by a contrastive IDM term; soft-DTW alone; SCORE, with a twin."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..ops import IDM, pair_terms, pick_backend, soft_dtw_divergence
from ..plugins import Option
from .idm import IDM_OPTIONS, idm_of_both
from .objective import Objective


class SoftDTWLoss(Objective):
    """Normalised soft-DTW (LASER, Eq. 3), an ablation: nothing keeps the frames apart, training collapses (Table 3).

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
    options = (Option("gamma", 0.1, "smoothing of soft-DTW", low=1e-6),)
    term_labels: ClassVar = {"total": "total loss", "soft_dtw": "normalised soft-DTW"}
    short_labels: ClassVar = {"soft_dtw": "sDTW", "idm": "IDM"}

    def __init__(self, *, backend: str = "auto", **options: Any):
        super().__init__(**options)
        self.backend = backend

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        soft_dtw = soft_dtw_divergence(x, y, m, n, self.gamma, self.backend)
        return {"total": soft_dtw, "soft_dtw": soft_dtw}


class LaserLoss(SoftDTWLoss):
    """The LASER loss (paper, Eq. 4), with the soft-DTW of Eq. 3 and the regulariser of Eq. 1 (`contrastive_idm`):

        L = softDTW_gamma(X, X') + alpha (f(X) / m^2 + f(X') / n^2)

    Terms: `total`; `soft_dtw`; `idm`, the sum over both views before alpha: `total = soft_dtw + alpha * idm`.

    Args:
        backend: of `laser_hf.ops.soft_dtw`.
        options: `gamma`, `alpha`, `sigma`, `margin`, `distance`, `reference_frames`; see `contrastive_idm`. With
            `reference_frames` the regulariser costs more time and memory: it runs in plain PyTorch beside soft-DTW.
    """

    name = "laser"
    title = "LASER"
    summary = (
        "The frames of the two views are aligned by normalised soft-DTW; a regulariser (IDM term) keeps frames far "
        "apart in time from becoming alike."
    )
    options = (*SoftDTWLoss.options, *IDM_OPTIONS)
    term_labels: ClassVar = {**SoftDTWLoss.term_labels, "idm": "regulariser (IDM term)"}
    anti_collapse = "--alpha"

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(x) and self.reference_frames is None and pick_backend(self.backend, x) != "reference":
            # One pass computes both: the regulariser uses distances that soft-DTW needs anyway.
            idm = IDM(self.sigma, self.margin, self.distance == "sqeuclidean")
            values = pair_terms(x, y, m, n, self.gamma, self.alpha, idm, self.backend)
            return dict(zip(self.term_names, values, strict=True))
        soft_dtw = super().terms(x, m, y, n)["soft_dtw"]
        idm = idm_of_both(self, x, m, y, n)
        return {"total": soft_dtw + self.alpha * idm, "soft_dtw": soft_dtw, "idm": idm}


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
