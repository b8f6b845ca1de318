"""An ABX-like phone error: is X closer to A, a token of the same phone, than to B, a token of another one?

After Schatz et al., "Evaluating speech features with the minimal-pair ABX task" (Interspeech 2013): within speakers A,
B and X are of one speaker; across speakers A and B are of one speaker and X of another. It is like the ZeroSpeech
measure and not the same: tokens are phones cut out of the frames by an alignment, not triphones, the frame distance is
the cosine distance, and the DTW is the one of `token_distances`. So the numbers compare encoders measured here, and
nothing else.

The error of an ordered pair of phones is a mean over contexts, then over speakers (or ordered pairs of speakers); the
error is the mean over pairs of phones, as a fraction. 0 is perfect, 0.5 chance. A tie counts one half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from .alignments import Token
from .token_distances import dtw_distances, mean_pooled, token_frames

CONTEXTS = ("any", "same")


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

    def to_dict(self) -> dict[str, float | int]:
        """The report as a plain dictionary, ready for JSON."""
        return asdict(self)


def abx_error(
    frames: Mapping[str, Tensor],
    phones: Iterable[Token],
    frame_rate: float = 50.0,
    context: str = "any",
    pooling: str = "dtw",
    first_seconds: float | None = None,
    progress: str = "",
) -> AbxReport:
    """ABX errors within and across speakers over all triples of `phones`.

    Args:
        frames, frame_rate, first_seconds: as for `token_frames`.
        phones: the tokens; choose few per phone and speaker (`balanced`), the cost grows with the square.
        context: "any" compares phones whatever their neighbours; "same" only those with the same phone before and
            after, which needs much speech.
        pooling: "dtw" aligns the frames, "mean" compares the mean frames.
        progress: label of a progress bar; none if empty.

    Raises:
        ValueError: an unknown context or pooling, or frames that do not fit the tokens.
    """
    if context not in CONTEXTS or pooling not in ("dtw", "mean"):
        raise ValueError(f"expected context 'any' or 'same' and pooling 'dtw' or 'mean', got {context!r}, {pooling!r}")
    tokens = sorted(phones)
    if not tokens:
        return AbxReport(np.nan, np.nan, 0, 0, 0, 0, 0, 0, 0)
    segments = token_frames(frames, tokens, frame_rate, first_seconds)
    if pooling == "mean":
        segments = mean_pooled(segments)
    groups = defaultdict(list)
    for index, token in enumerate(tokens):
        groups[token.context if context == "same" else ""].append(index)
    tallies = {"within": _Tally(), "across": _Tally()}
    for members in groups.values():
        labels = [tokens[index].label for index in members]
        if len(set(labels)) < 2:
            continue
        low, high = np.triu_indices(len(members), k=1)
        chosen = np.array(members)
        distances = np.zeros((len(members), len(members)))
        distances[low, high] = dtw_distances(segments, chosen[low], chosen[high], progress)
        distances += distances.T
        _compare(distances, labels, [tokens[index].speaker for index in members], tallies)
    (within, within_pairs), (across, across_pairs) = tallies["within"].mean(), tallies["across"].mean()
    return AbxReport(
        within=within,
        across=across,
        within_triples=tallies["within"].triples,
        across_triples=tallies["across"].triples,
        within_phone_pairs=within_pairs,
        across_phone_pairs=across_pairs,
        tokens=len(tokens),
        phones=len({token.label for token in tokens}),
        speakers=len({token.speaker for token in tokens}),
    )


class _Tally:
    """Errors of phone pairs, averaged over contexts, then speakers, then pairs."""

    def __init__(self) -> None:
        self.errors: dict[tuple, list[float]] = defaultdict(list)  # by (phone A, phone B, speakers): one a context
        self.triples = 0

    def mean(self) -> tuple[float, int]:
        by_pair: dict[tuple, list[float]] = defaultdict(list)
        for (a, b, _), errors in self.errors.items():
            by_pair[a, b].append(float(np.mean(errors)))
        pairs = [float(np.mean(errors)) for errors in by_pair.values()]
        return (float(np.mean(pairs)) if pairs else float("nan")), len(pairs)


def _compare(
    distances: np.ndarray, labels: Sequence[str], speakers: Sequence[str], tallies: Mapping[str, _Tally]
) -> None:
    """Add the errors of all triples of one context; `distances` is symmetric `(tokens, tokens)`."""
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (label, speaker) in enumerate(zip(labels, speakers, strict=True)):
        cells[speaker][label].append(index)
    for speaker, own in cells.items():
        for other, foreign in cells.items():
            tally = tallies["within" if speaker == other else "across"]
            for label, a in own.items():
                x = foreign.get(label, [])
                b = [index for phone, members in own.items() if phone != label for index in members]
                others = [phone for phone, members in own.items() if phone != label for _ in members]
                if not x or not b or (speaker == other and len(a) < 2):
                    continue
                to_a, to_b = distances[np.ix_(x, a)][:, :, None], distances[np.ix_(x, b)][:, None, :]
                wrong = (to_a > to_b) + 0.5 * (to_a == to_b)
                if speaker == other:
                    wrong = wrong[~np.eye(len(a), dtype=bool)]  # A is not X
                by_token = wrong.reshape(-1, len(b)).mean(0)
                tally.triples += wrong.size
                phones, place = np.unique(others, return_inverse=True)
                means = np.bincount(place, by_token) / np.bincount(place)
                for phone, mean in zip(phones.tolist(), means.tolist(), strict=True):
                    tally.errors[label, phone, (speaker, other)].append(mean)


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
