"""Publish a finished LASER run on the Hugging Face Hub; see `python push_to_hub.py --help`."""

from laser_hf import cli
from laser_hf.publishing.push import main

if __name__ == "__main__":
    cli.run(main)
