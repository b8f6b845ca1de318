"""Options, the Trainer subclass and the run that `train.py` starts."""

from .arguments import DataArguments, LaserTrainingArguments, ModelArguments, ObjectiveArguments
from .finite import NonFiniteLossError
from .model import AlignmentModel
from .options import Options, parse_options
from .output_folder import RunError
from .presets import PresetError, load_preset, preset_names
from .run import run_training
from .trainer import LaserTrainer

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
