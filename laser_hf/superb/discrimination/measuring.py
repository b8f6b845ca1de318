"""Diagnostics of an encoder's frames on a small selection of aligned speech, in seconds.

`load_aligned_speech` selects utterances, words and phones; `measure` gives word discrimination (`words`),
an ABX-like phone error (`abx`), and the mean pairwise cosine and the effective rank of the frames. A training run
measures at every evaluation, and a search uses one number as its target: `word_average_precision`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import BadAudio, decode_audio, find_audio_files
from ...encoders import SAMPLE_RATE, SpeechEncoder
from ...errors import LaserError
from ...ops.statistics import effective_rank, mean_pairwise_cosine
from ..features import EncoderFeatures, Features
from ..frame_store import encode
from .abx import AbxReport, abx_error, balanced
from .alignments import Skipped, Token, long_words, read_alignments
from .words import NoComparison, WordReport, word_discrimination

logger = logging.getLogger(__name__)

MAX_FRAMES = 512  # of the cosine and the effective rank, as in the training monitor
SLACK = 0.03
"""Seconds that an alignment may reach beyond the end of its audio: it counts in whole frames."""


def _setting(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class DiscriminationSettings:
    """How much speech is measured. The defaults take seconds for a small encoder on one core.

    The shortest word compared is that of Carlin et al. (2011).
    """

    max_utterances: int = _setting(60, "utterances encoded, the speakers in turn, those rich in shared words first")
    min_letters: int = _setting(5, "letters of the shortest word compared")
    min_seconds: float = _setting(0.5, "duration of the shortest word compared")
    max_words: int = _setting(400, "word tokens compared, words said by several speakers first")
    max_pairs: int = _setting(100_000, "pairs of word tokens compared")
    phones_per_speaker: int = _setting(4, "tokens of each phone of each speaker in the ABX error")
    max_speakers: int = _setting(8, "speakers in the ABX error")
    seed: int = _setting(0, "of every selection")


# ---------------------------------------------------------------------------------------------------------- selecting


@dataclass
class AlignedSpeech:
    """Speech with times: what the diagnostics need of the data.

    Attributes:
        waveforms: `(samples,)` at 16 kHz by utterance.
        words, phones: the tokens selected; either may be empty.
        skipped: what of the alignment could not be used.
    """

    waveforms: dict[str, Tensor]
    words: list[Token]
    phones: list[Token]
    skipped: Skipped

    def counts(self) -> dict[str, Any]:
        """What was selected, for records."""
        return {
            "utterances": len(self.waveforms),
            "seconds": round(sum(map(len, self.waveforms.values())) / SAMPLE_RATE, 1),
            "words": len(self.words),
            "phones": len(self.phones),
            "speakers": len({token.speaker for token in [*self.words, *self.phones]}),
            "skipped": self.skipped.reasons,
        }


def load_aligned_speech(
    data: str | Path,
    alignments: str | Path,
    splits: Sequence[str] | None = None,
    settings: DiscriminationSettings = DiscriminationSettings(),
) -> AlignedSpeech:
    """Read aligned speech and select from it by `settings`, the same at every call.

    Args:
        data: a LibriSpeech tree or any folder of audio; a file is found by its name, the utterance's.
        alignments: as `read_alignments` takes it.
        splits: sub-folders of `data` to use; all if not given.

    Raises:
        LaserError: no such folder or file, no utterance of the alignment has audio there, or none could be used.
    """
    root = Path(data)
    for folder in [root, *(root / split for split in splits or ())]:
        if not folder.is_dir():
            raise LaserError(f"no folder {folder}; expected speech such as a LibriSpeech tree")
    files = {path.stem: path for path in find_audio_files(root)}
    wanted = files
    if splits:
        wanted = {path.stem: path for split in splits for path in find_audio_files(root / split)}
    found = read_alignments(alignments)
    skipped = found.skipped
    speakers = {token.utterance: token.speaker for token in [*found.phones, *found.words]}
    for utterance in sorted(set(speakers) - set(files)):
        skipped.add("aligned utterances without audio", utterance)
    usable = {utterance: speaker for utterance, speaker in speakers.items() if utterance in wanted}
    if not usable:
        raise LaserError(
            f"none of the {len(speakers)} utterances of {alignments} has audio in {root}"
            + (f" ({', '.join(splits)})" if splits else "")
            + f", which holds {len(wanted)} audio files; files are found by the utterance's name"
        )
    long = long_words(found.words, settings.min_letters, settings.min_seconds)
    waveforms = {}
    for utterance in _spread(usable, long, settings.max_utterances, settings.seed):
        try:
            waveforms[utterance] = decode_audio(wanted[utterance]).waveform
        except BadAudio as error:
            skipped.add(f"utterances with unusable audio ({error.kind})", utterance)
    words, phones = (_inside(tokens, waveforms, skipped) for tokens in (long, found.phones))
    if not words and not phones:
        raise LaserError(
            f"no phone and no word of {settings.min_letters} letters and {settings.min_seconds:g} s of {alignments} "
            f"can be used; left out: {skipped}"
        )
    if skipped.reasons:
        logger.warning("%s: left out %s", alignments, skipped)
    return AlignedSpeech(
        waveforms,
        repeated_words(words, settings.max_words, settings.seed),
        balanced(phones, settings.phones_per_speaker, settings.max_speakers, settings.seed),
        skipped,
    )


def _spread(speakers: Mapping[str, str], words: Iterable[Token], count: int, seed: int) -> list[str]:
    """At most `count` utterances, the speakers in turn; of each first those rich in words that others say too."""
    words = [word for word in words if word.utterance in speakers]
    said_by: dict[str, set[str]] = defaultdict(set)
    for word in words:
        said_by[word.label].add(word.speaker)
    shared = Counter(word.utterance for word in words if len(said_by[word.label]) > 1)
    generator = np.random.default_rng(seed)
    queues: dict[str, list[str]] = defaultdict(list)
    for utterance in generator.permutation(sorted(speakers)).tolist():
        queues[speakers[utterance]].append(utterance)
    turns = []
    for speaker in generator.permutation(sorted(queues)).tolist():
        queue = sorted(queues[speaker], key=lambda utterance: -shared[utterance])  # stable: ties stay in seeded order
        turns += enumerate(queue)
    turns.sort(key=lambda entry: entry[0])
    return sorted(utterance for _, utterance in turns[:count])


def _inside(tokens: Iterable[Token], waveforms: Mapping[str, Tensor], skipped: Skipped) -> list[Token]:
    """Tokens of decoded utterances that end before these do."""
    kept = []
    for token in tokens:
        if token.utterance not in waveforms:
            continue
        if token.end > len(waveforms[token.utterance]) / SAMPLE_RATE + SLACK:
            skipped.add("tokens beyond the end of their audio", f"{token.utterance} {token.label} {token.end:.2f} s")
        else:
            kept.append(token)
    return kept


def repeated_words(words: Iterable[Token], count: int, seed: int = 0) -> list[Token]:
    """At most `count` tokens, word by word in seeded order: first words of several speakers, then the others."""
    by_word: dict[str, list[Token]] = defaultdict(list)
    for token in sorted(words):
        by_word[token.label].append(token)
    names = sorted(by_word)
    names = [names[pick] for pick in np.random.default_rng(seed).permutation(len(names))]
    names.sort(key=lambda name: len({token.speaker for token in by_word[name]}) < 2)  # stable
    return sorted([token for name in names for token in by_word[name]][:count])


# ---------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class DiscriminationReport:
    """All diagnostics of one layer; a part is `None` where the speech has no such tokens or allows no comparison."""

    words_across: WordReport | None
    words_all: WordReport | None
    abx: AbxReport | None
    frame_cosine: float
    effective_rank: float

    def summary(self) -> dict[str, float]:
        """The scalars by their short names, without those that could not be measured."""
        values = {
            "word_ap_across": self.words_across and self.words_across.average_precision,
            "word_ap": self.words_all and self.words_all.average_precision,
            "abx_across": self.abx and self.abx.across,
            "abx_within": self.abx and self.abx.within,
            "frame_cosine": self.frame_cosine,
            "effective_rank": self.effective_rank,
        }
        return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def measure(
    features: Features,
    speech: AlignedSpeech,
    layers: Sequence[int] = (-1,),
    settings: DiscriminationSettings = DiscriminationSettings(),
    progress: bool = False,
) -> list[DiscriminationReport]:
    """All diagnostics of each of `layers` (negative ones from the last), on frames that `features` makes.

    For an encoder in training, `measure(EncoderFeatures(encoder), speech)[0].summary()` is what an evaluator returns.
    The encoder's mode and PyTorch's random generators stay as they are.
    """
    frames = encode(features, speech.waveforms, [layer % features.layers for layer in layers], "frames" * progress)
    return [_measure_layer(frames.pop(0), speech, features, settings, progress) for _ in layers]


def _measure_layer(
    frames: Mapping[str, Tensor],
    speech: AlignedSpeech,
    features: Features,
    settings: DiscriminationSettings,
    progress: bool,
) -> DiscriminationReport:
    words: dict[str, WordReport | None] = {"across": None, "all": None}
    for speakers in words:
        try:
            words[speakers] = word_discrimination(
                frames,
                speech.words,
                max_pairs=settings.max_pairs,
                seed=settings.seed,
                speakers=speakers,
                progress=f"words ({speakers} speakers)" * progress,
                **_times(features),
            )
        except NoComparison as error:
            logger.warning("no word discrimination (%s): %s", speakers, error)
    abx = abx_error(frames, speech.phones, progress="phones" * progress, **_times(features)) if speech.phones else None
    stacked = torch.cat([frames[name] for name in sorted(frames)])
    stacked = stacked[torch.linspace(0, len(stacked) - 1, min(MAX_FRAMES, len(stacked))).long()]
    return DiscriminationReport(
        words["across"], words["all"], abx, mean_pairwise_cosine(stacked), effective_rank(stacked)
    )


def word_average_precision(
    encoder: SpeechEncoder,
    speech: AlignedSpeech,
    layer: int = -1,
    settings: DiscriminationSettings = DiscriminationSettings(),
) -> float:
    """One number for an encoder: average precision of same-word pairs of different speakers; higher is better.

    Raises:
        NoComparison: the words of `speech` allow no comparison.
    """
    features = EncoderFeatures(encoder)
    (frames,) = encode(features, speech.waveforms, [layer % features.layers])
    return word_discrimination(
        frames, speech.words, max_pairs=settings.max_pairs, seed=settings.seed, **_times(features)
    ).average_precision


def _times(features: Features) -> dict[str, float]:
    """Frame rate, and the time of the middle of frame 0."""
    return {"frame_rate": 1 / features.frame_seconds, "first_seconds": features.shortest / 2 / SAMPLE_RATE}
