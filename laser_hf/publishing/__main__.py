"""`python -m laser_hf.publishing convert`, the same as `laser-hf convert`: bring a model of another toolkit in."""

import argparse
from collections.abc import Sequence

from .. import cli
from . import convert


def main(argv: Sequence[str] | None = None) -> None:
    """Hand what follows the word `convert` to `convert.main`."""
    parser = argparse.ArgumentParser(prog="python -m laser_hf.publishing")
    parser.add_argument("command", choices=("convert",))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="see convert --help")
    convert.main(parser.parse_args(argv).options)


if __name__ == "__main__":
    cli.run(main)
