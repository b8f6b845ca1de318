"""What `asr` and `pr` are: data, head and metric. Everything else in this folder serves both."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jiwer

from ...errors import LaserError
from . import recipe, targets
from .recipe import AsrRecipe, PrRecipe, Recipe
from .targets import Lexicon, UnusableText

if TYPE_CHECKING:
    from .heads import CtcHead


@dataclass(frozen=True)
class Decoded:
    """One utterance: recognised and true units (characters with `|`, or phones)."""

    id: str
    hypothesis: list[str]
    reference: list[str]


def error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """Sum of the edit distances over the sum of the reference lengths, in percent.

    A unit is a string without blanks. References must not be empty; `jiwer` says so.
    """
    return 100 * jiwer.process_words([" ".join(u) for u in references], [" ".join(u) for u in hypotheses]).wer


class CtcTask:
    """A CTC task. A subclass sets the attributes and says what it reads, trains and measures.

    Attributes:
        NAME: of the command, and in records.
        HELP: one line for `--help`.
        UNIT: what an error is counted in, in words.
        RECIPES: values by protocol, `superb` and `quick`.
        LABELS: of the classes; the first one is the CTC blank.
        END, UNKNOWN: classes of the end of an utterance and of units that `LABELS` lacks.
        PRIMARY: metric by which the head is chosen and reported.
        FIRST_BEST: a head is kept only if its dev value is below this; `None` for no limit.
    """

    NAME: ClassVar[str]
    HELP: ClassVar[str]
    UNIT: ClassVar[str]
    RECIPES: ClassVar[dict[str, Recipe]]
    LABELS: ClassVar[tuple[str, ...]]
    END: ClassVar[int]
    UNKNOWN: ClassVar[int]
    PRIMARY: ClassVar[str]
    FIRST_BEST: ClassVar[float | None] = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Options of `python -m laser_hf.superb NAME`."""
        recipe.add_arguments(parser, cls.RECIPES)

    @classmethod
    def run(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        """Train, choose, test; return the record."""
        from .run import run

        return run(cls, arguments)

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
    def symbols(cls, classes: Sequence[int]) -> list[str]:
        """Units of a target or a collapsed path: its labels without blank and `END`."""
        return [cls.LABELS[number] for number in classes if number not in (0, cls.END)]

    @classmethod
    def decode(cls, path: Sequence[int]) -> list[str]:
        """Units of a greedy path."""
        return cls.symbols(targets.collapse(path))

    @staticmethod
    def written(units: Sequence[str]) -> str:
        """Units as a text to read."""
        return " ".join(units)

    def describe(self) -> dict[str, Any]:
        """What a record says about the targets."""
        return {"targets": f"{len(self.LABELS)} classes"}

    def changed(self) -> dict[str, Any]:
        """In what the targets differ from SUPERB's, in the form of `recipe.changes`."""
        return {}


class Asr(CtcTask):
    """Characters by CTC on a frozen encoder, greedy decoding, no language model (S3PRL's `downstream/asr`).

    The head: linear projection, two bidirectional LSTM layers with dropout, SpecAugment on the weighted sum of all
    hidden states. WER and unit error rate are S3PRL's; CER counts blanks too.
    """

    NAME = "asr"
    HELP = "automatic speech recognition: word error rate of a CTC head on characters"
    UNIT = "words"
    RECIPES = recipe.ASR
    LABELS = targets.CHARACTERS
    END, UNKNOWN = 2, 3
    PRIMARY = "wer"
    FIRST_BEST = 100.0  # as in S3PRL

    def units(self, transcript: str) -> list[str]:
        """Upper-case characters, `|` after every word."""
        return list("|".join(targets.split_words(transcript)) + "|")

    def groups(self, samples: Sequence[int], labels: Sequence[int], values: AsrRecipe) -> list[list[int]]:
        """Twice `batch_size` utterances of similar length, halved when long (always, in effect)."""
        from .data import length_buckets

        return length_buckets(samples, 2 * values.batch_size, values.halve_above_samples)

    @classmethod
    def build_head(cls, values: AsrRecipe, layers: int, dim: int) -> CtcHead:
        """LSTM head with SpecAugment."""
        from .heads import CtcHead, LstmHead, SpecAugment

        augment = SpecAugment(**{entry.name: getattr(values, entry.name) for entry in dataclasses.fields(SpecAugment)})
        sizes = (values.projection_size, values.lstm_size, values.lstm_layers, values.dropout)
        return CtcHead(layers, LstmHead(dim, len(cls.LABELS), *sizes), augment)

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        """`wer`, `cer` and `uer` in percent."""
        references = [self.written(item.reference) for item in decoded]
        hypotheses = [self.written(item.hypothesis) for item in decoded]
        return {
            "wer": 100 * jiwer.process_words(references, hypotheses).wer,
            "cer": 100 * jiwer.process_characters(references, hypotheses).cer,
            "uer": error_rate([item.reference for item in decoded], [item.hypothesis for item in decoded]),
        }

    @staticmethod
    def written(units: Sequence[str]) -> str:
        """Words, separated by single spaces."""
        return " ".join("".join(units).replace("|", " ").split())


class Pr(CtcTask):
    """Phones with stress by CTC on a frozen encoder, greedy decoding (S3PRL's `downstream/ctc`, `libriphone.yaml`).

    The head: two linear maps on the weighted sum of all hidden states.

    Args:
        lexicon: pronunciations.
        oov: what happens to words that it lacks: `skip` their utterances (counted and listed) or `error`.
    """

    NAME = "pr"
    HELP = "phone recognition: phone error rate of a linear CTC head"
    UNIT = "phones"
    RECIPES = recipe.PR
    LABELS = targets.PHONES
    END, UNKNOWN = 1, 2
    PRIMARY = "per"

    def __init__(self, lexicon: Lexicon, oov: str = "skip") -> None:
        self.lexicon = lexicon
        self.oov = oov

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Those of every CTC task, `--lexicon` and `--oov`."""
        super().add_arguments(parser)
        parser.add_argument(
            "--lexicon",
            nargs="+",
            metavar="FILE",
            help="lexicon files (WORD PHONE PHONE ...), read in this order; of several pronunciations the first one "
            f"counts. SUPERB's: {' '.join(targets.SUPERB_LEXICON)}. Default: the CMU dictionary",
        )
        parser.add_argument(
            "--oov",
            choices=("skip", "error"),
            default="skip",
            help="utterances with a word that the lexicon lacks: skip them, counted and listed in the record, or stop",
        )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Pr:
        """With the lexicon files, or the CMU dictionary."""
        lexicon = Lexicon.from_files(arguments.lexicon) if arguments.lexicon else Lexicon.from_cmudict()
        return cls(lexicon, arguments.oov)

    def units(self, transcript: str) -> list[str]:
        """Phones; raises `UnusableText`, or `LaserError` for an unknown word with `oov="error"`."""
        try:
            return self.lexicon.phones(transcript)
        except UnusableText as error:
            if error.words and self.oov == "error":
                raise LaserError(f"{error.reason}; add it to the lexicon, or give --oov skip") from error
            raise

    def groups(self, samples: Sequence[int], labels: Sequence[int], values: PrRecipe) -> list[list[int]]:
        """Sliding windows over the training split by descending target length."""
        from .data import target_windows

        return target_windows(labels, samples, values.batch_size, values.halve_above_samples)

    @classmethod
    def build_head(cls, values: PrRecipe, layers: int, dim: int) -> CtcHead:
        """Linear head."""
        from .heads import CtcHead, LinearHead

        return CtcHead(layers, LinearHead(dim, len(cls.LABELS), values.projection_size))

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        """`per` in percent."""
        return {"per": error_rate([item.reference for item in decoded], [item.hypothesis for item in decoded])}

    @classmethod
    def decode(cls, path: Sequence[int]) -> list[str]:
        """Phones of a greedy path, repeats merged across blanks as S3PRL does."""
        return cls.symbols(targets.merge_without_blanks(path, (0, cls.END)))

    def describe(self) -> dict[str, Any]:
        """Lexicon and what happens to words that it lacks."""
        return {"lexicon": self.lexicon.source, "oov": self.oov}

    def changed(self) -> dict[str, Any]:
        """The lexicon, if it is not SUPERB's."""
        return {} if self.lexicon.is_superbs else {"lexicon": {"superb": "its two files", "here": self.lexicon.source}}


TASKS: dict[str, type[CtcTask]] = {task.NAME: task for task in (Asr, Pr)}
