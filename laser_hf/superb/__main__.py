"""`python -m laser_hf.superb TASK ...`: run one downstream task and write its record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .. import cli
from ..errors import LaserError
from . import TASKS, find_task

PROGRAM = "python -m laser_hf.superb"
INPUTS = ("model", "data", "dev_data", "alignments", "lexicon")
"""Options of the tasks that name what is read."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind the help of an option, but only if there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run a task and return what it returns; only the module of this task is imported.

    Raises:
        LaserError: what a user can mend.
    """
    width = max(map(len, TASKS))
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Downstream tasks after SUPERB.",
        epilog="\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in TASKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", help="a name from the list below, or your own: package.module[:Class]")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="of the task; TASK --help lists them")
    chosen = parser.parse_args(argv)
    task = find_task(chosen.task)
    prog = f"{PROGRAM} {chosen.task}"
    parser = argparse.ArgumentParser(prog=prog, description=task.HELP, formatter_class=_HelpFormatter)
    task.add_arguments(parser)
    arguments = parser.parse_args(chosen.options)
    if "--output_dir=" in chosen.options or ("--output_dir", "") in pairwise(chosen.options):
        raise LaserError("--output_dir is empty; give the folder for this run's files")
    if hasattr(arguments, "output_dir"):
        from ..runs import RunFolder  # it takes seconds to import

        folder = RunFolder(arguments.output_dir, record="")
        for name in INPUTS:
            given = getattr(arguments, name, None)
            for one in given if isinstance(given, list) else [given]:
                folder.protect({f"--{name}": one and str(one).removeprefix("random:")})
    if not 0 <= (getattr(arguments, "seed", None) or 0) < 2**32:
        raise LaserError(f"--seed must be from 0 to {2**32 - 1}, got {arguments.seed}")
    return task.run(arguments)


if __name__ == "__main__":
    cli.run(main)
