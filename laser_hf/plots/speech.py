"""What the pictures of a run show: one utterance in two views, and words with their times."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import BadAudio, Perturbation, SpeechSourceError, decode_audio, load_speech
from ..data.files import find_audio_files
from ..encoders import SAMPLE_RATE
from ..records import located
from ..superb.probing.alignments import Token, long_words, read_alignments
from ..superb.probing.diagnostics import SLACK
from .word_map import choose_words

logger = logging.getLogger(__name__)

DEMO_SPEECH = "{laser_hf}/demo/speech"
DEMO_SPLIT = "heldout"
WORD_TIMES = ("words.tsv", "alignments.tsv")
MIN_LETTERS, MIN_SECONDS = 5, 0.2  # shorter words are mostly function words, whose spoken forms vary
STREAM_LIMIT = 1000  # utterances of a stream among which one is looked for


@dataclass(frozen=True)
class ViewPair:
    """An utterance and its perturbed view.

    Attributes:
        utterance: its name.
        clean, perturbed: `(samples,)` float32, 16 kHz.
        drawn: parameters of the perturbation, as `Perturbation.draw` gives them.
        source: where the utterance comes from, in words.
    """

    utterance: str
    clean: torch.Tensor
    perturbed: torch.Tensor
    drawn: Mapping[str, Any]
    source: str = ""

    def __str__(self) -> str:
        return f"{self.utterance} ({self.source})" if self.source else self.utterance

    @property
    def perturbation(self) -> str:
        """What was done to the perturbed view, in words."""
        return ", ".join(_in_words(self.drawn)) or "no change"


def _in_words(drawn: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in drawn.items():
        if name == "parts":
            words += [word for part in value for word in _in_words(part)]
        elif name == "pitch":
            words.append(f"{value:+g} semitones")
        elif name == "gains":
            words.append(f"equalizer of {len(value)} bands")
        elif name != "seed" and isinstance(value, float | int | str):
            words.append(f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.3g}'}")
    return words


@dataclass(frozen=True)
class WordSpeech:
    """The same words by several speakers.

    Attributes:
        waveforms: `(samples,)` at 16 kHz by utterance.
        tokens: the words to be shown, as `choose_words` takes them.
        spoken: all words of every aligned utterance, in order.
        source: where the speech comes from, in words.
    """

    waveforms: dict[str, torch.Tensor]
    tokens: list[Token]
    spoken: dict[str, list[Token]]
    source: str


def source_name(source: str | Path) -> str:
    """A title's words for a source of speech: folder or id, without the way there."""
    path = Path(source)
    if path.resolve().is_relative_to(located(DEMO_SPEECH)):
        return "shipped speech, held-out voices" if path.name in (DEMO_SPLIT, "speech") else "shipped speech"
    return path.resolve().name if path.exists() else str(source)


def load_pair(
    source: str | Path,
    perturbation: Perturbation,
    drawn: Mapping[str, Any],
    *,
    splits: Sequence[str] | None = None,
    name: str | None = None,
    utterance: str | None = None,
    min_seconds: float = 0.5,
) -> ViewPair:
    """One utterance in two views.

    Args:
        source, name: as `load_speech` takes them; a dataset of the Hub is streamed.
        perturbation, drawn: make the second view.
        splits: where to look, one after the other; everywhere if not given.
        utterance: its id, or the last part of it; without one the first that can be used.
        min_seconds: shorter ones are passed over.

    Raises:
        SpeechSourceError: nothing usable at `source`.
        BadAudio: the utterance named cannot be used.
        ValueError: no such utterance, or none that can be used.
    """
    local = Path(source).exists()
    for split in splits or [None]:
        speech = load_speech(source, split, name=name, streaming=not local)
        for item in speech if local else itertools.islice(speech, STREAM_LIMIT):
            if utterance is not None and utterance not in (item["id"], Path(item["id"]).name):
                continue
            try:
                shortest = min_seconds if utterance is None else 0.1
                clean = decode_audio(item["audio"], SAMPLE_RATE, min_seconds=shortest).waveform
            except BadAudio:
                if utterance is not None:
                    raise
                continue
            return ViewPair(item["id"], clean, perturbation.apply(clean, **drawn), drawn, source_name(source))
    where = f"{source} ({', '.join(splits)})" if splits else str(source)
    if utterance is not None:
        among = "" if local else f" among the first {STREAM_LIMIT} utterances"
        raise ValueError(
            f"{where} holds no utterance {utterance!r}{among}; --utterance takes the name of an audio file"
        )
    raise ValueError(f"{where} holds no utterance of {min_seconds:g} seconds or more that can be decoded")


def find_word_times(data: str | Path) -> Path | None:
    """A file with word times (`words.tsv`, `alignments.tsv`) in the folder `data` or up to two folders above it."""
    folder = Path(data).resolve()
    for place in (folder, *folder.parents[:2]):
        for name in WORD_TIMES:
            if (place / name).is_file():
                return place / name
    return None


def load_words(
    data: str | Path, alignments: str | Path | None = None, splits: Sequence[str] | None = None
) -> WordSpeech:
    """The same words by several speakers, and the utterances that hold them.

    Args:
        data: a folder of audio; a file is found by its name, the utterance's.
        alignments: word times as `read_alignments` takes them; by default what `find_word_times` finds.
        splits: sub-folders of `data` to use; all if not given.

    Raises:
        FileNotFoundError: no such folder or file, or no word times given and none found.
        ValueError: no word times, or no word of two speakers in this speech.
    """
    folders = [Path(data) / split for split in splits] if splits else [Path(data)]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; expected audio files, whose names are those of utterances")
    if alignments is None:
        alignments = find_word_times(data)
        if alignments is None:
            raise FileNotFoundError(
                f"no word times for {data}: neither {' nor '.join(WORD_TIMES)} lies in it or up to two folders above "
                "it; give --alignments FILE"
            )
    files = {path.stem: path for folder in folders for path in find_audio_files(folder)}
    words = read_alignments(alignments, utterances=files).words
    waveforms: dict[str, torch.Tensor] = {}
    tokens = []
    for token in choose_words(long_words(words, MIN_LETTERS, MIN_SECONDS)):
        if token.utterance not in waveforms:
            try:
                waveforms[token.utterance] = decode_audio(files[token.utterance], SAMPLE_RATE).waveform
            except BadAudio as error:
                logger.warning("%s is left out: %s", files[token.utterance], error)
                waveforms[token.utterance] = torch.zeros(0)
        if token.end <= len(waveforms[token.utterance]) / SAMPLE_RATE + SLACK:
            tokens.append(token)
    if len(tokens) < 3:
        raise ValueError(
            f"of the {len(words)} words that {alignments} gives for the {len(files)} audio files of {data}, none of "
            f"{MIN_LETTERS} letters and {MIN_SECONDS:g} s is said by two speakers within their audio"
        )
    spoken: dict[str, list[Token]] = {}
    for word in words:
        spoken.setdefault(word.utterance, []).append(word)
    used = {token.utterance for token in tokens}
    waveforms = {name: waveform for name, waveform in waveforms.items() if name in used}
    return WordSpeech(waveforms, tokens, spoken, source_name(data))


def held_out_words(held_out: str | Path | None) -> WordSpeech:
    """Words of a run's own held-out speech where that is a folder with word times, else of the shipped speech.

    Raises:
        OSError, ValueError: the shipped speech cannot be read.
    """
    if held_out and Path(held_out).is_dir():
        try:
            return load_words(held_out)
        except (OSError, ValueError) as error:
            logger.warning("The words are those of the shipped speech: %s", error)
    return load_words(located(DEMO_SPEECH), splits=[DEMO_SPLIT])


def held_out_pair(
    held_out: str | Path | None,
    perturbation: Perturbation,
    drawn: Mapping[str, Any],
    *,
    split: str | None = None,
    name: str | None = None,
    utterance: str | None = None,
) -> ViewPair:
    """An utterance of a run's own held-out speech, else of the shipped speech.

    Args:
        held_out, split, name: source of speech as `load_speech` takes it; `None` for the shipped speech.
        perturbation, drawn, utterance: as in `load_pair`.

    Raises:
        ValueError: neither holds the utterance named.
    """
    if held_out:
        try:
            splits = [split] if split else None
            return load_pair(held_out, perturbation, drawn, splits=splits, name=name, utterance=utterance)
        except (SpeechSourceError, OSError, ValueError) as error:
            logger.warning("The utterance is looked for in the shipped speech: %s", error)
    return load_pair(located(DEMO_SPEECH), perturbation, drawn, splits=[DEMO_SPLIT], utterance=utterance)
