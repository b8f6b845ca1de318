"""Fine-tune a speech encoder with LASER. `python train.py --help` tells how."""

from laser_hf.training import parse_options, run_training

if __name__ == "__main__":
    run_training(parse_options())
