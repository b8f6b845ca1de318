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
from ..ranking import average_precision
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
    """Of finding same-word pairs by small distance (`ranking.average_precision`). Higher is better, 1 is perfect."""
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

    Returns:
        Indices `first < second`, and whether the word is the same; each `(pairs,)`.

    Raises:
        NoComparison: no pair of the same word, or none of different words.
    """
    _, word = np.unique([token.label for token in tokens], return_inverse=True)
    _, speaker = np.unique([token.speaker for token in tokens], return_inverse=True)
    # Without `across` every token counts as a speaker of its own: then all pairs cross.
    voice = speaker if across else np.arange(len(tokens))
    both = word.astype(np.int64) * (voice.max() + 1) + voice
    crossing = _equal_pairs(np.zeros_like(word)) - _equal_pairs(voice)
    totals = {True: _equal_pairs(word) - _equal_pairs(both)}
    totals[False] = crossing - totals[True]
    if totals[True] == 0:
        said = "by two different speakers" if across else "twice"
        raise NoComparison(
            f"no word is said {said}, so there is no same-word pair to compare "
            f"({len(tokens)} word tokens of {speaker.max() + 1} speaker(s))"
        )
    if totals[False] == 0:
        raise NoComparison("there is no different-word pair to compare: only one word, or one speaker for each word")
    # Ranks of the pairs to keep, in the order in which the loop below meets them.
    if crossing <= max_pairs:
        ranks = {kind: np.arange(total) for kind, total in totals.items()}
    else:
        generator = np.random.default_rng(seed)
        wanted = {True: min(max(round(max_pairs * totals[True] / crossing), 1), max_pairs - 1)}
        wanted[False] = max_pairs - wanted[True]
        ranks = {
            kind: np.sort(generator.choice(total, min(wanted[kind], total), replace=False))
            for kind, total in totals.items()
        }
    # Token by token: the full list of pairs of a large corpus does not fit into memory.
    met = {True: 0, False: 0}
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index in range(len(tokens) - 1):
        other_voice = voice[index + 1 :] != voice[index]
        same_word = word[index + 1 :] == word[index]
        for kind in (True, False):
            partners = np.flatnonzero(other_voice & (same_word if kind else ~same_word)) + index + 1
            low, high = np.searchsorted(ranks[kind], (met[kind], met[kind] + len(partners)))
            kept = partners[ranks[kind][low:high] - met[kind]]
            met[kind] += len(partners)
            parts.append((np.full(len(kept), index), kept, np.full(len(kept), kind)))
    first, second, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, same


def _equal_pairs(labels: np.ndarray) -> int:
    """How many unordered pairs of entries are equal."""
    counts = np.unique(labels, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())
