"""Frame-wise squared error with a contrastive IDM term: the alternative to soft-DTW for views of equal duration."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..ops.soft_dtw.api import frames_in_use
from ..plugins import NOISE_ROBUST_BIBTEX, NOISE_ROBUST_PAPER
from .idm import IDM_OPTIONS, idm_of_both
from .objective import Objective


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
