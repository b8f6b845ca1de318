"""From the command line to options: a preset gives the defaults, arguments override them."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .. import cli
from ..data import PERTURBATIONS, find_perturbation
from ..errors import LaserError
from ..objectives import OBJECTIVES, find_objective
from ..plugins import Option, Plugin, parse_assignments
from ..records import portable
from .arguments import (
    OWN_METADATA,
    REFUSED,
    DataArguments,
    LaserTrainingArguments,
    ModelArguments,
    load_preset,
    preset_names,
    ranged_options,
    recipe_of,
)  # fmt: skip

DEFAULT_PRESET = "hubert-base"

_DESCRIPTION = """\
Fine-tune a speech encoder: align each utterance with its speed- and pitch-perturbed copy (LASER), or train with another
--objective. Without arguments this is the paper's HuBERT recipe on LibriSpeech train-clean-100 from the Hub. A preset
sets every value of a recipe, options override it. Give the same command again to continue an interrupted run."""

_EXAMPLES = """\
examples:
  laser-hf train --preset demo                                     # no network, CPU, minutes
  laser-hf train --preset demo --train_data my_speech --max_steps 500
  accelerate launch -m laser_hf train --preset hubert-base --output_dir outputs/hubert-laser
  accelerate launch -m laser_hf train --preset wavlm-base --train_data LibriSpeech --train_split train-clean-100 --bf16

--help_all lists every option, also those of transformers' TrainingArguments."""

_HELP = {
    "run": "preset output_dir overwrite_output_dir resume_from_checkpoint use_cpu seed help help_all",
    "encoder": "model_name_or_path model_revision trainable_layers train_encoder_layer_norm do_normalize "
    "projection_dim projection_layers",
    "loss": "objective {objectives} objective_options",
    "data": "train_data train_name train_split audio_column streaming shuffle_buffer max_train_samples min_seconds "
    "max_seconds crop_seconds cache_decoded dataloader_num_workers",
    "views": "perturbations {perturbations} perturbation_options perturb_on",
    "update": "max_steps pairs_per_update per_device_train_batch_size seconds_per_update learning_rate "
    "lr_scheduler_type warmup_steps optim weight_decay coupled_weight_decay max_grad_norm bf16 fp16 torch_compile "
    "released",
    "logging, evaluation, checkpoints": "eval_data eval_name eval_split max_eval_samples eval_alignments eval_steps "
    "eval_on_start logging_steps report_to save_steps save_total_limit plots",
    "Hugging Face": "push_to_hub hub_model_id hub_private_repo",
}
"""What `--help` shows, in groups; `--help_all` shows the rest too."""

_GROUPS = (ModelArguments, DataArguments, LaserTrainingArguments)
_PLUGINS = ("objective", "perturbations", "objective_options", "perturbation_options")
_BELONGING = {
    ("train_data", "data"): ("train_name", "train_split"),
    ("eval_data",): ("eval_name", "eval_split"),
    ("model_name_or_path", "model"): ("model_revision",),
}
"""What a preset says of its own data and model, and of no other: names of an option, and what belongs to its value."""


@dataclass(frozen=True)
class Choice:
    """An objective or a perturbation: its name as given, its class, and the values of all its options by `dest`."""

    name: str
    plugin: type[Plugin]
    values: dict[str, Any]


@dataclass
class Options:
    """Parsed options of one run."""

    model: ModelArguments
    objective: Choice
    perturbations: list[Choice]
    data: DataArguments
    training: LaserTrainingArguments
    preset: str
    changed: list[str]
    """Names of options that decide the result and were given another value than the preset's, but for seeds."""

    def recipe(self) -> dict[str, Any]:
        """What decides the result, in groups: the options besides paths of results, logging and hardware."""
        values = {dest: value for choice in self.perturbations for dest, value in choice.values.items()}
        recipe = {
            "model": recipe_of(self.model),
            "objective": {"name": self.objective.name, **self.objective.values},
            "perturbations": {"name": [choice.name for choice in self.perturbations], **values},
            "data": recipe_of(self.data),
            "training": recipe_of(self.training),
        }
        return portable(recipe)

    def value(self, name: str) -> Any:
        """The value of an option by its name, as text of an enumeration; `KeyError` if none in use has that name."""
        values = {"objective": self.objective.name, "perturbations": [choice.name for choice in self.perturbations]}
        for group in (self.model, self.data, self.training):
            values |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
        for choice in (self.objective, *self.perturbations):
            values |= choice.values
        return getattr(values[name], "value", values[name])


def _owners(shipped: Mapping[str, type[Plugin]]) -> dict[str, dict[str, Option]]:
    """Options of shipped classes, by destination and the name of the class."""
    found: dict[str, dict[str, Option]] = {}
    for name, plugin in shipped.items():
        for option in plugin.options:
            found.setdefault(option.dest, {})[name] = option
    return found


def option_names() -> set[str]:
    """Names that a preset may set."""
    fields = {field.name for group in _GROUPS for field in dataclasses.fields(group) if field.init}
    return {*fields, *_PLUGINS, *_owners(OBJECTIVES), *_owners(PERTURBATIONS)} - set(REFUSED)


class _Parser(HfArgumentParser):
    @staticmethod
    def _parse_dataclass_field(parser, field):
        # transformers hands all metadata to argparse.
        field = copy.copy(field)
        field.metadata = {key: value for key, value in field.metadata.items() if key not in OWN_METADATA}
        HfArgumentParser._parse_dataclass_field(parser, field)


class _Device(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if values == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: there is no CUDA device")
        namespace.use_cpu = values == "cpu"


def build_parser(show_all: bool = False, preset: Mapping[str, Any] | None = None) -> HfArgumentParser:
    """The parser of the command; its help lists every option with `show_all`, and plug-in values of the preset."""
    parser = _Parser(
        _GROUPS,
        usage="%(prog)s [--preset NAME] [--option value ...]",  # that of 150 options helps nobody
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=cli.HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    presets = f"recipe: {', '.join(preset_names())}, or a .json file of your own"
    add("--preset", default=DEFAULT_PRESET, help=presets, metavar="NAME")
    add("--help_all", action="store_true", help="show every option and exit")
    add("--device", action=_Device, choices=["auto", "cpu", "cuda"], default=argparse.SUPPRESS, help="cpu is --use_cpu")
    add("--objective", default="laser", help=_titles(OBJECTIVES), metavar="NAME")
    _add_plugin_options(add, "--objective_options", OBJECTIVES, preset or {})
    about = f"one after the other: {_titles(PERTURBATIONS)}"
    add("--perturbations", nargs="+", default=["speed_pitch"], help=about, metavar="NAME")
    _add_plugin_options(add, "--perturbation_options", PERTURBATIONS, preset or {})
    ranges = {name: option.range for group in _GROUPS for name, option in ranged_options(group).items()}
    rest: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        action.range = ranges.get(action.dest, "")
        if action.option_strings[0].startswith("--no_") and action.nargs == 0:
            action.help = f"turns --{action.dest} off"
        if action.dest in REFUSED:
            action.help, action.type = argparse.SUPPRESS, str  # compared with the default as given
        rest.setdefault(action.dest, []).append(action)
    parser._action_groups.clear()
    owners = {"objectives": " ".join(_owners(OBJECTIVES)), "perturbations": " ".join(_owners(PERTURBATIONS))}
    for title, names in _HELP.items():
        group = parser.add_argument_group(title)
        for name in names.format(**owners).split():
            group._group_actions += rest.pop(name)
    if show_all:
        parser.add_argument_group("all others")._group_actions += [one for actions in rest.values() for one in actions]
    return parser


def _titles(shipped: Mapping[str, type[Plugin]]) -> str:
    return f"{', '.join(f'{name} ({one.title})' for name, one in shipped.items())}, or your own as package.module:Class"


def _add_plugin_options(
    add: Callable[..., Any], assignments: str, shipped: Mapping[str, type[Plugin]], preset: Mapping[str, Any]
) -> None:
    """Flags for the options of the shipped classes, and one for assignments to any class."""
    for dest, owners in _owners(shipped).items():
        texts: dict[str, list[str]] = {}
        for name, option in owners.items():
            notes = "" if option.choices else option.range, preset.get(dest, option.default)
            texts.setdefault(cli.with_notes(option.help.replace("%", "%%"), *notes), []).append(name)
        option = next(iter(owners.values()))
        how: dict[str, Any] = {"type": option.type, "choices": option.choices or None}
        if option.type is bool:
            how = {"type": string_to_bool, "nargs": "?", "const": True}
        elif option.many:
            how["nargs"] = "+"
        text = "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
        add(f"--{dest}", default=argparse.SUPPRESS, help=text, **how)
    add(assignments, nargs="+", default=[], metavar="NAME=VALUE", help="of a class of your own; lists as a=1,2")


def _choose(
    names: Sequence[str], find: Callable[[str], type[Plugin]], flags: Mapping[str, Any], assignments: Sequence[str]
) -> list[Choice]:
    """Classes with their options; `LaserError` on what is unknown, not taken or out of range."""
    found = [find(name) for name in names]
    assigned, choices = parse_assignments(assignments), []
    for dest in assigned.keys() - {option.dest for plugin in found for option in plugin.options}:
        found[0].checked({dest: assigned[dest]})  # its error says which options there are
    given = {**flags, **assigned}
    for name, plugin in zip(names, found, strict=True):
        values = plugin.checked({option.dest: given[option.dest] for option in plugin.options if option.dest in given})
        choices.append(Choice(name, plugin, {option.dest: values[option.name] for option in plugin.options}))
    return choices


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Parse `argv` (default: the command line); exits as argparse does on what is unknown or out of range."""
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default=DEFAULT_PRESET)
    finder.add_argument("--help_all", action="store_true")
    for names in _BELONGING:
        finder.add_argument(*(f"--{name}" for name in names), dest=names[0])
    found, _ = finder.parse_known_args(argv)
    try:
        cli.refuse_lonely_launch("-m laser_hf train ... --use_cpu")
        preset = load_preset(found.preset, option_names())
    except LaserError as error:
        build_parser().error(str(error))
    for (name, *_), belonging in _BELONGING.items():
        if getattr(found, name) not in (None, preset.get(name)):
            preset = {key: value for key, value in preset.items() if key not in belonging}
    parser = build_parser(found.help_all, preset)
    flags = {dest: preset.pop(dest) for dest in {*_owners(OBJECTIVES), *_owners(PERTURBATIONS)} if dest in preset}
    parser.set_defaults(**preset)
    usual = {**flags, **vars(parser.parse_args([]))}
    if found.help_all:
        parser.print_help()
        parser.exit()
    try:
        model, data, training, rest = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        flags |= vars(rest)
        (objective,) = _choose([rest.objective], find_objective, flags, rest.objective_options)
        perturbations = _choose(rest.perturbations, find_perturbation, flags, rest.perturbation_options)
    except (ValueError, TypeError, AttributeError) as error:  # LaserError; and values of presets with another type
        parser.error(str(error))
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value != usual.get(name)}
    decides = {*_PLUGINS, *flags, *(name for group in (model, data, training) for name in recipe_of(group))}
    changed = sorted(given.keys() & decides - {"preset", "seed", "data_seed", "bf16", "fp16"})
    return Options(model, objective, perturbations, data, training, found.preset, changed)
