"""Options, the Trainer and the run that `laser-hf train` starts."""

from .arguments import DataArguments, LaserTrainingArguments, ModelArguments
from .callbacks import CollapseMonitor, UpdateProfiler
from .fields import load_preset, preset_names
from .model import AlignmentModel
from .options import Choice, Options, parse_options
from .run import main, run_training
from .speech import DiscriminationEvaluator
from .trainer import LaserTrainer
from .updates import NonFiniteLossError

__all__ = [
    "AlignmentModel",
    "Choice",
    "CollapseMonitor",
    "DataArguments",
    "DiscriminationEvaluator",
    "LaserTrainer",
    "LaserTrainingArguments",
    "ModelArguments",
    "NonFiniteLossError",
    "Options",
    "UpdateProfiler",
    "load_preset",
    "main",
    "parse_options",
    "preset_names",
    "run_training",
]
