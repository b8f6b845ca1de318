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
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from .. import cli
from ..data import PERTURBATIONS, find_perturbation
from ..errors import LaserError
from ..objectives import OBJECTIVES, find_objective
from ..plugins import Option, Plugin, parse_assignments
from ..records import portable
from .arguments import DataArguments, LaserTrainingArguments, ModelArguments
from .fields import OWN_METADATA, REFUSED, load_preset, preset_names, recipe_of

DEFAULT_PRESET = "hubert-base"

_DESCRIPTION = """\
Fine-tune a speech encoder with LASER: align each utterance with its speed- and pitch-perturbed copy. Or with another
objective: --objective soft_dtw, score, spin, mse_idm, or your own class.

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
    """An objective or a perturbation: its name as given (shipped, or `package.module:Class`), and its class.

    `values` are those of all its options, by `Option.dest`.
    """

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
        return portable(
            {
                "model": recipe_of(self.model),
                "objective": {"name": self.objective.name, **self.objective.values},
                "perturbations": {"name": [choice.name for choice in self.perturbations], **values},
                "data": recipe_of(self.data),
                "training": recipe_of(self.training),
            }
        )

    def value(self, name: str) -> Any:
        """The value of an option by its name, as text of an enumeration; `KeyError` if none in use has that name."""
        values = {"objective": self.objective.name, "perturbations": [choice.name for choice in self.perturbations]}
        for group in (self.model, self.data, self.training):
            values |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
        for choice in (self.objective, *self.perturbations):
            values |= choice.values
        return getattr(values[name], "value", values[name])


def _owners(shipped: Mapping[str, type[Plugin]]) -> dict[str, dict[str, Option]]:
    """Options of shipped classes: by destination, then by the name of the class."""
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


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def add_usage(self, usage, actions, groups, prefix=None):
        # The usage line of 150 options helps nobody.
        super().add_usage("%(prog)s [--preset NAME] [--option value ...]", [], [], prefix)


class _Device(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if values == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: there is no CUDA device")
        namespace.use_cpu = values == "cpu"


def build_parser(show_all: bool = False, preset: Mapping[str, Any] | None = None) -> HfArgumentParser:
    """The parser of `train.py`; its help lists inherited options with `show_all`, and plug-in values of the preset."""
    parser = _Parser(
        _GROUPS, description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    presets = f"recipe: {', '.join(preset_names())}, or a .json file of your own"
    parser.add_argument("--preset", default=DEFAULT_PRESET, help=presets)
    parser.add_argument("--help_all", action="store_true", help="list every option, also those of the Trainer")
    parser.add_argument(
        "--device", action=_Device, choices=["auto", "cpu", "cuda"], default=argparse.SUPPRESS, help="cpu is --use_cpu"
    )
    group = parser.add_argument_group("objective", "The loss. Its options are read by the objectives named.")
    group.add_argument("--objective", default="laser", help=_about(OBJECTIVES))
    _add_plugin_options(group, "--objective_options", OBJECTIVES, preset or {})
    group = parser.add_argument_group("perturbations", "What makes the perturbed view of an utterance.")
    text = f"one after the other. {_about(PERTURBATIONS)}"
    group.add_argument("--perturbations", nargs="+", default=["speed_pitch"], help=text)
    _add_plugin_options(group, "--perturbation_options", PERTURBATIONS, preset or {})
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    hidden = inherited - set(LaserTrainingArguments.__annotations__)
    for action in parser._actions:
        if action.dest in REFUSED or (action.dest in hidden and not show_all):
            action.help = argparse.SUPPRESS
        if action.dest in REFUSED:  # an empty text goes through `type`, too
            action.const, action.type = "", _refuse(action.default, REFUSED[action.dest])
    return parser


def _about(shipped: Mapping[str, type[Plugin]]) -> str:
    summaries = " ".join(f"{name}: {plugin.summary}" for name, plugin in shipped.items())
    return _escaped(f"{summaries} Or your own, as package.module:Class")


def _refuse(default: Any, why: str) -> Callable[[str], Any]:
    def refuse(value: str) -> Any:
        if value == default:
            return value
        raise argparse.ArgumentTypeError(f"it is not taken: {why}")

    return refuse


def _add_plugin_options(group, assignments: str, shipped: Mapping[str, type[Plugin]], preset: Mapping[str, Any]):
    """A flag for each option of the shipped classes, and one for assignments to any class."""
    for dest, owners in _owners(shipped).items():
        texts: dict[str, list[str]] = {}
        for name, option in owners.items():
            default = preset.get(dest, option.default)
            texts.setdefault(f"{option.help} (default: {default})", []).append(name)
        option = next(iter(owners.values()))
        how: dict[str, Any] = {"type": option.type, "choices": option.choices or None}
        if option.type is bool:
            how = {"type": string_to_bool, "nargs": "?", "const": True}
        elif option.many:
            how["nargs"] = "+"
        text = "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
        group.add_argument(f"--{dest}", default=argparse.SUPPRESS, help=_escaped(text), **how)
    text = "options of a class of your own; lists as a=1,2"
    group.add_argument(assignments, nargs="+", default=[], metavar="NAME=VALUE", help=text)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _choose(
    names: Sequence[str], find: Callable[[str], type[Plugin]], flags: Mapping[str, Any], assignments: Sequence[str]
) -> list[Choice]:
    """The classes of these names with their options; `LaserError` on what is unknown, not taken or out of range."""
    found = [find(name) for name in names]
    assigned = parse_assignments(assignments)
    known = [{option.dest for option in plugin.options} for plugin in found]
    for dest in assigned.keys() - set().union(*known):
        found[0].checked({dest: assigned[dest]})  # its error says which options there are
    choices = []
    for name, plugin, dests in zip(names, found, known, strict=True):
        values = {dest: value for dest, value in {**flags, **assigned}.items() if dest in dests}
        checked = plugin.checked(values)
        choices.append(Choice(name, plugin, {option.dest: checked[option.name] for option in plugin.options}))
    return choices


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Parse `argv` (default: the command line).

    Exits with a message, as argparse does, on unknown options, presets or preset keys and on values out of range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default=DEFAULT_PRESET)
    finder.add_argument("--help_all", action="store_true")
    for names in _BELONGING:
        finder.add_argument(*(f"--{name}" for name in names), dest=names[0])
    found, _ = finder.parse_known_args(argv)
    try:
        cli.refuse_lonely_launch("train.py ... --use_cpu")
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
