"""The same words by several speakers as points in the plane: principal components of mean-pooled tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.lines import Line2D

from ..superb.probing.alignments import Token
from .style import MARKERS, POINT_COLOURS, plt, save

MAX_WORDS = len(POINT_COLOURS)
MAX_SPEAKERS = 6


class PrincipalComponents(NamedTuple):
    """Points in the plane of most variance.

    Attributes:
        points: `(n, count)` float64, centred.
        explained: share of the total variance of each component, `(count,)`, largest first; 0 without any variance.
    """

    points: torch.Tensor
    explained: torch.Tensor


def principal_components(vectors: torch.Tensor, count: int = 2) -> PrincipalComponents:
    """Principal component analysis of `(n, dim)` by a singular value decomposition of the centred vectors.

    The sign of a component is such that its loading of largest absolute value is positive.

    Raises:
        ValueError: a wrong shape, values that are not finite, or fewer vectors or dimensions than components.
    """
    if vectors.ndim != 2 or min(vectors.shape) < count:
        raise ValueError(f"{count} components need vectors (n, dim), both at least {count}; got {tuple(vectors.shape)}")
    if not torch.isfinite(vectors).all():
        raise ValueError("the vectors are not all finite, so they have no principal components")
    centred = vectors.double() - vectors.double().mean(0)
    _, singular, loadings = torch.linalg.svd(centred, full_matrices=False)
    loadings = loadings[:count]
    largest = loadings.gather(1, loadings.abs().argmax(1, keepdim=True))
    loadings = loadings * torch.where(largest < 0, -1.0, 1.0)
    variance = singular.square()
    total = variance.sum()
    explained = variance[:count] / total if total > 0 else torch.zeros(count, dtype=torch.float64)
    return PrincipalComponents(centred @ loadings.T, explained)


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
        The tokens, sorted; words that are equally frequent are taken in alphabetical order, speakers too. Empty if
        no word has two speakers.
    """
    pool = sorted(tokens)
    chosen = _by_speakers(pool)[:words]
    pool = [token for token in pool if token.label in chosen]
    said = Counter(token.speaker for token in pool)
    kept = sorted(said, key=lambda speaker: (-said[speaker], speaker))[:speakers]
    pool = [token for token in pool if token.speaker in kept]
    shared = set(_by_speakers(pool))  # a word may have lost its second speaker
    pool = [token for token in pool if token.label in shared]
    # Few utterances: each has to be encoded as a whole.
    rich = Counter(token.utterance for token in pool)
    taken: Counter[tuple[str, str]] = Counter()
    result = []
    for token in sorted(pool, key=lambda token: (-rich[token.utterance], token)):
        taken[token.label, token.speaker] += 1
        if taken[token.label, token.speaker] <= per_speaker:
            result.append(token)
    return sorted(result)


def _by_speakers(tokens: Iterable[Token]) -> list[str]:
    """Words of two speakers or more, those of most speakers first, then those of most tokens."""
    said_by: dict[str, set[str]] = defaultdict(set)
    count: Counter[str] = Counter()
    for token in tokens:
        said_by[token.label].add(token.speaker)
        count[token.label] += 1
    shared = [label for label in said_by if len(said_by[label]) > 1]
    return sorted(shared, key=lambda label: (-len(said_by[label]), -count[label], label))


def plot_words(vectors: Mapping[str, torch.Tensor], tokens: Sequence[Token], path: str | Path, title: str = "") -> None:
    """Tokens of words in the plane of their first two principal components, one panel for each encoder.

    Colour is the word, the marker the speaker. Each panel has principal components of its own.

    Args:
        vectors: one for each token, `(tokens, dim)`, by name ("before", "after").
        tokens: of at most 8 words by at most 8 speakers.
        path: of the PNG.
        title: above all panels.

    Raises:
        ValueError: more words or speakers than there are colours or markers, or vectors that do not fit.
    """
    words, speakers = sorted({token.label for token in tokens}), sorted({token.speaker for token in tokens})
    if len(words) > len(POINT_COLOURS) or len(speakers) > len(MARKERS):
        raise ValueError(
            f"there are {len(POINT_COLOURS)} colours and {len(MARKERS)} markers, too few for {len(words)} words of "
            f"{len(speakers)} speakers; choose_words takes the most frequent ones"
        )
    colours, markers = dict(zip(words, POINT_COLOURS, strict=False)), dict(zip(speakers, MARKERS, strict=False))
    figure, axes = plt.subplots(
        1, len(vectors), figsize=(4.6 * len(vectors) + 1.4, 4.8), layout="constrained", squeeze=False
    )
    for axis, (name, matrix) in zip(axes.flat, vectors.items(), strict=True):
        if len(matrix) != len(tokens):
            raise ValueError(f"{name}: {len(matrix)} vectors for {len(tokens)} tokens")
        points, explained = principal_components(matrix)
        for token, (x, y) in zip(tokens, points.tolist(), strict=True):
            axis.plot(
                x, y, markers[token.speaker], color=colours[token.label], markersize=7, alpha=0.85,
                markeredgecolor="black", markeredgewidth=0.4,
            )  # fmt: skip
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(f"component 1 ({100 * explained[0]:.0f} % of the variance)")
        axis.set_ylabel(f"component 2 ({100 * explained[1]:.0f} %)")
        axis.set_aspect("equal", adjustable="datalim")
        axis.grid(alpha=0.3)
    how = {"linestyle": "", "markersize": 7, "markeredgecolor": "black", "markeredgewidth": 0.4}
    keys = [Line2D([], [], marker="o", color=colours[word], label=word, **how) for word in words]
    keys += [Line2D([], [], marker=markers[one], color="white", label=f"speaker {one}", **how) for one in speakers]
    figure.legend(handles=keys, loc="outside right center", fontsize=9, frameon=False)
    save(figure, path, title)
