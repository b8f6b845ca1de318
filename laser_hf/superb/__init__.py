"""Downstream tasks after SUPERB (Yang et al., 2021) on any encoder: `python -m laser_hf.superb TASK`.

A task is a module with `HELP`, `add_arguments(parser)` and `run(arguments)`; `TASKS` names them.
"""

TASKS = {"qbe": "laser_hf.superb.qbe"}
