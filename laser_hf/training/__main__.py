"""The command `laser-hf train`, also `python -m laser_hf.training`."""

from __future__ import annotations

from collections.abc import Sequence

from .. import cli
from .options import parse_options


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and say at the end what came out."""
    options = parse_options(argv)
    from .closing import closing  # --help and wrong options need not wait for these
    from .run import run_training

    run_training(options)
    if options.training.process_index == 0:
        print(closing(options.training.output_dir))


if __name__ == "__main__":
    cli.run(main)
