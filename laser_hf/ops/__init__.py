"""Soft-DTW on every device, and statistics of frames."""

from .soft_dtw import IDM
from .soft_dtw.api import (
    BACKENDS,
    SoftDTWBackendError,
    pair_terms,
    pick_backend,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
)  # fmt: skip

__all__ = [
    "BACKENDS", "IDM", "SoftDTWBackendError", "pair_terms", "pick_backend", "soft_dtw", "soft_dtw_alignment",
    "soft_dtw_divergence",
]  # fmt: skip
