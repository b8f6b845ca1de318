"""Options, the Trainer and the run that `train.py` starts."""

from .arguments import DataArguments, LaserTrainingArguments, ModelArguments
from .callbacks import CollapseMonitor, UpdateProfiler
from .evaluation import DiscriminationEvaluator
from .model import AlignmentModel
from .options import Choice, Options, parse_options
from .presets import load_preset, preset_names
from .run import main, run_training
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
