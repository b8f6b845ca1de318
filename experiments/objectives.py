"""LASER's regulariser without soft-DTW, a control of the second round."""

from __future__ import annotations

from typing import ClassVar

import torch

from laser_hf.objectives import LaserLoss, Objective
from laser_hf.objectives.idm import IDM_OPTIONS, idm_of_both


class IdmOnly(Objective):
    """`alpha (f(X) / m^2 + f(X') / n^2)` (LASER, Eq. 4, without its first term): nothing aligns the views.

    Terms: `total`; `idm`, the sum over both views before alpha: `total = alpha * idm`.

    Args:
        options: `alpha`, `sigma`, `margin`, `distance`, `reference_frames`.
    """

    name = "idm_only"
    title = "IDM alone"
    summary = "Only LASER's regulariser (IDM term) is trained: it pushes frames far apart in time from each other."
    paper = LaserLoss.paper
    bibtex = LaserLoss.bibtex
    options = IDM_OPTIONS
    term_labels: ClassVar = {"total": "total loss", "idm": "regulariser (IDM term)"}

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        idm = idm_of_both(self, x, m, y, n)
        return {"total": self.alpha * idm, "idm": idm}
