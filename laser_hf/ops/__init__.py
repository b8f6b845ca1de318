"""Soft-DTW on every device, and statistics of frames."""

from .soft_dtw.api import (
    SoftDTWBackendError,
    available_backends,
    pair_terms,
    pick_backend,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
)
from .soft_dtw.terms import IDM

__all__ = [
    "IDM",
    "SoftDTWBackendError",
    "available_backends",
    "pair_terms",
    "pick_backend",
    "soft_dtw",
    "soft_dtw_alignment",
    "soft_dtw_divergence",
]
