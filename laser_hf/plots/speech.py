"""The speech in the pictures of a run: one utterance in two views, and words with their times."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..data import BadAudio, PairTransform, Perturbation, decode_audio, find_audio_files, load_speech
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..records import located
from ..superb.discrimination import SLACK, Token, long_words, read_alignments

logger = logging.getLogger(__name__)

DEMO_SPEECH = "{laser_hf}/demo/speech"
DEMO_SPLIT = "heldout"
WORD_TIMES = ("words.tsv", "alignments.tsv")
MAX_WORDS, MAX_SPEAKERS = 8, 6  # there are 8 colours and 8 markers
MIN_LETTERS, MIN_SECONDS = 5, 0.2  # shorter words are mostly function words, whose spoken forms vary
EPOCHS = 10  # whose draws are looked at
STREAM_LIMIT = 1000  # utterances of a stream that are searched for one
_Speech = TypeVar("_Speech")


def source_name(source: str | Path) -> str:
    """A source of speech in the words of a title: the folder's name or the Hub id."""
    path = Path(source)
    if path.resolve().is_relative_to(located(DEMO_SPEECH)):
        return "shipped speech, held-out voices" if path.name in (DEMO_SPLIT, "speech") else "shipped speech"
    return path.resolve().name if path.exists() else str(source)


def or_shipped(load: Callable[..., _Speech], source: str | Path, **how: Any) -> _Speech:
    """`load(source, ...)`; the same from the shipped speech if there is no source, or with a warning if that fails.

    Args:
        load: `load_pair` or `load_words`.
        source: a run's own speech; may be empty.
        how: further arguments of `load`; `splits` and `name` are used for `source` alone.

    Raises:
        LaserError: the shipped speech cannot be used either, for example because it lacks the utterance named.
    """
    if source:
        try:
            return load(source, **how)
        except (LaserError, OSError) as error:
            logger.warning("The shipped speech is drawn instead: %s", error)
    how.pop("name", None)
    return load(located(DEMO_SPEECH), **{**how, "splits": [DEMO_SPLIT]})


@dataclass(frozen=True)
class ViewPair:
    """An utterance and its perturbed view.

    Attributes:
        utterance: its name.
        clean, perturbed: `(samples,)` float32, 16 kHz.
        change: what was done to the perturbed view, in words.
        source: where the utterance comes from, in words.
    """

    utterance: str
    clean: torch.Tensor
    perturbed: torch.Tensor
    change: str
    source: str

    def __str__(self) -> str:
        return f"{self.utterance} ({self.source})"


def load_pair(
    source: str | Path,
    perturbation: Perturbation,
    *,
    seed: int = 0,
    splits: Sequence[str] | None = None,
    name: str | None = None,
    utterance: str | None = None,
) -> ViewPair:
    """One utterance in two views. Of the draws of a run's first epochs it has the one that changes the duration most.

    Args:
        source, name: as `load_speech` takes them; a dataset of the Hub is streamed.
        perturbation: makes the perturbed view.
        seed: of the draws.
        splits: where to look, one after the other; everywhere if not given.
        utterance: its id, or the last part of it; without one the first of half a second or more.

    Raises:
        LaserError: nothing usable at `source`, no such utterance, or it cannot be used.
    """
    local = Path(source).exists()
    transform = PairTransform(perturbation, seed, min_seconds=0.1 if utterance else 0.5)
    for split in splits or [None]:
        speech = load_speech(source, split, name=name, streaming=not local)
        for item in speech if local else itertools.islice(speech, STREAM_LIMIT):
            if utterance is not None and utterance not in (item["id"], Path(item["id"]).name):
                continue
            epochs = range(1 if perturbation.keeps_duration else EPOCHS)
            pairs = [transform.pair(item["id"], item["audio"], epoch) for epoch in epochs]
            if not pairs[0]["skip"]:
                pair = max(pairs, key=lambda one: abs(len(one["perturbed"]) - len(one["clean"])))
                change = perturbation.describe(pair["drawn"])
                return ViewPair(pair["id"], pair["clean"], pair["perturbed"], change, source_name(source))
            if utterance is not None:
                raise LaserError(f"{item['id']} cannot be used: {pairs[0]['skip']}")
    where = f"{source} ({', '.join(splits)})" if splits else str(source)
    if utterance is None:
        raise LaserError(f"{where} holds no utterance of half a second or more that can be decoded")
    among = "" if local else f" among the first {STREAM_LIMIT} utterances"
    raise LaserError(f"{where} holds no utterance {utterance!r}{among}; --utterance takes the name of an audio file")


@dataclass(frozen=True)
class WordSpeech:
    """The same words by several speakers.

    Attributes:
        waveforms: `(samples,)` at 16 kHz by utterance.
        tokens: the words to be shown, as `choose_words` takes them.
        alignments: file of the word times.
        source: where the speech comes from, in words.
    """

    waveforms: dict[str, torch.Tensor]
    tokens: list[Token]
    alignments: Path
    source: str

    def spoken(self, utterance: str) -> list[Token]:
        """All words of an utterance, in order; empty if it is not aligned."""
        return read_alignments(self.alignments, utterances=[Path(utterance).name]).words


def load_words(
    data: str | Path, alignments: str | Path | None = None, splits: Sequence[str] | None = None
) -> WordSpeech:
    """The same words by several speakers, and the utterances that hold them.

    Args:
        data: a folder of audio; a file is found by its name, the utterance's.
        alignments: word times as `read_alignments` takes them; by default what `find_word_times` finds.
        splits: sub-folders of `data` to use; all if not given.

    Raises:
        LaserError: no such folder or file, no word times, or no word of two speakers in this speech.
    """
    folders = [Path(data) / split for split in splits or [""]]
    for folder in folders:
        if not folder.is_dir():
            raise LaserError(f"no folder {folder}; expected audio files, whose names are those of utterances")
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
        raise LaserError(
            f"of the {len(words)} words of {MIN_LETTERS} letters and {MIN_SECONDS:g} s that {alignments} gives for "
            f"{data}, too few are said by two speakers"
        )
    used = {token.utterance: waveforms[token.utterance] for token in tokens}
    return WordSpeech(used, tokens, alignments, source_name(data))


def find_word_times(data: str | Path) -> Path:
    """The file with word times (`words.tsv`, `alignments.tsv`) in the folder `data` or up to two folders above it.

    Raises:
        LaserError: there is none.
    """
    folder = Path(data).resolve()
    for place, name in itertools.product((folder, *folder.parents[:2]), WORD_TIMES):
        if (place / name).is_file():
            return place / name
    raise LaserError(
        f"no word times for {data}: it and the two folders above it hold neither {' nor '.join(WORD_TIMES)}; give "
        "--alignments FILE"
    )


def choose_words(
    tokens: Iterable[Token], words: int = MAX_WORDS, speakers: int = MAX_SPEAKERS, per_speaker: int = 2
) -> list[Token]:
    """The words that most speakers say, of these the ones said most often, by the speakers who say most of them.

    Args:
        tokens: all that could be shown.
        words: at most so many different words, each said by at least two of the speakers chosen.
        speakers: at most so many.
        per_speaker: at most so many tokens of one word by one speaker, from utterances that hold many of the words.

    Returns:
        The tokens, sorted. Words and speakers that are equally frequent are taken in alphabetical order. Empty if no
        word has two speakers.
    """
    pool = sorted(tokens)
    chosen = _shared_words(pool)[:words]
    pool = [token for token in pool if token.label in chosen]
    said = Counter(token.speaker for token in pool)
    kept = sorted(said, key=lambda speaker: (-said[speaker], speaker))[:speakers]
    pool = [token for token in pool if token.speaker in kept]
    shared = set(_shared_words(pool))  # a word may have lost its second speaker
    pool = [token for token in pool if token.label in shared]
    # Few utterances, because each is encoded as a whole.
    rich = Counter(token.utterance for token in pool)
    taken: Counter[tuple[str, str]] = Counter()
    result = []
    for token in sorted(pool, key=lambda token: (-rich[token.utterance], token)):
        taken[token.label, token.speaker] += 1
        if taken[token.label, token.speaker] <= per_speaker:
            result.append(token)
    return sorted(result)


def _shared_words(tokens: Sequence[Token]) -> list[str]:
    """Words of two speakers or more, those of most speakers first, then those of most tokens."""
    said_by: dict[str, set[str]] = defaultdict(set)
    count = Counter(token.label for token in tokens)
    for token in tokens:
        said_by[token.label].add(token.speaker)
    shared = [label for label in said_by if len(said_by[label]) > 1]
    return sorted(shared, key=lambda label: (-len(said_by[label]), -count[label], label))
