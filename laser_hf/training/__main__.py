"""The command `laser-hf train`, also `python -m laser_hf.training`."""

from __future__ import annotations

from collections.abc import Sequence

from .. import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and say at the end what came out."""
    from .options import parse_options

    options = parse_options(argv)
    # After --help and wrong options, which need not wait for it.
    from .closing import closing
    from .run import run_training

    run_training(options)
    if options.training.process_index == 0:
        print(closing(options.training.output_dir))


if __name__ == "__main__":
    cli.run(main)
