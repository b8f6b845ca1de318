"""Curves of runs: loss terms relative to their start, and statistics of the frames, against updates."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .. import figures
from ..errors import LaserError

History = Sequence[Mapping[str, Any]]

# Title and unit of what is drawn as it is.
_MEASURES = {
    "word_ap_across": ("word discrimination across speakers", "average precision (best 1)"),
    "abx_across": ("ABX-like phone error across speakers", "error (chance 0.5, best 0)"),
    "abx_within": ("ABX-like phone error within speakers", "error (chance 0.5, best 0)"),
    "frame_cosine": ("mean pairwise cosine of frames", "cosine"),
    "effective_rank": ("effective rank of frames", "dimensions"),
    "grad_norm": ("gradient norm before clipping", "norm"),
}
_COLUMNS = 3
_ALARM = "#CC3311"  # Paul Tol, vibrant red


def _series(history: History, key: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def training_figure(
    runs: Mapping[str, History], terms: Mapping[str, str] | None = None, warm_up: int = 0, held_out: int | None = None
) -> Figure:
    """A panel for each loss term, measure of words and phones, and statistic that the logs hold, against updates.

    Total and terms are in percent of their first value: their size is mostly a matter of the random projection head.
    Training values are pale, held-out ones (`eval_...`) strong. The first collapse alarm of each run is marked.
    `runs` are logs by the name of the run (`LaserError` if none holds a loss), `terms` the objective's `term_labels`,
    `warm_up` updates until the learning rate has its peak, and `held_out` the number of held-out pairs.
    """
    labels = {"loss" if term == "total" else term: label for term, label in (terms or {"total": "total loss"}).items()}
    values = {
        key: {name: (_series(log, key), _series(log, f"eval_{key}")) for name, log in runs.items()}
        for key in (*labels, *_MEASURES)
    }
    panels = [key for key, found in values.items() if any(steps for pair in found.values() for steps, _ in pair)]
    if "loss" not in panels:
        raise LaserError(f"the log of {', '.join(runs) or 'no run'} holds no loss; is it a training_log.json?")
    rows, columns = -(-len(panels) // _COLUMNS), min(_COLUMNS, len(panels))
    figure, axes = figures.new_figure(rows, columns, (4 * columns, 2.9 * rows + 0.6), squeeze=False)
    colours = dict(zip(runs, itertools.cycle(figures.LINE_COLOURS), strict=False))
    fired = {n: [e["step"] for e in log if e.get("eval_collapse") or e.get("collapse")] for n, log in runs.items()}
    for axis, key in zip(axes.flat, panels, strict=False):
        relative = key in labels and all(found[0] > 0 for pair in values[key].values() for _, found in pair if found)
        shown = []
        for name, pair in values[key].items():
            for held, (steps, found) in enumerate(pair):
                if not steps:
                    continue
                found = [100 * value / found[0] for value in found] if relative else found
                shown += found
                # A single logged line is one point, which needs a marker to be seen.
                how = {"marker": "o" if held else "." if len(steps) == 1 else "", "markersize": 4}
                alpha = 0.45 if pair[1][0] and not held else 1.0
                axis.plot(steps, found, color=colours[name], alpha=alpha, linewidth=1.5 + 0.3 * held, **how)
        if key in (*labels, "grad_norm") and 0 < 30 * min(shown) < max(shown):
            axis.set_yscale("log")
        if warm_up:
            axis.axvspan(0, warm_up, color="0.93", zorder=0)
        for name in filter(fired.get, runs):
            colour = _ALARM if len(runs) == 1 else colours[name]
            axis.axvline(min(fired[name]), color=colour, linestyle=":", linewidth=1.6)
        title, unit = _MEASURES.get(key, (labels.get(key), "% of its start" if relative else "value"))
        axis.set_title(textwrap.fill(title, 44), fontsize=10)
        axis.set(xlabel="update", ylabel=unit)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    keys = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items() if len(runs) > 1]
    training_seen, held_seen = (any(pair[i][0] for key in panels for pair in values[key].values()) for i in (0, 1))
    if training_seen and held_seen:
        keys.append(Line2D([], [], color="black", alpha=0.45, label="training"))
    if held_seen:
        label = f"held-out ({held_out} pairs)" if held_out else "held-out"
        keys.append(Line2D([], [], color="black", marker="o", markersize=4, linewidth=1.8, label=label))
    if warm_up:
        keys.append(Patch(color="0.93", label="warm-up"))
    if any(fired.values()):
        colour = _ALARM if len(runs) == 1 else "black"
        keys.append(Line2D([], [], color=colour, linestyle=":", linewidth=1.6, label="collapse alarm"))
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), fontsize=9, frameon=False)
    return figure
