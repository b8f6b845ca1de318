"""Soft-DTW (Cuturi & Blondel, ICML 2017) over ragged batches, behind one `backend` argument."""

from .api import (
    SoftDTWBackendError,
    available_backends,
    pair_terms,
    pick_backend,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
)
from .terms import IDM

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
