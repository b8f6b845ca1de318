"""Fine-tune speech encoders for their content, without labels: LASER and its relatives on Hugging Face libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plugins import lazy_names

if TYPE_CHECKING:
    from .encoders import SpeechEncoder, load_encoder
    from .objectives import LaserLoss, MseIdmLoss, ScoreLoss, SoftDTWLoss, SpinLoss

__version__ = "0.1.0"

# Looked up on first use: transformers takes seconds to import, and every data worker would pay for it.
_LAZY = {
    **dict.fromkeys(("LaserLoss", "MseIdmLoss", "ScoreLoss", "SoftDTWLoss", "SpinLoss"), ".objectives"),
    **dict.fromkeys(("SpeechEncoder", "load_encoder"), ".encoders"),
}
__all__ = [
    "LaserLoss", "MseIdmLoss", "ScoreLoss", "SoftDTWLoss", "SpeechEncoder", "SpinLoss", "__version__", "load_encoder",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _LAZY)
