"""An ABX-like phone error: is X closer to A, a token of the same phone, than to B, a token of another one?

After Schatz et al., "Evaluating speech features with the minimal-pair ABX task" (Interspeech 2013): within speakers A,
B and X are of one speaker; across speakers A and B are of one speaker and X of another. It differs from the ZeroSpeech
measure: tokens are phones in any context, cut out of the frames by an alignment, the frame distance is the cosine
distance, and the DTW is the one of `token_distances`. So the numbers compare encoders measured here, and nothing else.

The error of an ordered pair of phones is a mean over speakers (or ordered pairs of speakers); the error is the mean
over pairs of phones, as a fraction. 0 is perfect, 0.5 chance. A tie counts one half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .alignments import Token
from .token_distances import dtw_distances, token_frames


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
    """ABX errors within and across speakers over all triples of `phones`.

    Args:
        frames, frame_rate, first_seconds: as for `token_frames`.
        phones: the tokens; choose few per phone and speaker (`balanced`), the cost grows with the square.
        progress: label of a progress bar; none if empty.

    Raises:
        ValueError: frames that do not fit the tokens.
    """
    tokens = sorted(phones)
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, token in enumerate(tokens):
        cells[token.speaker][token.label].append(index)
    names = {token.label for token in tokens}
    errors: dict[str, dict[tuple[str, str], list[float]]] = {kind: defaultdict(list) for kind in ("within", "across")}
    triples = {"within": 0, "across": 0}
    if len(names) > 1:
        low, high = np.triu_indices(len(tokens), k=1)
        distances = np.zeros((len(tokens), len(tokens)))
        segments = token_frames(frames, tokens, frame_rate, first_seconds)
        distances[low, high] = dtw_distances(segments, low, high, progress)
        distances += distances.T
        for speaker, own in cells.items():
            for other, foreign in cells.items():
                kind = "within" if speaker == other else "across"
                for label in own:
                    found, compared = _errors(distances, own, foreign, label)
                    triples[kind] += compared
                    for phone, error in found.items():
                        errors[kind][label, phone].append(error)
    means = {kind: [float(np.mean(values)) for values in pairs.values()] for kind, pairs in errors.items()}
    error = {kind: float(np.mean(values)) if values else float("nan") for kind, values in means.items()}
    return AbxReport(
        within=error["within"],
        across=error["across"],
        within_triples=triples["within"],
        across_triples=triples["across"],
        within_phone_pairs=len(means["within"]),
        across_phone_pairs=len(means["across"]),
        tokens=len(tokens),
        phones=len(names),
        speakers=len(cells),
    )


def _errors(
    distances: np.ndarray, own: Mapping[str, list[int]], foreign: Mapping[str, list[int]], label: str
) -> tuple[dict[str, float], int]:
    """Errors by phone of B, and how many triples: A is a token of `label` in `own`, X one in `foreign`, B is in `own`.

    `foreign` is `own` within a speaker. `distances` is symmetric `(tokens, tokens)`.
    """
    a, x = own[label], foreign.get(label, [])
    others = [(phone, index) for phone, members in own.items() if phone != label for index in members]
    if not x or not others or (own is foreign and len(a) < 2):
        return {}, 0
    phones, b = zip(*others, strict=True)
    to_a, to_b = distances[np.ix_(x, a)][:, :, None], distances[np.ix_(x, b)][:, None, :]
    wrong = (to_a > to_b) + 0.5 * (to_a == to_b)
    if own is foreign:
        wrong = wrong[~np.eye(len(a), dtype=bool)]  # A is not X
    names, place = np.unique(phones, return_inverse=True)
    by_token = wrong.reshape(-1, len(b)).mean(0)
    means = np.bincount(place, by_token) / np.bincount(place)
    return dict(zip(names.tolist(), means.tolist(), strict=True)), wrong.size


def balanced(phones: Iterable[Token], per_cell: int, max_speakers: int, seed: int = 0) -> list[Token]:
    """At most `per_cell` tokens of each phone of each of at most `max_speakers` speakers, drawn by `seed`."""
    tokens = sorted(phones)
    generator = np.random.default_rng(seed)
    names = sorted({token.speaker for token in tokens})
    if len(names) > max_speakers:
        names = sorted(generator.choice(names, max_speakers, replace=False).tolist())
    cells: dict[tuple[str, str], list[Token]] = defaultdict(list)
    for token in tokens:
        if token.speaker in names:
            cells[token.speaker, token.label].append(token)
    kept = []
    for cell in sorted(cells):
        members = cells[cell]
        picks = generator.permutation(len(members))[:per_cell]
        kept += [members[pick] for pick in sorted(picks.tolist())]
    return kept
