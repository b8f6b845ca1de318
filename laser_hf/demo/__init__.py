"""What the demo needs, shipped inside the package: a small speech set and a small encoder."""

from pathlib import Path

SPEECH_DIR = Path(__file__).resolve().with_name("speech")
"""The synthesised speech set (`train` and `heldout` in LibriSpeech's layout, and its tables)."""
ENCODER_DIR = SPEECH_DIR.with_name("encoder")
"""The small HuBERT checkpoint that the demo fine-tunes."""
