"""`python -m laser_hf.publishing convert`: bring a model of another toolkit in."""

from .. import cli
from .convert import main

if __name__ == "__main__":
    cli.run(main)
