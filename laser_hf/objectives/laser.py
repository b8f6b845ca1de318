"""LASER: normalised soft-DTW held from collapsing by a contrastive IDM term.

Meghanani & Hain, "LASER: Learning by Aligning Self-supervised Representations of Speech for Improving
Content-related Tasks", Interspeech 2024, Eq. 4:

    L = softDTW_gamma(X, X') + alpha (f(X) / m^2 + f(X') / n^2)
"""

from __future__ import annotations

import torch

from ..ops import IDM, pair_terms, pick_backend, soft_dtw_divergence
from .idm import check_idm_parameters, contrastive_idm
from .objective import Objective, check_gamma, in_full_precision


class LaserLoss(Objective):
    """The LASER loss of a ragged batch of pairs, always computed in float32 (float64 stays float64).

    Args:
        gamma: smoothing of soft-DTW.
        alpha: weight of the regulariser; 0 leaves soft-DTW alone, which collapses (paper, Table 3).
        sigma: window of the regulariser in frames; 1 as published.
        margin: 1.1 for HuBERT, 1.0 for WavLM.
        distance: "euclidean" (released code, published results) or "sqeuclidean" (paper's equation).
        backend: of `laser_hf.ops.soft_dtw`.
        reference_frames: scales the offsets inside the regulariser's weights, so that they do not grow with the
            length; see `contrastive_idm`. `None` as published. With it the regulariser is computed in plain PyTorch
            beside soft-DTW, which costs more time and memory than the compiled single pass.

    Raises:
        ValueError: a parameter out of its range.
    """

    term_names = ("total", "soft_dtw", "idm")
    citation = (
        "@inproceedings{meghanani24_interspeech, title={LASER: Learning by Aligning Self-supervised "
        "Representations of Speech for Improving Content-related Tasks}, author={Amit Meghanani and Thomas "
        "Hain}, booktitle={Interspeech}, year={2024}}"
    )

    def __init__(
        self,
        gamma: float = 0.1,
        alpha: float = 0.4,
        sigma: int = 1,
        margin: float = 1.1,
        distance: str = "euclidean",
        backend: str = "auto",
        reference_frames: int | None = None,
    ):
        super().__init__()
        check_gamma(gamma)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be zero or a positive finite number, got {alpha!r}")
        check_idm_parameters(sigma, margin, distance, reference_frames)
        self.gamma = gamma
        self.alpha = alpha
        self.sigma = sigma
        self.margin = margin
        self.distance = distance
        self.backend = backend
        self.reference_frames = reference_frames

    def forward(
        self, x: torch.Tensor, lengths_x: torch.Tensor, y: torch.Tensor, lengths_y: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss terms of each pair.

        Args:
            x: projected unit-norm frames of the clean views, `(batch, m, dim)`.
            lengths_x: frames in use, `(batch,)`.
            y: frames of the perturbed views, `(batch, n, dim)`.
            lengths_y: frames in use, `(batch,)`.

        Returns:
            `total`, `soft_dtw` and `idm` (before alpha), each `(batch,)`; `total = soft_dtw + alpha * idm`.
        """
        with torch.autocast(device_type=x.device.type, enabled=False):
            x, y = in_full_precision(x, y)
            if len(x) and self.reference_frames is None and pick_backend(self.backend, x) != "reference":
                # One pass: the regulariser lives on distances that soft-DTW computes anyway.
                idm = IDM(int(self.sigma), float(self.margin), self.distance == "sqeuclidean")
                terms = pair_terms(x, y, lengths_x, lengths_y, self.gamma, self.alpha, idm, self.backend)
                return dict(zip(self.term_names, terms, strict=True))
            soft_dtw = soft_dtw_divergence(x, y, lengths_x, lengths_y, self.gamma, self.backend)
            idm = contrastive_idm(x, lengths_x, self.sigma, self.margin, self.distance, self.reference_frames)
            idm = idm + contrastive_idm(y, lengths_y, self.sigma, self.margin, self.distance, self.reference_frames)
            return {"total": soft_dtw + self.alpha * idm, "soft_dtw": soft_dtw, "idm": idm}

    def extra_repr(self) -> str:
        return (
            f"gamma={self.gamma}, alpha={self.alpha}, sigma={self.sigma}, margin={self.margin}, "
            f"distance={self.distance!r}, backend={self.backend!r}, reference_frames={self.reference_frames}"
        )
