"""Options, the Trainer and the run that `laser-hf train` starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plugins import lazy_names
from .arguments import DataArguments, LaserTrainingArguments, ModelArguments, load_preset, preset_names
from .options import Choice, Options, parse_options

if TYPE_CHECKING:
    from .callbacks import CollapseMonitor, UpdateProfiler
    from .model import AlignmentModel
    from .run import run_training
    from .speech import DiscriminationEvaluator
    from .trainer import LaserTrainer
    from .updates import NonFiniteLossError

# Looked up on first use: `laser-hf train --help` needs none of them.
_LAZY = {
    **dict.fromkeys(("CollapseMonitor", "UpdateProfiler"), ".callbacks"),
    "AlignmentModel": ".model",
    "run_training": ".run",
    "DiscriminationEvaluator": ".speech",
    "LaserTrainer": ".trainer",
    "NonFiniteLossError": ".updates",
}
__all__ = [
    "AlignmentModel", "Choice", "CollapseMonitor", "DataArguments", "DiscriminationEvaluator", "LaserTrainer",
    "LaserTrainingArguments", "ModelArguments", "NonFiniteLossError", "Options", "UpdateProfiler", "load_preset",
    "parse_options", "preset_names", "run_training",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _LAZY)
