"""The figures of a run: curves over updates, and alignment, self-similarity and words with a panel for each encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LaserError
from ..ops import soft_dtw_alignment
from ..superb.discrimination import Token

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]

_STATISTICS = {
    "frame_cosine": "mean pairwise cosine of frames",
    "effective_rank": "effective rank of frames",
    "grad_norm": "gradient norm before clipping",
}
_DISCRIMINATION = {
    "word discrimination, average precision": {"eval_word_ap_across": "across speakers"},
    "ABX-like phone error (chance 0.5)": {"eval_abx_across": "across speakers", "eval_abx_within": "within speakers"},
}
_COLUMNS = 3
SHOWN_SECONDS = 3.0  # of an utterance: the path through a longer one would be too thin to see
_WORD_SIZE = 8  # points


def _series(history: History, key: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def training_figure(runs: Mapping[str, History], terms: Mapping[str, str] | None = None) -> Figure:
    """Total loss, loss terms, statistics of the frames and gradient norm against updates, a panel for each in the logs.

    Args:
        runs: log by name of the run; training values are drawn pale, held-out ones (`eval_...`) strong.
        terms: labels of the loss terms, as `Objective.term_labels`.

    Raises:
        LaserError: no history holds a training or held-out loss.
    """
    from matplotlib.lines import Line2D

    from ..figures import LINE_COLOURS, new_figure

    labels = {"loss": "total loss", **(terms or {}), **_STATISTICS}
    labels["loss"] = labels.pop("total", labels["loss"])
    values = {
        key: {name: (_series(log, key), _series(log, f"eval_{key}")) for name, log in runs.items()} for key in labels
    }
    panels = [key for key in labels if any(steps for pair in values[key].values() for steps, _ in pair)]
    if "loss" not in panels:
        raise LaserError(f"the log of {', '.join(runs) or 'no run'} holds no loss; is it a training_log.json?")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, (4 * columns, 2.9 * rows + 0.6), squeeze=False)
    colours = {name: LINE_COLOURS[index % len(LINE_COLOURS)] for index, name in enumerate(runs)}
    for axis, key in zip(axes.flat, panels, strict=False):
        for name, ((steps, training), (held_steps, held)) in values[key].items():
            if steps:
                # A single logged line is one point, which needs a marker to be seen.
                marker = "." if len(steps) == 1 else ""
                axis.plot(steps, training, color=colours[name], alpha=0.45 if held else 1.0, marker=marker)
            if held:
                axis.plot(held_steps, held, color=colours[name], marker="o", markersize=4, linewidth=1.8)
        shown = [value for pair in values[key].values() for _, found in pair for value in found]
        if min(shown) > 0 and max(shown) > 30 * min(shown):
            axis.set_yscale("log")
        _finish_curves(axis, labels[key])
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    keys = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items() if len(runs) > 1]
    training_seen, held_seen = (any(pair[i][0] for key in panels for pair in values[key].values()) for i in (0, 1))
    if training_seen and held_seen:
        keys.append(Line2D([], [], color="black", alpha=0.45, label="training"))
    if held_seen:
        keys.append(Line2D([], [], color="black", marker="o", markersize=4, linewidth=1.8, label="held-out"))
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), fontsize=9, frameon=False)
    return figure


def _finish_curves(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("update")
    axis.grid(alpha=0.3)


def discrimination_figure(history: History) -> Figure | None:
    """Word discrimination and phone error of held-out words against updates; `None` if the log has no such values."""
    from ..figures import LINE_COLOURS, new_figure

    curves = {
        label: {name: _series(history, key) for key, name in keys.items() if _series(history, key)[0]}
        for label, keys in _DISCRIMINATION.items()
    }
    curves = {label: lines for label, lines in curves.items() if lines}
    if not curves:
        return None
    figure, axes = new_figure(1, len(curves), squeeze=False)
    for axis, (label, lines) in zip(axes.flat, curves.items(), strict=True):
        for colour, (name, (steps, values)) in zip(LINE_COLOURS, lines.items(), strict=False):
            axis.plot(steps, values, marker=".", color=colour, label=name)
        _finish_curves(axis, label)
        axis.legend(fontsize=8)
    return figure


def alignment_figure(
    views: Mapping[str, tuple[torch.Tensor, torch.Tensor]], frame_seconds: float, gamma: float
) -> Figure:
    """Expected soft-DTW alignments (smoothing `gamma`) of two views of an utterance, first seconds of the clean one.

    `views` are frames of the clean and of the perturbed view, `(m, dim)` and `(n, dim)`, by name of the encoder.
    """
    from ..figures import new_figure

    alignments = {}
    for name, pair in views.items():
        unit = [torch.nn.functional.normalize(view, dim=-1)[None] for view in pair]
        alignments[name] = soft_dtw_alignment(*unit, gamma=gamma)[0, : round(SHOWN_SECONDS / frame_seconds)]
    # As much of the perturbed view as is aligned with the frames shown of the clean one.
    columns = max(1 + int((alignment.sum(0) > 0.05).nonzero().max()) for alignment in alignments.values())
    figure, axes = new_figure(1, len(views), (4.6 * len(views), 4.7), squeeze=False)
    for axis, (name, alignment) in zip(axes.flat, alignments.items(), strict=True):
        shown = alignment[:, :columns].clamp(0, 1).sqrt()  # the root makes faint side paths visible
        extent = (0, shown.shape[1] * frame_seconds, 0, shown.shape[0] * frame_seconds)
        image = axis.imshow(shown.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1, extent=extent)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("perturbed view, seconds")
    axes.flat[0].set_ylabel("clean view, seconds")
    figure.colorbar(image, ax=axes, label="square root of the expected alignment")
    return figure


def self_similarity(frames: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs of frames, `(n, n)` float64 in [-1, 1], of `(n, dim)`."""
    unit = torch.nn.functional.normalize(frames.double(), dim=1)
    return (unit @ unit.T).clamp(-1, 1)


def self_similarity_figure(
    frames: Mapping[str, torch.Tensor], frame_seconds: float, words: Sequence[Token] = ()
) -> Figure:
    """Self-similarity of the first seconds of an utterance, on one colour scale for all encoders.

    `frames` are `(n, dim)`, by name of the encoder; `words` within the frames shown are named at the upper edge.
    """
    from ..figures import new_figure, plt

    matrices = {name: self_similarity(one[: round(SHOWN_SECONDS / frame_seconds)]) for name, one in frames.items()}
    # Cosines within one encoder are rarely negative: the colour scale starts at the smallest one.
    lowest = min(float(matrix.min()) for matrix in matrices.values())
    figure, axes = new_figure(1, len(matrices), (4.9 * len(matrices) + 0.8, 5.9), squeeze=False)
    longest = max(map(len, matrices.values())) * frame_seconds
    inside = [word for word in words if word.end <= longest + frame_seconds]
    # The layout does not know the height of the slanted words, so the title of a panel is moved above them.
    height = _WORD_SIZE * (1 + 0.5 * max(len(word.label) for word in inside)) if inside else 0
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        seconds = len(matrix) * frame_seconds
        extent = (0, seconds, 0, seconds)
        image = axis.imshow(matrix.numpy(), origin="lower", cmap="viridis", vmin=lowest, vmax=1, extent=extent)
        for edge in sorted({time for word in inside for time in (word.start, word.end)}):
            axis.axvline(edge, color="white", linewidth=0.5, alpha=0.6)
            axis.axhline(edge, color="white", linewidth=0.5, alpha=0.6)
        # The last word may end a little behind the last frame.
        axis.set(xlim=(0, seconds), ylim=(0, seconds), xlabel="seconds")
        if inside:
            named = axis.secondary_xaxis("top")
            named.set_xticks([word.start + word.duration / 2 for word in inside], [word.label for word in inside])
            named.tick_params(length=0, labelsize=_WORD_SIZE, labelrotation=60)
            plt.setp(named.get_xticklabels(), ha="left", rotation_mode="anchor")
        axis.set_title(name, fontsize=10, y=1, pad=6 + height)
    axes.flat[0].set_ylabel("seconds")
    figure.colorbar(image, ax=axes, label="cosine of two frames", shrink=0.8)
    return figure


def principal_components(vectors: torch.Tensor, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal components of `(n, dim)`: centred points `(n, count)` float64, and shares of the variance `(count,)`.

    The sign of a component is such that its loading of largest absolute value is positive.
    """
    centred = vectors.double() - vectors.double().mean(0)
    _, singular, loadings = torch.linalg.svd(centred, full_matrices=False)
    loadings = loadings[:count]
    largest = loadings.gather(1, loadings.abs().argmax(1, keepdim=True))
    loadings = loadings * torch.where(largest < 0, -1.0, 1.0)
    variance = singular.square()
    total = variance.sum()
    explained = variance[:count] / total if total > 0 else torch.zeros(count, dtype=torch.float64)
    return centred @ loadings.T, explained


def words_figure(vectors: Mapping[str, torch.Tensor], tokens: Sequence[Token]) -> Figure:
    """Tokens of words in the plane of their first two principal components: colours are words, markers speakers.

    Args:
        vectors: one for each token, `(tokens, dim)`, by name of the encoder.
        tokens: of at most 8 words by at most 8 speakers, such as `choose_words` takes.

    Raises:
        ValueError: more words or speakers, or not as many vectors as tokens.
    """
    from matplotlib.lines import Line2D

    from ..figures import MARKERS, POINT_COLOURS, new_figure

    words, speakers = sorted({token.label for token in tokens}), sorted({token.speaker for token in tokens})
    if len(words) > len(POINT_COLOURS) or len(speakers) > len(MARKERS):
        raise ValueError(f"too few colours or markers for {len(words)} words of {len(speakers)} speakers")
    colours, markers = dict(zip(words, POINT_COLOURS, strict=False)), dict(zip(speakers, MARKERS, strict=False))
    how = {"linestyle": "", "markersize": 7, "markeredgecolor": "black", "markeredgewidth": 0.4}
    figure, axes = new_figure(1, len(vectors), (4.6 * len(vectors) + 1.4, 4.8), squeeze=False)
    for axis, (name, matrix) in zip(axes.flat, vectors.items(), strict=True):
        points, explained = principal_components(matrix)
        for token, (x, y) in zip(tokens, points.tolist(), strict=True):
            axis.plot(x, y, marker=markers[token.speaker], color=colours[token.label], alpha=0.85, **how)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(f"component 1 ({100 * explained[0]:.0f} % of the variance)")
        axis.set_ylabel(f"component 2 ({100 * explained[1]:.0f} %)")
        axis.set_aspect("equal", adjustable="datalim")
        axis.grid(alpha=0.3)
    keys = [Line2D([], [], marker="o", color=colours[word], label=word, **how) for word in words]
    keys += [Line2D([], [], marker=markers[one], color="white", label=f"speaker {one}", **how) for one in speakers]
    figure.legend(handles=keys, loc="outside right center", fontsize=9, frameon=False)
    return figure
