"""LASER: normalised soft-DTW, kept from collapsing by a contrastive IDM term."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..ops import IDM, pair_terms, pick_backend
from .idm import IDM_OPTIONS, idm_of_both
from .soft_dtw import SoftDTWLoss


class LaserLoss(SoftDTWLoss):
    """The LASER loss (paper, Eq. 4), with the soft-DTW of Eq. 3 and the regulariser of Eq. 1 (`contrastive_idm`):

        L = softDTW_gamma(X, X') + alpha (f(X) / m^2 + f(X') / n^2)

    Terms: `total`; `soft_dtw`; `idm`, the sum over both views before alpha: `total = soft_dtw + alpha * idm`.

    Args:
        backend: of `laser_hf.ops.soft_dtw`.
        options: `gamma`, `alpha` (0 leaves soft-DTW alone), `sigma` (1 as published), `margin` (1.1 for HuBERT, 1.0
            for WavLM), `distance`, `reference_frames` (`None` as published). With `reference_frames` the regulariser is
            computed in plain PyTorch beside soft-DTW, which costs more time and memory than the compiled single pass.
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
