"""Options, the Trainer subclass and the run that `train.py` starts."""

from .arguments import DataArguments, LaserTrainingArguments, ModelArguments, ObjectiveArguments
from .model import AlignmentModel
from .options import Options, parse_options
from .presets import PresetError, load_preset, preset_names
from .run import RunError, run_training
from .trainer import LaserTrainer, NonFiniteLossError

__all__ = [
    "AlignmentModel",
    "DataArguments",
    "LaserTrainer",
    "LaserTrainingArguments",
    "ModelArguments",
    "NonFiniteLossError",
    "ObjectiveArguments",
    "Options",
    "PresetError",
    "RunError",
    "load_preset",
    "parse_options",
    "preset_names",
    "run_training",
]
