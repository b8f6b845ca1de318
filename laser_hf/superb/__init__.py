"""Downstream tasks after SUPERB (Yang et al., 2021) on any encoder: `python -m laser_hf.superb TASK`.

A task is a module with `HELP`, `add_arguments(parser)` and `run(arguments)`; `TASKS` names them.
"""

from __future__ import annotations

import importlib
from typing import Any

TASKS = {
    "asr": "laser_hf.superb.recognition.asr",
    "pr": "laser_hf.superb.recognition.pr",
    "transcribe": "laser_hf.superb.recognition.transcribe",
    "qbe": "laser_hf.superb.qbe.task",
    "discrimination": "laser_hf.superb.discrimination.task",
    "table": "laser_hf.superb.table",
}

# Looked up on first use: the command line must not pay for what a task does not need.
_LAZY = {"mtwv": "laser_hf.superb.qbe.scoring"}

__all__ = ["TASKS", "mtwv"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
