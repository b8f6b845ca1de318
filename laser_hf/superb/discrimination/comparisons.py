"""Word discrimination and an ABX-like phone error, on DTW distances between stretches of frames. Nothing is trained.

Word discrimination is the same-different task of Carlin, Thomas, Jansen and Hermansky, "Rapid evaluation of speech
representations for spoken term discovery" (Interspeech 2011): pairs of word tokens are ranked by distance, and the
average precision of finding the pairs of the same word is the measure. Across speakers all pairs are of two different
speakers, so that a representation cannot score by telling speakers apart.

ABX: is X closer to A, a token of the same phone, than to B, a token of another one? After Schatz et al., "Evaluating
speech features with the minimal-pair ABX task" (Interspeech 2013): within speakers all three are of one speaker; across
speakers A and B are of one and X of another. It differs from the ZeroSpeech measure: tokens are phones in any context,
cut out of the frames by an alignment, with the distance below. So the numbers compare encoders measured here, and
nothing else. The error of an ordered pair of phones is a mean over speakers (or ordered pairs of speakers); the error
is the mean over pairs of phones, as a fraction. 0 is perfect, 0.5 chance. A tie counts one half.

The distance is the symmetric DTW of Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word
recognition" (IEEE Trans. ASSP 26(1), 1978), over cosine distances: a diagonal step counts its cell twice, so every path
has total weight `n + m`, and the cost divided by `n + m` is an average frame distance. The dtw packages call it
`symmetric2`, but count the first cell once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numba
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import LaserError
from ..qbe.scoring import average_precision
from .tokens import Token, token_frames


def dtw_distances(segments: Sequence[Tensor], first: ArrayLike, second: ArrayLike, progress: str = "") -> np.ndarray:
    """Normalised symmetric DTW distances of many pairs: smallest path costs divided by `n + m` frames; 0 to 2.

    Args:
        segments: stretches of frames `(frames, dim)` whose rows have length one (or zero); `ValueError` for no frames.
        first, second: indices into `segments`, each `(pairs,)` as is the float64 result.
        progress: label of a progress bar; none if empty.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError("every stretch needs at least one frame")
    segments = [segment.float() for segment in segments]
    distances = np.empty(len(first), dtype=np.float64)
    order = np.argsort(first, kind="stable")
    rows, heads = np.unique(first[order], return_index=True)
    groups = zip(rows, np.split(order, heads[1:]), strict=False)
    # One matrix product serves all pairs with the same first stretch.
    for row, pairs in tqdm(groups, total=len(rows), desc=progress, disable=not progress or None, mininterval=2):
        partners, place = np.unique(second[pairs], return_inverse=True)
        columns = torch.cat([segments[partner] for partner in partners])
        similarity = (segments[row] @ columns.T).numpy()
        distances[pairs] = _symmetric_dtw(similarity, lengths[partners])[place]
    return distances


@numba.njit(cache=True, nogil=True)
def _symmetric_dtw(similarity, sizes):
    """Normalised costs `(partners,)` for cosine similarities `(n, sum(sizes))`, the partners side by side."""
    n = similarity.shape[0]
    costs = np.empty(len(sizes))
    last = np.empty(sizes.max())
    begin = 0
    for partner in range(len(sizes)):
        m = sizes[partner]
        for i in range(n):
            diagonal = 0.0  # total of the cell up and to the left
            for j in range(m):
                local = max(1.0 - similarity[i, begin + j], 0.0)
                if i == 0:
                    best = 2 * local if j == 0 else last[j - 1] + local
                elif j == 0:
                    best = last[0] + local
                else:
                    best = min(diagonal + 2 * local, last[j] + local, last[j - 1] + local)
                if i > 0:
                    diagonal = last[j]
                last[j] = best
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
    progress: str = "",
) -> WordReport:
    """Compare same-word and different-word pairs of `words`, in any order.

    Of more than `max_pairs` pairs a sample of this size is drawn by `seed` that keeps the share of same-word pairs.
    `across` compares only tokens of different speakers. The other arguments are those of `token_frames`, with its
    errors, and `dtw_distances`. `NoComparison` if no word is said twice (`across`: by two speakers), or there is only
    one word.
    """
    if max_pairs < 2:
        raise LaserError(f"max_pairs must be at least 2, got {max_pairs}")
    tokens = sorted(words)
    if not tokens:
        raise NoComparison("there are no words to compare")
    segments = token_frames(frames, tokens, frame_rate, first_seconds)
    first, second, same = word_pairs(tokens, max_pairs, seed, across)
    distances = dtw_distances(segments, first, second, progress)
    same_distance, different_distance = float(distances[same].mean()), float(distances[~same].mean())
    used = [tokens[index] for index in np.union1d(first, second)]
    return WordReport(
        same_distance=same_distance,
        different_distance=different_distance,
        # The rounding errors of float32 cosines are no distance.
        ratio=same_distance / different_distance if different_distance > 1e-6 else math.nan,
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
        raise NoComparison(f"no word is said {said} ({len(tokens)} word tokens of {speaker.max() + 1} speaker(s))")
    if same.all():
        raise NoComparison("there is no different-word pair: only one word, or one speaker for each word")
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


@dataclass(frozen=True)
class AbxReport:
    """Result of `abx_error`; an error is NaN where the tokens allow no triple."""

    within: float
    across: float
    within_triples: int
    across_triples: int
    within_phone_pairs: int
    across_phone_pairs: int
    tokens: int
    phones: int
    speakers: int


def abx_error(
    frames: Mapping[str, Tensor],
    phones: Iterable[Token],
    frame_rate: float = 50.0,
    first_seconds: float | None = None,
    progress: str = "",
) -> AbxReport:
    """ABX errors within and across speakers over all triples of `phones`; the other arguments as for words.

    Choose few tokens per phone and speaker (`balanced`): the cost grows with the square.
    """
    tokens = sorted(phones)
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, token in enumerate(tokens):
        cells[token.speaker][token.label].append(index)
    errors = {"within": defaultdict(list), "across": defaultdict(list)}  # by ordered pair of phones
    triples = {"within": 0, "across": 0}
    names = {token.label for token in tokens}
    if len(names) > 1:
        low, high = np.triu_indices(len(tokens), k=1)
        distances = np.zeros((len(tokens), len(tokens)))
        segments = token_frames(frames, tokens, frame_rate, first_seconds)
        distances[low, high] = dtw_distances(segments, low, high, progress)
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
    found = {"tokens": len(tokens), "phones": len(names), "speakers": len(cells)}
    for kind, pairs in errors.items():
        error = float(np.mean([np.mean(values) for values in pairs.values()])) if pairs else math.nan
        found |= {kind: error, f"{kind}_triples": triples[kind], f"{kind}_phone_pairs": len(pairs)}
    return AbxReport(**found)
