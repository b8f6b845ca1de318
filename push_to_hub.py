"""Publish a finished LASER run on the Hugging Face Hub. `python push_to_hub.py --help` tells how."""

import sys
from pathlib import Path

from laser_hf.publishing.push import main

if __name__ == "__main__":
    sys.exit(main(cards_dir=Path(__file__).resolve().parent / "model_cards"))
