"""Fine-tune a speech encoder with LASER. `python train.py --help` tells how."""

from laser_hf import cli
from laser_hf.training.__main__ import main

if __name__ == "__main__":
    cli.run(main)
