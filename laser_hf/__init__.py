"""LASER fine-tuning of speech encoders on Hugging Face libraries."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Looked up on first use: transformers takes seconds to import, and every data worker would pay for it.
_LAZY = {
    "LaserLoss": "laser_hf.objectives",
    "MseIdmLoss": "laser_hf.objectives",
    "ScoreLoss": "laser_hf.objectives",
    "SoftDTWLoss": "laser_hf.objectives",
    "SpinLoss": "laser_hf.objectives",
    "SpeechEncoder": "laser_hf.encoders",
    "load_encoder": "laser_hf.encoders",
}

__all__ = [
    "LaserLoss",
    "MseIdmLoss",
    "ScoreLoss",
    "SoftDTWLoss",
    "SpeechEncoder",
    "SpinLoss",
    "__version__",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
