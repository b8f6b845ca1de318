"""What an option is: its field and range, whether it is taken, and the presets that set it."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import LaserError
from ..plugins import Option
from ..records import located

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""Number format of the forward pass by `TrainingArguments.mixed_precision`."""
_BOUNDS = ("low", "high", "above")
OWN_METADATA = ("recipe", *_BOUNDS)
"""Metadata of a field that argparse does not know."""

DDP = (
    "the trained layers are small and gain nothing from sharding. Several GPUs share an update by DDP: accelerate "
    "launch --multi_gpu --num_processes N -m laser_hf train"
)
_REASONS = {
    "num_train_epochs": "the length of a run is given in updates: --max_steps",
    "gradient_accumulation_steps": "it follows from --pairs_per_update, --per_device_train_batch_size and the number "
    "of processes; set those instead",
    "ignore_data_skip": "a resumed run goes on behind the pairs that it has seen",
    "enable_jit_checkpoint": "SIGTERM ends a run with a checkpoint as it is",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "fsdp fsdp_config deepspeed parallelism_config": DDP,
    "auto_find_batch_size train_sampling_strategy length_column_name dataloader_drop_last dataloader_in_order "
    "remove_unused_columns accelerator_config include_num_input_tokens_seen": "the loader makes updates of pairs, "
    "whose order --seed decides",
    "do_eval do_predict bf16_full_eval fp16_full_eval prediction_loss_only eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics": "an evaluation measures "
    "loss terms of held-out pairs, --per_device_eval_batch_size at once",
    "label_smoothing_factor label_names average_tokens_across_devices neftune_noise_alpha use_liger_kernel "
    "liger_kernel_config use_cache": "the loss is that of the --objective",
    "hub_strategy hub_always_push hub_revision": "the finished run is published, not its checkpoints",
}
REFUSED = {name: why for names, why in _REASONS.items() for name in names.split()}
"""Options of `TrainingArguments` that would have no effect here, and why."""


def option(default: Any, text: str, recipe: bool = True, **metadata: Any) -> Any:
    """A dataclass field that is an option with a help `text` and, with `recipe`, decides the result of a run.

    `metadata` are `low`, `high` and `above` as of `plugins.Option`, and `choices`, `aliases`, `metavar` as of argparse.
    """
    return dataclasses.field(default=default, metadata={**metadata, "help": text, "recipe": recipe})


def setting(default: Any, text: str, **metadata: Any) -> Any:
    """An `option` that does not decide the result: paths, logging, evaluation, hardware."""
    return option(default, text, recipe=False, **metadata)


def ranged_options(kind: type) -> dict[str, Option]:
    """The options of a dataclass that have one type, by name: what is allowed, for checks and for `--help`."""
    found, hints = {}, get_type_hints(kind)
    for field in dataclasses.fields(kind):
        kinds = set(get_args(hints[field.name]) or (hints[field.name],))
        default = None if type(None) in kinds else ""
        kinds.discard(type(None))
        if "recipe" in field.metadata and len(kinds) == 1 and kinds <= {bool, int, float, str}:
            bounds = {name: field.metadata.get(name) for name in _BOUNDS}
            found[field.name] = Option(f"--{field.name}", default, "", kind=kinds.pop(), **bounds)
    return found


def check_values(options: Any) -> None:
    """`LaserError` on a type or range: argparse sees no value of a preset, and knows no range."""
    for name, option in ranged_options(type(options)).items():
        value = getattr(options, name)
        checked = option.check(value)
        if option.kind is int or isinstance(value, str):
            setattr(options, name, checked)


def recipe_of(options: Any) -> dict[str, Any]:
    """The values of a dataclass of options that decide the result, by name."""
    names = [field.name for field in dataclasses.fields(options) if field.metadata.get("recipe")]
    values = {name: getattr(options, name) for name in names}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("laser_hf") / "presets"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str, known: set[str]) -> dict[str, Any]:
    """Values of a shipped preset, or of a JSON file of one's own, by the names of options.

    `{laser_hf}` in a value stands for the folder of the installed package. `LaserError` on an unknown name, an
    unreadable file, or a key outside `known`.
    """
    path = Path(name) if name.endswith(".json") else resources.files("laser_hf") / "presets" / f"{name}.json"
    if not path.is_file():
        raise LaserError(
            f"unknown preset {name!r}; give the path of a .json file or one of {', '.join(preset_names())}"
        )
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:  # also of text in another encoding
        raise LaserError(f"preset {name!r} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise LaserError(f"preset {name!r} must be a JSON object of options and values, got {type(values).__name__}")
    unknown = sorted(set(values) - known - {"description", "source"})
    if unknown:
        raise LaserError(f"preset {name!r} has unknown keys: {', '.join(unknown)}. See laser-hf train --help_all.")
    return {key: located(value) if isinstance(value, str) else value for key, value in values.items() if key in known}
