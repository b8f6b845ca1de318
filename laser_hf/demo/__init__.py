"""What the demo needs, shipped inside the package: a small speech set and a small encoder."""

from pathlib import Path

DEMO_DIR = Path(__file__).resolve().parent
SPEECH_DIR = DEMO_DIR / "speech"
"""The synthesised speech set (`train` and `heldout` in LibriSpeech's layout, and its tables)."""
ENCODER_DIR = DEMO_DIR / "encoder"
"""The small HuBERT checkpoint that the demo fine-tunes."""

__all__ = ["DEMO_DIR", "ENCODER_DIR", "SPEECH_DIR"]
