"""`python -m laser_hf.superb TASK ...`: run one downstream task and write its record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .. import cli
from ..errors import LaserError
from . import TASKS, find_task

PROGRAM = "python -m laser_hf.superb"


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
    for before, word in zip([chosen.task, *chosen.options], chosen.options, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise LaserError(f"{(word or before).rstrip('=')} is empty")
    task = find_task(chosen.task)
    prog = f"{PROGRAM} {chosen.task}"
    parser = argparse.ArgumentParser(prog=prog, description=task.HELP, formatter_class=_HelpFormatter)
    task.add_arguments(parser)
    return task.run(parser.parse_args(chosen.options))


if __name__ == "__main__":
    cli.run(main)
