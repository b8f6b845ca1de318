"""From the command line to options: a preset gives the defaults, arguments override them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from ..records import portable
from .arguments import (
    OPTION_GROUPS,
    DataArguments,
    LaserTrainingArguments,
    ModelArguments,
    ObjectiveArguments,
)
from .presets import PresetError, load_preset, preset_names

DEFAULT_PRESET = "hubert-base"

_DESCRIPTION = """\
Fine-tune a speech encoder with LASER: align each utterance with its speed- and pitch-perturbed copy. Or with others of
its family: --objective soft_dtw, score, spin.

Without arguments this is the paper's HuBERT recipe on LibriSpeech train-clean-100 from the Hugging Face Hub."""

_EXAMPLES = """\
examples:
  python train.py --preset demo                                    # no network, CPU, minutes
  accelerate launch train.py --preset hubert-base --output_dir outputs/hubert-laser
  accelerate launch train.py --preset hubert-base-score --output_dir outputs/hubert-score
  accelerate launch train.py --preset wavlm-base --train_data LibriSpeech --train_split train-clean-100 --bf16
  python train.py --preset demo --train_data my_speech/ --max_steps 500

Every value of a preset can be overridden. --help_all also lists the options of transformers' TrainingArguments.
An interrupted run continues when the same command is given again."""

# Options inherited from TrainingArguments that a newcomer meets; the rest shows with --help_all.
_SHOWN = {
    "output_dir", "overwrite_output_dir", "pairs_per_update", "per_device_train_batch_size",
    "per_device_eval_batch_size", "max_steps", "learning_rate", "warmup_steps", "adam_epsilon", "max_grad_norm",
    "seed", "bf16", "logging_steps", "eval_steps", "eval_on_start", "save_steps", "save_total_limit", "report_to",
    "dataloader_num_workers", "resume_from_checkpoint", "use_cpu", "weight_decay",
    "collapse_cosine_fraction", "collapse_rank_fraction", "plots", "torch_compile", "torch_compile_backend",
    "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_private_repo",
}  # fmt: skip


@dataclass
class Options:
    """Parsed options of one run."""

    model: ModelArguments
    objective: ObjectiveArguments
    data: DataArguments
    training: LaserTrainingArguments
    preset: str

    def recipe(self) -> dict[str, Any]:
        """What decides the result: the options besides paths, logging and hardware."""
        training = {
            name: getattr(self.training, name)
            for name in (
                "pairs_per_update", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim",
                "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "seed", "data_seed",
                "bf16", "fp16", "seconds_per_update", "per_device_train_seconds", "min_learning_rate",
                "coupled_weight_decay",
            )
        }  # fmt: skip
        data = dataclasses.asdict(self.data)
        for name in (
            "cache_decoded",
            "eval_data",
            "eval_name",
            "eval_split",
            "max_eval_samples",
            "eval_probe",
            "eval_probe_data",
            "eval_probe_splits",
        ):
            data.pop(name)
        recipe = {
            "model": dataclasses.asdict(self.model),
            "objective": self.objective.used(),
            "data": data,
            "training": {name: getattr(value, "value", value) for name, value in training.items()},
        }
        return portable(recipe)


def option_names() -> set[str]:
    """Names that a preset may set."""
    return {field.name for group in OPTION_GROUPS for field in dataclasses.fields(group) if field.init}


def build_parser(show_all: bool = False) -> HfArgumentParser:
    """The parser of `train.py`."""
    parser = HfArgumentParser(
        OPTION_GROUPS,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset",
        default=DEFAULT_PRESET,
        help=f"recipe: {', '.join(preset_names())}, or a .json file of your own",
    )
    parser.add_argument("--help_all", action="store_true", help="list every option, also those of the Trainer")
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)} - _SHOWN
    if not show_all:
        for action in parser._actions:
            if action.dest in inherited or (action.dest.startswith("no_") and action.dest[3:] in inherited):
                action.help = argparse.SUPPRESS
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def add_usage(self, usage, actions, groups, prefix=None):
        # The usage line of 150 options helps nobody.
        super().add_usage("%(prog)s [--preset NAME] [--option value ...]", [], [], prefix)


def _launched_alone() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` left this process without its companions."""
    env = os.environ
    alone = not any(name in env for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
    return alone and "MASTER_ADDR" in env and env.get("ACCELERATE_USE_CPU", "").lower() == "true"


def parse_options(argv: list[str] | None = None) -> Options:
    """Parse `argv` (default: the command line).

    Exits with a message, as argparse does, on unknown options, presets or preset keys and on values out of
    range.
    """
    argv = sys.argv[1:] if argv is None else argv
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default=DEFAULT_PRESET)
    finder.add_argument("--help_all", action="store_true")
    found, _ = finder.parse_known_args(argv)
    parser = build_parser(show_all=found.help_all)
    try:
        preset = load_preset(found.preset, option_names())
    except PresetError as error:
        parser.error(str(error))
    if _launched_alone():
        parser.error(
            "accelerate launch --cpu started one process although several were asked for: without MPI it can do no "
            "more. Use: accelerate launch --multi_gpu --num_processes 2 train.py ... --use_cpu --ddp_backend gloo"
        )
    parser.set_defaults(**preset)
    if found.help_all:
        parser.print_help()
        parser.exit()
    try:
        *groups, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return Options(*groups, preset=found.preset)
