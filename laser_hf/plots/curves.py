"""Curves over updates: loss terms, statistics of the frames, word discrimination."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import LaserError

if TYPE_CHECKING:
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


def _series(history: History, key: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def training_figure(runs: Mapping[str, History], terms: Mapping[str, str] | None = None) -> Figure:
    """Total loss, loss terms, statistics of the frames and gradient norm against updates, a panel for each in the logs.

    Args:
        runs: log history by name of the run; training values are drawn pale, held-out ones (`eval_...`) strong.
        terms: names of the loss terms and their labels, as `Objective.term_labels`.

    Raises:
        LaserError: no history holds a training or held-out loss.
    """
    from matplotlib.lines import Line2D

    from ..figures import LINE_COLOURS, new_figure

    labels = {"total": "total loss", **(terms or {})}
    labels = {"loss" if name == "total" else name: label for name, label in labels.items()} | _STATISTICS
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
        if _spans_decades(value for pair in values[key].values() for _, found in pair for value in found):
            axis.set_yscale("log")
        axis.set_title(labels[key], fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
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


def _spans_decades(values: Iterable[float]) -> bool:
    values = list(values)
    return min(values) > 0 and max(values) > 30 * min(values)


def discrimination_figure(history: History) -> Figure | None:
    """Word discrimination and phone error of the held-out words against updates; `None` if the log has no such values.

    Args:
        history: log of a run with `--eval_alignments`.
    """
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
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
