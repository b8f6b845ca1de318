"""Aligned speech: which utterances, words and phones are measured."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ...data import BadAudio, decode_audio, find_audio_files
from ...encoders import SAMPLE_RATE
from ...errors import LaserError
from ...plugins import field_options, value
from .tokens import AlignedSpeech, Token, long_words, read_alignments

logger = logging.getLogger(__name__)

SLACK = 0.03
"""Seconds that an alignment may reach beyond the end of its audio: it counts in whole frames."""


@dataclass(frozen=True)
class DiscriminationSettings:
    """How much is measured; by default seconds' worth for a small encoder, and the words of Carlin et al. (2011)."""

    max_utterances: int = value(60, "utterances encoded, speakers in turn, those rich in shared words first", low=1)
    min_letters: int = value(5, "letters of the shortest word compared", low=0)
    min_seconds: float = value(0.5, "duration of the shortest word compared", low=0)
    max_words: int = value(400, "word tokens compared, words said by several speakers first", low=1)
    max_pairs: int = value(100_000, "pairs of word tokens compared", low=2)
    phones_per_speaker: int = value(4, "tokens of each phone of each speaker in the ABX error", low=1)
    max_speakers: int = value(8, "speakers in the ABX error", low=1)
    seed: int = value(0, "of every selection", low=0)

    def __post_init__(self) -> None:
        for option in field_options(type(self)):
            option.check(getattr(self, option.name[2:]))


DEFAULTS = DiscriminationSettings()


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
    everything = find_audio_files(root)
    listed = [path for split in splits for path in find_audio_files(root / split)] if splits else everything
    wanted = {path.stem: path for path in listed}
    found = read_alignments(alignments)
    speakers = {token.utterance: token.speaker for token in [*found.phones, *found.words]}
    if lost := sorted(set(speakers) - {path.stem for path in everything}):
        found.skipped["aligned utterances without audio"] += lost
    usable = {utterance: speaker for utterance, speaker in speakers.items() if utterance in wanted}
    if not usable:
        where = f"{root} ({', '.join(splits)})" if splits else root
        found_by = f"which holds {len(wanted)} audio files; files are found by the utterance's name"
        raise LaserError(f"none of the {len(speakers)} utterances of {alignments} has audio in {where}, {found_by}")
    for path in listed:
        if path.stem in usable and path != wanted[path.stem]:
            raise LaserError(f"{path} and {wanted[path.stem]} have the name of one utterance; name one --split")
    long = long_words(found.words, settings.min_letters, settings.min_seconds)
    waveforms = {}
    for utterance in _spread(usable, long, settings.max_utterances, settings.seed):
        try:
            waveforms[utterance] = decode_audio(wanted[utterance]).waveform
        except BadAudio as error:
            found.skipped[f"utterances with unusable audio ({error.kind})"].append(utterance)
    words, phones = (_inside(tokens, waveforms, found.skipped) for tokens in (long, found.phones))
    lost = found.reasons.items()
    left_out = "; ".join(f"{one['count']} {why}, as {', '.join(one['first'])}" for why, one in lost)
    if not words and not phones:
        what = f"no phone and no word of {settings.min_letters} letters and {settings.min_seconds:g} s"
        raise LaserError(f"{what} of {alignments} can be used; left out: {left_out}")
    if left_out:
        logger.warning("%s: left out %s", alignments, left_out)
    words = repeated_words(words, settings.max_words, settings.seed)
    few = balanced(phones, settings.phones_per_speaker, settings.max_speakers, settings.seed)
    return replace(found, waveforms=waveforms, words=words, phones=few, all_phones=phones)


def _spread(speakers: Mapping[str, str], words: Iterable[Token], count: int, seed: int) -> list[str]:
    """At most `count` utterances, the speakers in turn; of each first those rich in words that others say too."""
    words = [word for word in words if word.utterance in speakers]
    voices = Counter(label for label, _ in {(word.label, word.speaker) for word in words})
    shared = Counter(word.utterance for word in words if voices[word.label] > 1)
    generator = np.random.default_rng(seed)
    queues: dict[str, list[str]] = defaultdict(list)
    for utterance in generator.permutation(sorted(speakers)).tolist():
        queues[speakers[utterance]].append(utterance)
    turns: list[tuple[int, str]] = []
    for speaker in generator.permutation(sorted(queues)).tolist():
        turns += enumerate(sorted(queues[speaker], key=lambda utterance: -shared[utterance]))
    turns.sort(key=lambda entry: entry[0])  # stable, as the other sort: ties stay in seeded order
    return sorted(utterance for _, utterance in turns[:count])


def _inside(tokens: Iterable[Token], waveforms: Mapping[str, Tensor], skipped: dict[str, list[str]]) -> list[Token]:
    """Tokens of decoded utterances that end before these do."""
    kept = []
    for one in (token for token in tokens if token.utterance in waveforms):
        if one.end <= len(waveforms[one.utterance]) / SAMPLE_RATE + SLACK:
            kept.append(one)
        else:
            skipped["tokens beyond the end of their audio"].append(f"{one.utterance} {one.label} {one.end:.2f} s")
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
    drawn = [(cells[cell], generator.permutation(len(cells[cell]))[:per_cell]) for cell in sorted(cells)]
    return [members[pick] for members, picks in drawn for pick in sorted(picks.tolist())]
