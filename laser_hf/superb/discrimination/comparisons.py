"""Word discrimination and an ABX-like phone error, on DTW distances between stretches of frames. Nothing is trained.

Word discrimination is the same-different task of Carlin, Thomas, Jansen and Hermansky, "Rapid evaluation of speech
representations for spoken term discovery" (Interspeech 2011): pairs of word tokens are ranked by distance, and the
average precision of finding the pairs of the same word is the measure. Across speakers all pairs are of two different
speakers, so that a representation cannot score by telling speakers apart.

ABX: is X closer to A, a token of the same phone, than to B, a token of another one? After Schatz et al., "Evaluating
speech features with the minimal-pair ABX task" (Interspeech 2013): within speakers all three are of one speaker; across
speakers A and B are of one and X of another. Unlike the ZeroSpeech measure's, tokens are phones in any context, cut out
of the frames: the numbers compare encoders measured here. The error of an ordered pair of phones is a mean over
speakers (or ordered pairs of them), and the error the mean over pairs: 0 is perfect, 0.5 chance. Ties count one half.

The distance is the symmetric DTW of Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word
recognition" (IEEE Trans. ASSP 26(1), 1978), over cosine distances: a diagonal step counts its cell twice, so the cost
of a path divided by `n + m` is an average frame distance. The dtw packages' `symmetric2` counts the first cell once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numba
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...errors import LaserError
from ..qbe.scoring import average_precision
from .tokens import Token, token_frames


def dtw_distances(segments: Sequence[Tensor], first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Normalised symmetric DTW distances of many pairs: smallest path costs divided by `n + m` frames; 0 to 2.

    `segments` are stretches of frames `(frames, dim)` whose rows have length one (or zero); `ValueError` for no frames.
    `first` and `second` are indices into them, `(pairs,)` as is the float64 result.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
    if 0 in lengths:
        raise ValueError("every stretch needs at least one frame")
    segments = [segment.float() for segment in segments]
    distances = np.empty(len(first), dtype=np.float64)
    order = np.argsort(first, kind="stable")
    rows, heads = np.unique(first[order], return_index=True)
    # One matrix product serves all pairs with the same first stretch.
    for row, pairs in zip(rows, np.split(order, heads[1:]), strict=False):
        partners, place = np.unique(second[pairs], return_inverse=True)
        columns = torch.cat([segments[partner] for partner in partners])
        similarity = (segments[row] @ columns.T).numpy()
        distances[pairs] = _symmetric_dtw(similarity, lengths[partners])[place]
    return distances


@numba.njit(cache=True, nogil=True)
def _symmetric_dtw(similarity, sizes):
    """Normalised costs `(partners,)` for cosine similarities `(n, sum(sizes))`, the partners side by side."""
    n, begin = similarity.shape[0], 0
    costs, last = np.empty(len(sizes)), np.empty(sizes.max())
    for partner, m in enumerate(sizes):
        last[:m] = np.inf
        for i in range(n):
            diagonal, left = np.inf if i else 0.0, np.inf
            for j in range(m):
                local = max(1.0 - similarity[i, begin + j], 0.0)
                left = min(diagonal + 2 * local, last[j] + local, left + local)
                diagonal, last[j] = last[j], left
        costs[partner] = last[m - 1] / (n + m)
        begin += m
    return costs


class NoComparison(LaserError):
    """Words that allow no comparison: none said twice, or only one word."""


@dataclass(frozen=True)
class WordReport:
    """Result of `word_discrimination`. Distances are averages of cosine distances, 0 (same direction) to 2."""

    same_distance: float  # mean over pairs of the same word
    different_distance: float  # mean over pairs of different words
    ratio: float  # of the two: 1 if words are not told apart, NaN if all frames are alike
    average_precision: float  # of finding same-word pairs by small distance; 1 is perfect
    chance: float  # average precision of a random ranking: the share of same-word pairs
    same_pairs: int
    different_pairs: int
    words: int  # tokens compared
    vocabulary: int  # different words among them
    speakers: int


def word_discrimination(
    frames: Mapping[str, Tensor],
    words: Iterable[Token],
    frame_rate: float = 50.0,
    max_pairs: int = 50_000,
    seed: int = 0,
    across: bool = True,
    first_seconds: float | None = None,
) -> WordReport:
    """Compare same-word and different-word pairs of `words`, in any order.

    Of more than `max_pairs` (at least 2) pairs a sample is drawn by `seed` that keeps the share of same-word pairs.
    `across` compares only tokens of different speakers. The other arguments are those of `token_frames`, with its
    errors. `NoComparison` if no word is said twice (`across`: by two speakers), or there is only one word.
    """
    tokens = sorted(words)
    segments = token_frames(frames, tokens, frame_rate, first_seconds)
    first, second, same = word_pairs(tokens, max_pairs, seed, across)
    distances = dtw_distances(segments, first, second)
    near, far = float(distances[same].mean()), float(distances[~same].mean())
    ratio = near / far if far > 1e-6 else math.nan  # the rounding errors of float32 cosines are no distance
    pairs = float(same.mean()), int(same.sum()), int((~same).sum())
    used = [tokens[index] for index in np.union1d(first, second)]
    sizes = len(used), len({token.label for token in used}), len({token.speaker for token in used})
    return WordReport(near, far, ratio, average_precision(-distances, same), *pairs, *sizes)


def word_pairs(
    tokens: Sequence[Token], max_pairs: int, seed: int, across: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices `first < second` of all or `max_pairs` pairs, and whether the word is the same; each `(pairs,)`."""
    word = np.unique([token.label for token in tokens], return_inverse=True)[1]
    speaker = np.unique([token.speaker for token in tokens], return_inverse=True)[1]
    first, second = np.triu_indices(len(tokens), k=1)  # memory grows with the square of the tokens
    if across:
        crossing = speaker[first] != speaker[second]
        first, second = first[crossing], second[crossing]
    same = word[first] == word[second]
    if not same.any():
        said = "by two different speakers" if across else "twice"
        raise NoComparison(f"no word is said {said} ({len(tokens)} word tokens of {len(set(speaker))} speaker(s))")
    if same.all():
        raise NoComparison("there is no different-word pair: only one word, or one speaker for each word")
    if len(same) > max_pairs:
        generator = np.random.default_rng(seed)
        wanted = min(max(round(max_pairs * int(same.sum()) / len(same)), 1), max_pairs - 1)
        kinds = ((np.flatnonzero(same), wanted), (np.flatnonzero(~same), max_pairs - wanted))
        kept = [pairs[generator.choice(len(pairs), min(count, len(pairs)), replace=False)] for pairs, count in kinds]
        chosen = np.sort(np.concatenate(kept))
        first, second, same = first[chosen], second[chosen], same[chosen]
    return first, second, same


def abx_error(
    frames: Mapping[str, Tensor], phones: Iterable[Token], frame_rate: float = 50.0, first_seconds: float | None = None
) -> dict[str, dict[str, float]]:
    """ABX errors "across" and "within" speakers over all triples of `phones`; the other arguments as for words.

    Each is an `error`, NaN where the tokens allow no triple, with counts of `tokens`, `phones`, `speakers`, `triples`
    and `phone_pairs`. Choose few tokens per phone and speaker (`balanced`): the cost grows with the square.
    """
    tokens = sorted(phones)
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, token in enumerate(tokens):
        cells[token.speaker][token.label].append(index)
    errors = {"across": defaultdict(list), "within": defaultdict(list)}  # by ordered pair of phones
    triples = Counter()
    low, high = np.triu_indices(len(tokens), k=1)
    distances = np.zeros((len(tokens), len(tokens)))
    distances[low, high] = dtw_distances(token_frames(frames, tokens, frame_rate, first_seconds), low, high)
    distances += distances.T
    for (speaker, own), (other, foreign) in product(cells.items(), repeat=2):
        kind = "within" if speaker == other else "across"
        for label, a in own.items():  # A is a token of `label` in `own`, X one in `foreign`, B another in `own`
            x = foreign.get(label, [])
            others = [(phone, index) for phone, members in own.items() if phone != label for index in members]
            if not x or not others or (own is foreign and len(a) < 2):
                continue
            by_phone, b = zip(*others, strict=True)
            to_a, to_b = distances[np.ix_(x, a)][:, :, None], distances[np.ix_(x, b)][:, None, :]
            wrong = (to_a > to_b) + 0.5 * (to_a == to_b)
            if own is foreign:
                wrong = wrong[~np.eye(len(a), dtype=bool)]  # A is not X
            triples[kind] += wrong.size
            compared, place = np.unique(by_phone, return_inverse=True)
            means = np.bincount(place, wrong.reshape(-1, len(b)).mean(0)) / np.bincount(place)
            for phone, error in zip(compared.tolist(), means.tolist(), strict=True):
                errors[kind][label, phone].append(error)
    found = {}
    sizes = {"tokens": len(tokens), "phones": len({token.label for token in tokens}), "speakers": len(cells)}
    for kind, pairs in errors.items():
        error = float(np.mean([np.mean(values) for values in pairs.values()])) if pairs else math.nan
        found[kind] = {"error": error, **sizes, "triples": triples[kind], "phone_pairs": len(pairs)}
    return found
