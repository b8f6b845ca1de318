"""LASER fine-tuning of speech encoders on Hugging Face libraries."""

from .encoders import SpeechEncoder, load_encoder
from .objectives import LaserLoss

__version__ = "0.1.0"
__all__ = ["LaserLoss", "SpeechEncoder", "__version__", "load_encoder"]
