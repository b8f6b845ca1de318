"""ASR and PR as CTC tasks: targets of a transcript, frame-wise paths back to words or phones, error rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jiwer

from . import phones, text
from .batches import length_buckets, target_windows
from .corpus import UnusableText
from .ctc import collapse, merge_without_blanks
from .lexicon import Lexicon, UnknownWords
from .recipe import AsrRecipe, PrRecipe


@dataclass(frozen=True)
class Decoded:
    """One utterance: recognised and true units (characters with `|`, or phones)."""

    id: str
    hypothesis: list[str]
    reference: list[str]


def error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """Sum of the edit distances over the sum of the reference lengths: a fraction.

    A unit is a string without blanks. References must not be empty; `jiwer` says so.
    """
    pairs = [" ".join(units) for units in references], [" ".join(units) for units in hypotheses]
    return jiwer.process_words(*pairs).wer


class AsrTask:
    """Characters, by SUPERB's vocabulary. WER and unit error rate are S3PRL's; CER counts blanks as characters."""

    name: ClassVar[str] = "asr"
    vocabulary: ClassVar[tuple[str, ...]] = text.VOCABULARY
    primary: ClassVar[str] = "wer"
    first_best: ClassVar[float] = 100.0
    """A probe is kept only where its dev WER is below this, as in S3PRL."""

    def encode(self, transcript: str) -> list[int]:
        """CTC target."""
        try:
            return text.encode(transcript)
        except ValueError as error:
            raise UnusableText("missing_transcript", str(error)) from error

    @staticmethod
    def decode(path: Sequence[int]) -> list[str]:
        """Characters of a greedy path."""
        return text.symbols(collapse(path, text.BLANK))

    @staticmethod
    def reference(target: Sequence[int]) -> list[str]:
        """Characters of a target."""
        return text.symbols(target)

    @staticmethod
    def written(units: Sequence[str]) -> str:
        """Words, for files and people."""
        return text.words(units)

    def groups(self, samples: Sequence[int], labels: Sequence[int], recipe: AsrRecipe) -> list[list[int]]:
        """Batches of the training split: nominally twice `batch_size`, halved when long (always, in effect)."""
        return length_buckets(samples, 2 * recipe.batch_size, recipe.halve_above_samples)

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        """`wer`, `cer` and `uer` in percent."""
        references = [text.words(item.reference) for item in decoded]
        hypotheses = [text.words(item.hypothesis) for item in decoded]
        return {
            "wer": 100 * jiwer.process_words(references, hypotheses).wer,
            "cer": 100 * jiwer.process_characters(references, hypotheses).cer,
            "uer": 100 * error_rate([item.reference for item in decoded], [item.hypothesis for item in decoded]),
        }

    def describe(self) -> dict[str, Any]:
        """What a record says about the targets."""
        return {"targets": f"{len(self.vocabulary)} characters and specials"}


class PrTask:
    """Phones with stress, by a lexicon.

    Args:
        lexicon: pronunciations.
        oov: what to do about words that it lacks: "skip" their utterances (counted and listed) or "error".

    Raises:
        ValueError: another `oov`.
    """

    name: ClassVar[str] = "pr"
    vocabulary: ClassVar[tuple[str, ...]] = phones.VOCABULARY
    primary: ClassVar[str] = "per"
    first_best: ClassVar[float] = math.inf

    def __init__(self, lexicon: Lexicon, oov: str = "skip"):
        if oov not in ("skip", "error"):
            raise ValueError(f"oov must be 'skip' or 'error', got {oov!r}")
        self.lexicon = lexicon
        self.oov = oov

    def encode(self, transcript: str) -> list[int]:
        """CTC target; raises `UnusableText` (`unknown_word`), or `UnknownWords` with `oov="error"`."""
        try:
            return phones.encode(self.lexicon.phones(transcript))
        except UnknownWords as error:
            if self.oov == "error":
                raise
            raise UnusableText("unknown_word", str(error), error.words) from error
        except ValueError as error:
            raise UnusableText("missing_transcript", str(error)) from error

    @staticmethod
    def decode(path: Sequence[int]) -> list[str]:
        """Phones of a greedy path, repeats merged across blanks as S3PRL does."""
        return phones.symbols(merge_without_blanks(path, (phones.BLANK, phones.END)))

    @staticmethod
    def reference(target: Sequence[int]) -> list[str]:
        """Phones of a target."""
        return phones.symbols(target)

    @staticmethod
    def written(units: Sequence[str]) -> str:
        """Phones, for files and people."""
        return " ".join(units)

    def groups(self, samples: Sequence[int], labels: Sequence[int], recipe: PrRecipe) -> list[list[int]]:
        """Sliding windows over the training split by descending target length."""
        return target_windows(labels, samples, recipe.batch_size, recipe.halve_above_samples)

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        """`per` in percent.

        S3PRL reads an empty hypothesis as one empty phone: a substitution and one deletion fewer, the same distance.
        """
        hypotheses = [item.hypothesis or ["<empty>"] for item in decoded]
        return {"per": 100 * error_rate([item.reference for item in decoded], hypotheses)}

    def describe(self) -> dict[str, Any]:
        """What a record says about the targets."""
        return {"lexicon": self.lexicon.source, "oov": self.oov}


CtcTask = AsrTask | PrTask
TASKS: dict[str, type[AsrTask] | type[PrTask]] = {"asr": AsrTask, "pr": PrTask}
