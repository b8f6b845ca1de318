"""Aligned speech: which utterances, words and phones are measured."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...data import BadAudio, decode_audio, find_audio_files
from ...encoders import SAMPLE_RATE
from ...errors import LaserError
from .tokens import Skipped, Token, long_words, read_alignments

logger = logging.getLogger(__name__)

SLACK = 0.03
"""Seconds that an alignment may reach beyond the end of its audio: it counts in whole frames."""


def _setting(default: float, meaning: str, least: int = 1) -> Any:
    return field(default=default, metadata={"help": meaning, "least": least})


@dataclass(frozen=True)
class DiscriminationSettings:
    """How much speech is measured. The defaults take seconds for a small encoder on one core.

    The shortest word compared is that of Carlin et al. (2011).
    """

    max_utterances: int = _setting(60, "utterances encoded, the speakers in turn, those rich in shared words first")
    min_letters: int = _setting(5, "letters of the shortest word compared", least=0)
    min_seconds: float = _setting(0.5, "duration of the shortest word compared", least=0)
    max_words: int = _setting(400, "word tokens compared, words said by several speakers first")
    max_pairs: int = _setting(100_000, "pairs of word tokens compared", least=2)
    phones_per_speaker: int = _setting(4, "tokens of each phone of each speaker in the ABX error")
    max_speakers: int = _setting(8, "speakers in the ABX error")
    seed: int = _setting(0, "of every selection", least=0)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least = getattr(self, one.name), one.metadata["least"]
            if not least <= value < math.inf:
                raise LaserError(f"--{one.name} must be at least {least}, got {value}")


DEFAULTS = DiscriminationSettings()


@dataclass
class AlignedSpeech:
    """Speech with times: what the diagnostics need of the data.

    Attributes:
        waveforms: `(samples,)` at 16 kHz by utterance.
        words, phones: the tokens selected; either may be empty.
        skipped: what of the alignment could not be used.
        all_phones: of these utterances, in order; `phones` are some of them.
    """

    waveforms: dict[str, Tensor]
    words: list[Token]
    phones: list[Token]
    skipped: Skipped
    all_phones: list[Token] = field(default_factory=list)

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
    settings: DiscriminationSettings = DEFAULTS,
) -> AlignedSpeech:
    """Read aligned speech and select from it by `settings`, the same at every call.

    `data` is a LibriSpeech tree or any folder of audio, in which a file is found by its name, the utterance's; `splits`
    are its sub-folders to use, all if not given. `alignments` is as `read_alignments` takes it. Raises `LaserError` if
    there is no such folder or file, no utterance of the alignment has audio there, or none could be used.
    """
    root = Path(data)
    for folder in [root, *(root / split for split in splits or ())]:
        if not folder.is_dir():
            raise LaserError(f"no folder {folder}; expected speech such as a LibriSpeech tree")
    listed = find_audio_files(root)
    files = {path.stem for path in listed}
    if splits:
        listed = [path for split in splits for path in find_audio_files(root / split)]
    wanted = {path.stem: path for path in listed}
    found = read_alignments(alignments)
    speakers = {token.utterance: token.speaker for token in [*found.phones, *found.words]}
    if lost := sorted(set(speakers) - files):
        found.skipped.names["aligned utterances without audio"] += lost
    usable = {utterance: speaker for utterance, speaker in speakers.items() if utterance in wanted}
    if not usable:
        where = f"{root} ({', '.join(splits)})" if splits else root
        found_by = f"which holds {len(wanted)} audio files; files are found by the utterance's name"
        raise LaserError(f"none of the {len(speakers)} utterances of {alignments} has audio in {where}, {found_by}")
    if len(wanted) < len(set(listed)):
        for path in listed:
            if path.stem in usable and path != wanted[path.stem]:
                raise LaserError(f"{path} and {wanted[path.stem]} have the name of one utterance; name one --split")
    long = long_words(found.words, settings.min_letters, settings.min_seconds)
    waveforms = {}
    for utterance in _spread(usable, long, settings.max_utterances, settings.seed):
        try:
            waveforms[utterance] = decode_audio(wanted[utterance]).waveform
        except BadAudio as error:
            found.skipped.names[f"utterances with unusable audio ({error.kind})"].append(utterance)
    words, phones = (_inside(tokens, waveforms, found.skipped) for tokens in (long, found.phones))
    if not words and not phones:
        what = f"no phone and no word of {settings.min_letters} letters and {settings.min_seconds:g} s"
        raise LaserError(f"{what} of {alignments} can be used; left out: {found.skipped}")
    if found.skipped.reasons:
        logger.warning("%s: left out %s", alignments, found.skipped)
    words = repeated_words(words, settings.max_words, settings.seed)
    all_phones, phones = phones, balanced(phones, settings.phones_per_speaker, settings.max_speakers, settings.seed)
    return AlignedSpeech(waveforms, words, phones, found.skipped, all_phones)


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
    for token in (token for token in tokens if token.utterance in waveforms):
        if token.end > len(waveforms[token.utterance]) / SAMPLE_RATE + SLACK:
            place = f"{token.utterance} {token.label} {token.end:.2f} s"
            skipped.names["tokens beyond the end of their audio"].append(place)
        else:
            kept.append(token)
    return kept


def repeated_words(words: Iterable[Token], count: int, seed: int = 0) -> list[Token]:
    """At most `count` tokens, word by word in seeded order: first words of several speakers, then the others."""
    by_word: dict[str, list[Token]] = defaultdict(list)
    for token in sorted(words):
        by_word[token.label].append(token)
    names = np.random.default_rng(seed).permutation(sorted(by_word)).tolist()
    names.sort(key=lambda name: len({token.speaker for token in by_word[name]}) < 2)  # stable
    return sorted([token for name in names for token in by_word[name]][:count])


def balanced(phones: Iterable[Token], per_cell: int, max_speakers: int, seed: int = 0) -> list[Token]:
    """At most `per_cell` tokens of each phone of each of at most `max_speakers` speakers, drawn by `seed`."""
    tokens = sorted(phones)
    generator = np.random.default_rng(seed)
    names = sorted({token.speaker for token in tokens})
    if len(names) > max_speakers:
        names = generator.choice(names, max_speakers, replace=False).tolist()
    cells: dict[tuple[str, str], list[Token]] = defaultdict(list)
    for token in tokens:
        if token.speaker in names:
            cells[token.speaker, token.label].append(token)
    kept = []
    for _, members in sorted(cells.items()):
        picks = generator.permutation(len(members))[:per_cell]
        kept += [members[pick] for pick in sorted(picks.tolist())]
    return kept
