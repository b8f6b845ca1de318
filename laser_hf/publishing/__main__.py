"""`python -m laser_hf.publishing convert`: the same as `laser-hf convert`."""

import sys

from .. import cli
from .convert import main

if __name__ == "__main__":
    cli.run(main, sys.argv[2:] if sys.argv[1:2] == ["convert"] else ["--help"])
