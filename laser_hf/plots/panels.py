"""Panels for each encoder: self-similarity of an utterance, and spoken words in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch.nn.functional import normalize

from .. import figures
from ..superb.discrimination import Token

SHOWN_SECONDS = 3.0  # of an utterance
_WORD_SIZE = 8  # points


def self_similarity_figure(
    frames: Mapping[str, torch.Tensor], frame_seconds: float, words: Sequence[Token] = ()
) -> Figure:
    """Cosines of an utterance's first frames `(n, dim)` by encoder, of two the difference; `words` stand above."""
    unit = (normalize(one[: round(SHOWN_SECONDS / frame_seconds)].double(), dim=1) for one in frames.values())
    matrices = {name: (one @ one.T).clamp(-1, 1) for name, one in zip(frames, unit, strict=True)}
    # Cosines within one encoder are rarely negative: the colour scale starts at the smallest one.
    scales = dict.fromkeys(matrices, ("viridis", min(float(matrix.min()) for matrix in matrices.values()), 1.0))
    if len(matrices) == 2:
        before, after = matrices.values()
        change = float((after - before).abs().max()) or 1.0
        matrices["change"], scales["change"] = after - before, ("RdBu_r", -change, change)
    longest = max(map(len, matrices.values())) * frame_seconds
    inside = [word for word in words if word.end <= longest + frame_seconds]
    # The layout does not know the height of the slanted words, so the title of a panel is moved above them.
    height = _WORD_SIZE * (1 + 0.5 * max(len(word.label) for word in inside)) if inside else 0
    size = (4.4 * len(matrices) + 0.8, 4.3 + height / 72)
    figure, axes = figures.new_figure(1, len(matrices), size, squeeze=False)
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        seconds = len(matrix) * frame_seconds
        colours, lowest, highest = scales[name]
        how = {"cmap": colours, "vmin": lowest, "vmax": highest, "extent": (0, seconds, 0, seconds)}
        image = axis.imshow(matrix.numpy(), origin="lower", **how)
        for edge in sorted({time for word in inside for time in (word.start, word.end)}):
            line = {"color": "black" if name == "change" else "white", "linewidth": 0.5, "alpha": 0.5}
            axis.axvline(edge, **line)
            axis.axhline(edge, **line)
        # The last word may end a little behind the last frame.
        axis.set(xlim=(0, seconds), ylim=(0, seconds), xlabel="time, s")
        if inside:
            named = axis.secondary_xaxis("top")
            named.set_xticks([word.start + word.duration / 2 for word in inside], [word.label for word in inside])
            named.tick_params(length=0, labelsize=_WORD_SIZE, labelrotation=60)
            figures.plt.setp(named.get_xticklabels(), ha="left", rotation_mode="anchor")
        axis.set_title(name, fontsize=10, y=1, pad=6 + height)
        if name in ("change", list(frames)[-1]):
            label = "change of the cosine" if name == "change" else "cosine of two frames"
            figure.colorbar(image, ax=axis, label=label, shrink=0.8)
    axes.flat[0].set_ylabel("time, s")
    return figure


def principal_components(vectors: torch.Tensor, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred points `(n, count)` of `(n, dim)`, signs by the largest loading, and shares of variance `(count,)`."""
    centred = vectors.double() - vectors.double().mean(0)
    _, singular, loadings = torch.linalg.svd(centred, full_matrices=False)
    loadings, variance = loadings[:count], singular.square()
    largest = loadings.gather(1, loadings.abs().argmax(1, keepdim=True))
    loadings = loadings * torch.where(largest < 0, -1.0, 1.0)
    return centred @ loadings.T, (variance / variance.sum())[:count].nan_to_num()


def silhouette(vectors: torch.Tensor, labels: Sequence[str]) -> float:
    """Mean silhouette coefficient (Rousseeuw 1987) of groups of `(n, dim)` with cosine distances, -1 to 1.

    A vector with mean distance `a` to the others of its group and `b` to the nearest other group has
    `(b - a) / max(a, b)`: 1 far from other groups, 0 between two, negative in a wrong one; 0 if it is alone in its
    group. NaN for fewer than two groups.
    """
    unit, names = normalize(vectors.double(), dim=1), sorted(set(labels))
    member = torch.tensor([[label == name for name in names] for label in labels], dtype=torch.float64)
    sizes = member.sum(0)
    totals = (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(0) @ member  # distances to each group
    own = (totals * member).sum(1) / (member @ sizes - 1)
    others = (totals / sizes).masked_fill(member.bool(), float("inf")).amin(1)
    values = (others - own) / torch.maximum(own, others)
    return float(values.nan_to_num(nan=0.0).mean()) if len(names) > 1 else float("nan")


def words_figure(vectors: Mapping[str, torch.Tensor], tokens: Sequence[Token]) -> Figure:
    """Spoken words in one plane for all encoders: colours are words, markers speakers.

    `vectors` are `(tokens, dim)` by name of the encoder, one for each of `tokens`, which `choose_words` takes: of at
    most 8 words by at most 8 speakers, else `ValueError`. They are scaled to length one, each encoder's mean is taken
    off, and the axes are the first two principal components of all of them together. A panel's title has the silhouette
    coefficients in all dimensions, by word and by speaker.
    """
    labels, voices = [token.label for token in tokens], [token.speaker for token in tokens]
    words, speakers = sorted(set(labels)), sorted(set(voices))
    if len(words) > len(figures.POINT_COLOURS) or len(speakers) > len(figures.MARKERS):
        raise ValueError(f"too few colours or markers for {len(words)} words of {len(speakers)} speakers")
    colours = dict(zip(words, figures.POINT_COLOURS, strict=False))
    markers = dict(zip(speakers, figures.MARKERS, strict=False))
    how = {"linestyle": "", "markersize": 7, "markeredgecolor": "black", "markeredgewidth": 0.4}
    unit = [normalize(matrix.double(), dim=1) for matrix in vectors.values()]
    points, explained = principal_components(torch.cat([matrix - matrix.mean(0) for matrix in unit]))
    limits = [(float(low) - 0.05, float(high) + 0.05) for low, high in zip(points.amin(0), points.amax(0), strict=True)]
    (left, right), (bottom, top) = limits
    size = (4.6 * len(vectors) + 1.4, max(4.2, 1.7 + 4 * (top - bottom) / (right - left)))
    figure, axes = figures.new_figure(1, len(vectors), size, squeeze=False)
    parts = points.split(len(tokens))
    for axis, (name, matrix), part in zip(axes.flat, vectors.items(), parts, strict=True):
        for token, (x, y) in zip(tokens, part.tolist(), strict=True):
            axis.plot(x, y, marker=markers[token.speaker], color=colours[token.label], alpha=0.85, **how)
        by_word, by_speaker = silhouette(matrix, labels), silhouette(matrix, voices)
        axis.set_title(f"{name}\nsilhouette of words {by_word:.3f}, of speakers {by_speaker:.3f}", fontsize=10)
        axis.set(xlim=limits[0], ylim=limits[1], aspect="equal")
        axis.locator_params(nbins=5)
        axis.set_xlabel(f"component 1 ({100 * explained[0]:.0f} % of the variance)")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel(f"component 2 ({100 * explained[1]:.0f} %)")
    keys = [Line2D([], [], marker="o", color=colours[word], label=word, **how) for word in words]
    keys += [Line2D([], [], marker=markers[one], color="white", label=f"speaker {one}", **how) for one in speakers]
    figure.legend(handles=keys, loc="outside right center", fontsize=9, frameon=False)
    return figure
