"""Word discrimination: are two spoken copies of a word closer than two different words?

The same-different task of Carlin, Thomas, Jansen and Hermansky, "Rapid evaluation of speech representations for
spoken term discovery" (Interspeech 2011). Every pair of word tokens gets a DTW distance between their frames; pairs
are ranked by it, and the average precision of finding the pairs of the same word is the measure. With
`speakers="across"` all pairs are of two different speakers, so that a representation cannot score by telling
speakers apart. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import LaserError
from ..qbe.scoring import average_precision
from .alignments import Token
from .token_distances import dtw_distances, token_frames

SPEAKERS = ("across", "all")


class NoComparison(LaserError):
    """Words that allow no comparison: none said twice, or only one word."""


@dataclass(frozen=True)
class WordReport:
    """Result of `word_discrimination`. Distances are averages of cosine distances, 0 (same direction) to 2."""

    same_distance: float
    """Mean distance over pairs of the same word. Lower is better, relative to `different_distance`."""
    different_distance: float
    """Mean distance over pairs of different words."""
    ratio: float
    """`same_distance / different_distance`; lower is better, 1: words are not told apart, NaN: all frames alike."""
    average_precision: float
    """Of finding same-word pairs by small distance (`average_precision`). Higher is better, 1 is perfect."""
    chance: float
    """Expected average precision of a random ranking: the share of same-word pairs."""
    same_pairs: int
    different_pairs: int
    words: int
    """Word tokens compared."""
    vocabulary: int
    """Different words among them."""
    speakers: int


def word_discrimination(
    frames: Mapping[str, Tensor],
    words: Iterable[Token],
    frame_rate: float = 50.0,
    max_pairs: int = 50_000,
    seed: int = 0,
    speakers: str = "across",
    first_seconds: float | None = None,
    progress: str = "",
) -> WordReport:
    """Compare same-word and different-word pairs.

    Args:
        frames, frame_rate, first_seconds: as for `token_frames`.
        words: the tokens to compare; their order does not matter.
        max_pairs: when there are more pairs than this, a sample of this size is drawn that keeps the share of
            same-word pairs, so that average precision estimates the one of all pairs.
        seed: seed of that sample.
        speakers: "across" compares tokens of different speakers only, "all" any two tokens.
        progress: label of a progress bar; none if empty.

    Raises:
        NoComparison: no word is said twice (with "across": by two speakers), or only one word.
        ValueError: wrong settings, or frames that do not fit the words.
    """
    if max_pairs < 2:
        raise LaserError(f"max_pairs must be at least 2, got {max_pairs}")
    if speakers not in SPEAKERS:
        raise ValueError(f"expected speakers of {SPEAKERS}, got {speakers!r}")
    tokens = sorted(words)
    if not tokens:
        raise NoComparison("there are no words to compare")
    segments = token_frames(frames, tokens, frame_rate, first_seconds)
    first, second, same = word_pairs(tokens, max_pairs, seed, across=speakers == "across")
    distances = dtw_distances(segments, first, second, progress)
    same_distance, different_distance = float(distances[same].mean()), float(distances[~same].mean())
    used = [tokens[index] for index in np.union1d(first, second)]
    return WordReport(
        same_distance=same_distance,
        different_distance=different_distance,
        # The rounding errors of float32 cosines are no distance.
        ratio=same_distance / different_distance if different_distance > 1e-6 else float("nan"),
        average_precision=average_precision(-distances, same),
        chance=float(same.mean()),
        same_pairs=int(same.sum()),
        different_pairs=int((~same).sum()),
        words=len(used),
        vocabulary=len({token.label for token in used}),
        speakers=len({token.speaker for token in used}),
    )


def word_pairs(
    tokens: Sequence[Token], max_pairs: int, seed: int, across: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of tokens, all or `max_pairs` of them; with `across` only those of different speakers.

    Memory grows with the square of the tokens.

    Returns:
        Indices `first < second`, and whether the word is the same; each `(pairs,)`.

    Raises:
        NoComparison: no pair of the same word, or none of different words.
    """
    word = np.unique([token.label for token in tokens], return_inverse=True)[1]
    speaker = np.unique([token.speaker for token in tokens], return_inverse=True)[1]
    first, second = np.triu_indices(len(tokens), k=1)
    if across:
        crossing = speaker[first] != speaker[second]
        first, second = first[crossing], second[crossing]
    same = word[first] == word[second]
    if not same.any():
        said = "by two different speakers" if across else "twice"
        raise NoComparison(
            f"no word is said {said}, so there is no same-word pair to compare "
            f"({len(tokens)} word tokens of {speaker.max() + 1} speaker(s))"
        )
    if same.all():
        raise NoComparison("there is no different-word pair to compare: only one word, or one speaker for each word")
    if len(same) > max_pairs:
        generator = np.random.default_rng(seed)
        wanted = min(max(round(max_pairs * int(same.sum()) / len(same)), 1), max_pairs - 1)
        kept = []
        for kind, count in ((same, wanted), (~same, max_pairs - wanted)):
            pairs = np.flatnonzero(kind)
            kept.append(pairs[generator.choice(len(pairs), min(count, len(pairs)), replace=False)])
        chosen = np.sort(np.concatenate(kept))
        first, second, same = first[chosen], second[chosen], same[chosen]
    return first, second, same
