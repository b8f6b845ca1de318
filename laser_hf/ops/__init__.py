"""Differentiable sequence operations: the one place where soft-DTW is computed."""

from .soft_dtw import (
    IDM,
    SoftDTWBackendError,
    available_backends,
    pair_terms,
    pick_backend,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
)

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
