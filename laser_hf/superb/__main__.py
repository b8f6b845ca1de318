"""`python -m laser_hf.superb TASK ...`: run one downstream task and write its record."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import TASKS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m laser_hf.superb", description="Downstream tasks after SUPERB.")
    commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, module_name in TASKS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        # What a user can mend says how; a traceback would bury it.
        sys.exit(f"error: {error}")
