"""Differentiable sequence operations: the one place where soft-DTW is computed."""

from .soft_dtw import (
    SoftDTWBackendError,
    available_backends,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
)

__all__ = [
    "SoftDTWBackendError",
    "available_backends",
    "soft_dtw",
    "soft_dtw_alignment",
    "soft_dtw_divergence",
]
