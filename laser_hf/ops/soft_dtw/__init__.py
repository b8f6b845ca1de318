"""Soft-DTW (Cuturi & Blondel, ICML 2017) over ragged batches, behind one `backend` argument."""

from .api import SoftDTWBackendError, available_backends, soft_dtw, soft_dtw_alignment, soft_dtw_divergence

__all__ = [
    "SoftDTWBackendError",
    "available_backends",
    "soft_dtw",
    "soft_dtw_alignment",
    "soft_dtw_divergence",
]
