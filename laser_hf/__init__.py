"""Fine-tune speech encoders for their content, without labels: LASER and its relatives on Hugging Face libraries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoders import SpeechEncoder, load_encoder
    from .objectives import LaserLoss, MseIdmLoss, ScoreLoss, SoftDTWLoss, SpinLoss

__version__ = "0.1.0"

# Looked up on first use: transformers takes seconds to import, and every data worker would pay for it.
_LAZY = {
    **dict.fromkeys(("LaserLoss", "MseIdmLoss", "ScoreLoss", "SoftDTWLoss", "SpinLoss"), "laser_hf.objectives"),
    **dict.fromkeys(("SpeechEncoder", "load_encoder"), "laser_hf.encoders"),
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
