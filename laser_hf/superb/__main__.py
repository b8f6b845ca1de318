"""`laser-hf superb TASK ...`: run one downstream task and write its record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import cli
from ..errors import LaserError
from . import TASKS, find_task

INPUTS = ("model", "data", "dev_data", "test_data", "alignments", "lexicon")
"""Options of the tasks that name what is read."""


def main(argv: Sequence[str] | None = None) -> Any:
    """Run a task and return what it returns; only its module is imported. `LaserError` for what a user can mend."""
    width = max(map(len, TASKS))
    parser = argparse.ArgumentParser(
        prog="laser-hf superb",
        description="Downstream tasks after SUPERB.",
        epilog="\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in TASKS.items()),
        formatter_class=cli.HelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", help="a name from the list below, or your own: package.module[:Class]")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="of the task; TASK --help lists them")
    chosen = parser.parse_args(argv)
    for before, word in pairwise([chosen.task, *chosen.options]):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise LaserError(f"{(word or before).rstrip('=')} is empty")
    task = find_task(chosen.task)
    prog = f"{parser.prog} {chosen.task}"
    parser = argparse.ArgumentParser(prog=prog, description=task.HELP, formatter_class=cli.HelpFormatter)
    task.add_arguments(parser)
    arguments = parser.parse_args(chosen.options)
    if hasattr(arguments, "output_dir"):
        from ..runs import RunFolder  # it takes seconds to import

        folder = RunFolder(arguments.output_dir, record="")
        for name in INPUTS:
            given = getattr(arguments, name, None)
            for one in given if isinstance(given, list) else [given]:
                folder.protect({f"--{name}": one and str(one).removeprefix("random:")})
    for name, source in (("revision", "model"), ("data_revision", "data")):
        given = str(getattr(arguments, source, "")).removeprefix("random:")
        if getattr(arguments, name, None) and (Path(given).exists() or given in ("mfcc", "logmel")):
            raise LaserError(f"--{name} is for the Hub; --{source} {given} is not there")
    if not 0 <= (getattr(arguments, "seed", None) or 0) < 2**32:
        raise LaserError(f"--seed must be from 0 to {2**32 - 1}, got {arguments.seed}")
    return task.run(arguments)


if __name__ == "__main__":
    cli.run(main)
