"""Downstream tasks after SUPERB (Yang et al., 2021) on any encoder: `laser-hf superb TASK`.

A task is a module or a class with `HELP`, `add_arguments(parser)` and `run(arguments)`. Shipped ones have a name; your
own are given by import path, as `package.module` or `package.module:Class`.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from ..errors import LaserError
from ..plugins import lazy_names

TASKS = {
    "asr": ("laser_hf.superb.ctc.tasks:Asr", "speech recognition: word error rate of a CTC head"),
    "pr": ("laser_hf.superb.ctc.tasks:Pr", "phone recognition: phone error rate of a linear CTC head"),
    "qbe": ("laser_hf.superb.qbe.task:", "query by example: finding the recordings that hold a spoken word"),
    "discrimination": ("laser_hf.superb.discrimination.task:", "word discrimination and ABX, without any training"),
    "sid": ("laser_hf.superb.sid:", "speaker identification: how much of who speaks is in the frames"),
    "ks": ("laser_hf.superb.ks:", "keyword spotting: accuracy on Speech Commands, or on your own words"),
    "table": ("laser_hf.superb.table:", "the paper's tables from records, beside the published values"),
}
"""Place and summary of the shipped tasks by name."""

__all__ = ["TASKS", "find_task", "mtwv"]
__getattr__ = lazy_names(__name__, {"mtwv": ".qbe.scoring"})


def find_task(name: str) -> Any:
    """The task called `name`: one of `TASKS`, or a module or class of your own by import path.

    `LaserError` for an unknown name, a module that cannot be imported, or something that is no task.
    """
    if name in TASKS:
        return pkgutil.resolve_name(TASKS[name][0])
    if "." not in name and ":" not in name:
        raise LaserError(f"unknown task {name!r}; shipped are {', '.join(TASKS)}, your own is package.module[:Class]")
    try:
        task = pkgutil.resolve_name(name if ":" in name else f"{name}:")
    except (ImportError, AttributeError, ValueError) as error:
        raise LaserError(f"cannot import the task {name!r}: {error}. Is its folder on PYTHONPATH?") from error
    if missing := [part for part in ("HELP", "add_arguments", "run") if not hasattr(task, part)]:
        raise LaserError(f"{name!r} is no task: it lacks {', '.join(missing)}")
    return task
