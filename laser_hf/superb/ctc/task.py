"""The frame of a CTC task: recipe and options, and what a subclass says about targets, head and metrics."""

from __future__ import annotations

import argparse
import dataclasses
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jiwer

from ...errors import LaserError
from ...plugins import Option, field_options, value

if TYPE_CHECKING:
    from .heads import CtcHead


LISTED = 50
"""Skipped utterances, and words that the lexicon lacks, that a record lists by name; all of them are counted."""


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a CTC head. The defaults are SUPERB's."""

    max_steps: int = value(200_000, "updates", low=1)
    eval_steps: int = value(2_000, "updates between two decodings of the dev split, which choose the head", low=1)
    learning_rate: float = value(1e-4, "of Adam, constant; of several the best on dev counts", above=0)
    max_grad_norm: float = value(1.0, "gradients are clipped to this norm", above=0)
    batch_size: int = value(16, "utterances of a batch", low=1)
    projection_size: int = value(1024, "dimension to which features are projected first", low=1)
    max_train_utterances: int | None = value(None, "train on so many, spread evenly over the split", kind=int, low=2)
    precision: str = value("fp32", "fp32 or bf16 (mixed)")


def choose_recipes(arguments: argparse.Namespace, recipes: Mapping[str, Recipe]) -> list[Recipe]:
    """The protocol's recipe with the values of the command line, for each learning rate."""
    recipe = recipes[arguments.protocol]
    given = {name: getattr(arguments, name) for name in vars(recipe) if name in arguments}
    rates = given.pop("learning_rate", [recipe.learning_rate])
    # As the Trainer does: --bf16, or else what accelerate was told.
    mixed = "bf16" if arguments.bf16 else os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", "bf16"):
        raise LaserError(f"heads train in fp32 or, with --bf16, in bf16; ACCELERATE_MIXED_PRECISION is {mixed}")
    recipe = dataclasses.replace(recipe, **given, precision="fp32" if mixed == "no" else mixed)
    if recipe.eval_steps > recipe.max_steps:
        raise LaserError(f"--eval_steps {recipe.eval_steps} exceeds --max_steps {recipe.max_steps}: no head is chosen")
    return [dataclasses.replace(recipe, learning_rate=rate) for rate in dict.fromkeys(rates)]


def changes(recipe: Recipe, superb: Recipe) -> dict[str, dict[str, Any]]:
    """Values in which `recipe` differs from SUPERB's: `{name: {"superb": ..., "here": ...}}`."""
    pairs = {name: {"superb": one, "here": getattr(recipe, name)} for name, one in vars(superb).items()}
    return {name: pair for name, pair in pairs.items() if pair["superb"] != pair["here"]}


def is_superb(changed: dict[str, Any], learning_rate: float) -> bool:
    """Whether a run with these changes may carry the name superb: SUPERB's rules let the learning rate be tuned."""
    return set(changed) <= {"learning_rate"} and 1e-7 <= learning_rate <= 1e-1


class UnusableText(LaserError):
    """A transcript without a target: a kind to be counted, a `reason`, and the `words` that are unknown, each once."""

    def __init__(self, kind: str, reason: str, words: Sequence[str] = ()) -> None:
        super().__init__(f"{kind}: {reason}")
        self.reason, self.words = reason, list(words)


def split_words(transcript: str) -> list[str]:
    """Upper-case words of a transcript, composed (NFC); raises `UnusableText` if it has none."""
    words = unicodedata.normalize("NFC", transcript.upper()).split()
    if not words:
        raise UnusableText("missing_transcript", "the transcript has no words")
    return words


def error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """Sum of the edit distances over the sum of the reference lengths, in percent; units hold no blanks."""
    return 100 * jiwer.process_words([" ".join(u) for u in references], [" ".join(u) for u in hypotheses]).wer


def collapse(path: Sequence[Any]) -> list[Any]:
    """Labels of a frame-wise path: repeats merged, then blanks (0) dropped, so that `A _ A` is `A A`."""
    return [label for before, label in zip([None, *path], path, strict=False) if label not in (before, 0)]


@dataclass(frozen=True)
class Decoded:
    """One utterance: recognised and true units (characters with `|`, or phones)."""

    id: str
    hypothesis: list[str]
    reference: list[str]


class CtcTask:
    """A CTC task. A subclass sets the attributes and says what it reads, trains and measures."""

    NAME: ClassVar[str]  # of the command, and in records
    HELP: ClassVar[str]  # one line for `--help`
    UNIT: ClassVar[str]  # what an error is counted in, in words
    RECIPES: ClassVar[dict[str, Recipe]]  # values by protocol, `superb` and `quick`
    LABELS: ClassVar[tuple[str, ...]]  # of the classes; the first one is the CTC blank
    END: ClassVar[int]  # class of the end of an utterance
    UNKNOWN: ClassVar[int]  # class of units that `LABELS` lacks
    PRIMARY: ClassVar[str]  # metric by which the head is chosen and reported
    FIRST_BEST: ClassVar[float | None] = None  # a head is kept only if its dev value is below this; `None`: no limit

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Options of `laser-hf superb NAME`; the protocol decides values of the recipe that are not given."""
        add = parser.add_argument
        add("--model", required=True, help="encoder: hub id or folder (HuBERT, WavLM, wav2vec 2.0, data2vec-audio)")
        add("--revision", help="branch, tag or commit of the encoder")
        add("--do_normalize", action="store_true", help="scale waveforms to mean 0 and variance 1 (for large encoders)")
        add("--data", required=True, help="a LibriSpeech tree with transcripts, a saved data set, or a hub id")
        add("--data_name", help="configuration of a hub data set")
        add("--data_revision", help="revision of a hub data set")
        add("--audio_column", default="audio", help="audio column of a data set (its text column: `text`)")
        add("--train_split", default="train-clean-100", help="split, or sub-folder of the tree")
        add("--dev_split", default="dev-clean", help="chooses the head")
        add("--test_split", default=["test-clean"], nargs="+", help="one or several; the first one gives the result")
        add("--output_dir", type=Path, required=True, help="results.json, head, decoded files and plots go here")
        add("--overwrite_output_dir", action="store_true", help="start over: delete what an earlier run left there")
        text = "superb: the exact recipe, for full LibriSpeech and a GPU. quick: for small corpora; no SUPERB numbers"
        add("--protocol", choices=tuple(cls.RECIPES), default="superb", help=text)
        text = "heads with the seeds SEED, SEED+1, ..., on the same batches"
        add("--runs", type=Option("--runs", 1, "", low=1), default=1, help=text)
        add("--seed", type=int, default=1337, help="of the (first) run")
        text = "values of the protocol (superb / quick); a changed value is recorded, and is not called superb"
        add = parser.add_argument_group("recipe", text).add_argument
        for kind in field_options(type(cls.RECIPES["superb"])):
            if kind.name[2:] != "precision":  # --bf16
                values = [getattr(recipe, kind.name[2:]) for recipe in cls.RECIPES.values()]
                shown = " / ".join("all" if one is None else f"{one:g}" for one in values)
                several = {"nargs": "+"} if kind.name == "--learning_rate" else {}
                add(kind.name, type=kind, default=argparse.SUPPRESS, help=f"{kind.help}; default {shown}", **several)
        text = "these change a result by rounding and random draws only"
        add = parser.add_argument_group("machine", text).add_argument
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
        add("--bf16", action="store_true", help="mixed precision; not SUPERB's, and the record says so")
        numbers = (
            Option("--micro_batch_size", None, "utterances trained on at once; default: the batch", int, low=1),
            Option("--eval_batch_size", 16, "utterances decoded at once", low=1),
            Option("--dataloader_num_workers", 0, "processes that decode audio", low=0),
            Option("--logging_steps", None, "updates between two log lines; default: eval_steps / 4", int, low=1),
        )
        for number in numbers:
            add(number.name, type=number, default=number.default, help=number.help)
        text = "keep hidden states on disk, to encode an utterance once; dev: of that split; auto: yes for quick"
        add("--cache_features", choices=("auto", "yes", "dev", "no"), default="auto", help=text)
        add("--report_to", choices=("tensorboard", "wandb", "none"), default="tensorboard", help="where to log")
        add("--ddp_backend", help="gloo for several processes on a CPU")
        add("--disable_tqdm", action="store_true", help="no progress bars")

    @classmethod
    def run(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        """Train, choose, test; return the record."""
        from .run import Command

        return Command(cls, arguments).run()

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> CtcTask:
        """The task as the command line describes it."""
        return cls()

    def units(self, transcript: str) -> list[str]:
        """Units to recognise; raises `UnusableText`."""
        raise NotImplementedError

    def groups(self, samples: Sequence[int], labels: Sequence[int], values: Any) -> list[list[int]]:
        """Batches of the training split by a recipe, from the lengths of utterances (samples) and of targets."""
        raise NotImplementedError

    @classmethod
    def build_head(cls, values: Any, layers: int, dim: int) -> CtcHead:
        """The head of a recipe for an encoder with `layers` hidden states of `dim`."""
        raise NotImplementedError

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        """Error rates in percent, `PRIMARY` first."""
        raise NotImplementedError

    def encode(self, transcript: str) -> list[int]:
        """CTC target: the classes of the units, and `END`; raises `UnusableText`."""
        index = {label: number for number, label in enumerate(self.LABELS)}
        return [index.get(unit, self.UNKNOWN) for unit in self.units(transcript)] + [self.END]

    @classmethod
    def decode(cls, path: Sequence[int]) -> list[str]:
        """Units of a greedy path: its collapsed labels without `END`."""
        return [cls.LABELS[number] for number in collapse(path) if number != cls.END]

    @staticmethod
    def written(units: Sequence[str]) -> str:
        """Units as a text to read."""
        return " ".join(units)

    def describe(self) -> dict[str, Any]:
        """What a record says about the targets."""
        return {"targets": f"{len(self.LABELS)} classes"}

    def changed(self) -> dict[str, Any]:
        """In what the targets differ from SUPERB's, in the form of `changes`."""
        return {}
