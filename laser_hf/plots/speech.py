"""The speech in the pictures of a run: one utterance in two views, and words with their times."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import BadAudio, PairTransform, decode_audio, find_audio_files, load_speech
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..records import located
from ..superb.discrimination import SLACK, Token, long_words, read_alignments
from .alignment import drawn_speed

logger = logging.getLogger(__name__)

DEMO_SPEECH = "{laser_hf}/demo/speech"
DEMO_SPLIT = "heldout"
WORD_TIMES = ("words.tsv", "alignments.tsv")
MAX_WORDS, MAX_SPEAKERS = 8, 6  # there are 8 colours and 8 markers
MIN_LETTERS, MIN_SECONDS = 5, 0.2  # shorter words are mostly function words, whose spoken forms vary


def source_name(source: str | Path) -> str:
    """A source of speech in the words of a title: the folder's name or the Hub id."""
    path = Path(source)
    if path.resolve().is_relative_to(located(DEMO_SPEECH)):
        return "shipped speech, held-out voices" if path.name in (DEMO_SPLIT, "speech") else "shipped speech"
    return path.resolve().name if path.exists() else str(source)


def or_shipped(load: Callable[..., Any], source: str | Path, **how: Any) -> Any:
    """`load(source, ...)`; the same from the shipped speech without a source or, with a warning, if that fails."""
    if source:
        try:
            return load(source, **how)
        except (LaserError, OSError) as error:
            logger.warning("The shipped speech is drawn instead: %s", error)
    how.pop("name", None)
    return load(located(DEMO_SPEECH), **{**how, "splits": [DEMO_SPLIT]})


@dataclass(frozen=True)
class ViewPair:
    """An utterance in two views, `(samples,)` float32 at 16 kHz. `change` is what was drawn, in words."""

    utterance: str
    clean: torch.Tensor
    perturbed: torch.Tensor
    speed: float
    change: str
    source: str


def load_pairs(
    source: str | Path,
    transform: PairTransform,
    count: int,
    *,
    splits: Sequence[str] | None = None,
    name: str | None = None,
    utterance: str | None = None,
) -> list[ViewPair]:
    """The pairs of `count` utterances of each split, spread over it as training's held-out ones are.

    `source`, `splits` and `name` are as `load_speech` takes them; a dataset of the Hub is streamed, from its start.
    `utterance` is the id of one more, or the last part of it. Its pair comes first, by default the one whose views
    differ most in duration. `LaserError` if nothing is usable, or not this utterance.
    """

    def is_named(identity: str) -> bool:
        return utterance in (identity, Path(identity).name)

    local, found = Path(source).exists(), []
    for split in splits or [None]:
        speech = load_speech(source, split, name=name, streaming=not local)
        if local and count < len(speech):
            picks = set(torch.linspace(0, len(speech) - 1, count).long().tolist())
            speech = speech.select([i for i, one in enumerate(speech["id"]) if i in picks or is_named(one)])
        where = Path(source, split) if split and Path(source, split).is_dir() else source
        for item in itertools.islice(speech, None if local else count):
            pair = transform.pair(item["id"], item["audio"])
            if is_named(item["id"]) and pair["skip"]:
                raise LaserError(f"{item['id']} cannot be used: {pair['skip']}")
            if not pair["skip"]:
                about = drawn_speed(pair["drawn"]), transform.perturbation.describe(pair["drawn"]), source_name(where)
                found.append(ViewPair(pair["id"], pair["clean"], pair["perturbed"], *about))
    found.sort(key=lambda one: (not is_named(one.utterance), -abs(len(one.perturbed) - len(one.clean))))
    if not found or (utterance is not None and not is_named(found[0].utterance)):
        sought = "utterance that can be used" if utterance is None else f"utterance {utterance!r}"
        among = "" if local else f" among its first {count}"
        raise LaserError(f"{source} holds no {sought}{among}; --utterance takes the name of an audio file")
    return found


@dataclass(frozen=True)
class WordSpeech:
    """The same words by several speakers; `waveforms` are those of the utterances, `(samples,)` at 16 kHz."""

    waveforms: dict[str, torch.Tensor]
    tokens: list[Token]
    alignments: Path
    source: str


def load_words(
    data: str | Path, alignments: str | Path | None = None, splits: Sequence[str] | None = None
) -> WordSpeech:
    """The same words by several speakers, and the utterances that hold them, whose files have the utterances' names.

    `alignments` are word times as `read_alignments` takes them, by default what `find_word_times` finds; `splits` are
    sub-folders of `data`. `LaserError` without such files, word times, or a word of two speakers.
    """
    folders = [Path(data) / split for split in splits or [""]]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise LaserError(f"no folder {missing[0]}; expected audio files, whose names are those of utterances")
    alignments = find_word_times(data) if alignments is None else Path(alignments)
    files = {path.stem: path for folder in folders for path in find_audio_files(folder)}
    words = long_words(read_alignments(alignments, utterances=files).words, MIN_LETTERS, MIN_SECONDS)
    waveforms, tokens = {}, []
    for token in choose_words(words):
        try:
            if token.utterance not in waveforms:
                waveforms[token.utterance] = decode_audio(files[token.utterance]).waveform
            if token.end <= len(waveforms[token.utterance]) / SAMPLE_RATE + SLACK:
                tokens.append(token)
        except BadAudio as error:
            logger.warning("A word of %s is left out: %s", files[token.utterance], error)
    if len(tokens) < 3:
        kind = f"{len(words)} words of {MIN_LETTERS} letters and {MIN_SECONDS:g} s"
        raise LaserError(f"of the {kind} that {alignments} gives for {data}, too few are said by two speakers")
    used = {token.utterance: waveforms[token.utterance] for token in tokens}
    return WordSpeech(used, tokens, alignments, source_name(data))


def find_word_times(data: str | Path) -> Path:
    """The file with word times in the folder `data` or up to two above it; `LaserError` if there is none."""
    folder = Path(data).resolve()
    for place, name in itertools.product((folder, *folder.parents[:2]), WORD_TIMES):
        if (place / name).is_file():
            return place / name
    raise LaserError(f"no word times for {data} ({' or '.join(WORD_TIMES)} there or above it); give --alignments FILE")


def choose_words(tokens: Iterable[Token]) -> list[Token]:
    """The words that most speakers say, of these the ones said most often, by the speakers who say most of them.

    At most `MAX_WORDS`, each said by two of at most `MAX_SPEAKERS` speakers, and two tokens of a word by each, from
    utterances that hold many of the words; in alphabetical order where they are equally frequent.
    """
    pool = sorted(tokens)
    chosen = _shared_words(pool)[:MAX_WORDS]
    pool = [token for token in pool if token.label in chosen]
    said = Counter(token.speaker for token in pool)
    kept = sorted(said, key=lambda speaker: (-said[speaker], speaker))[:MAX_SPEAKERS]
    pool = [token for token in pool if token.speaker in kept]
    shared = set(_shared_words(pool))  # a word may have lost its second speaker
    pool = [token for token in pool if token.label in shared]
    rich = Counter(token.utterance for token in pool)  # few utterances, because each is encoded as a whole
    taken: dict[tuple[str, str], list[Token]] = {}
    for token in sorted(pool, key=lambda token: (-rich[token.utterance], token)):
        taken.setdefault((token.label, token.speaker), []).append(token)
    return sorted(token for found in taken.values() for token in found[:2])


def _shared_words(tokens: Sequence[Token]) -> list[str]:
    """Words of two speakers or more, those of most speakers first, then those of most tokens."""
    count = Counter(token.label for token in tokens)
    speakers = Counter(label for label, _ in {(token.label, token.speaker) for token in tokens})
    shared = [label for label in speakers if speakers[label] > 1]
    return sorted(shared, key=lambda label: (-speakers[label], -count[label], label))
