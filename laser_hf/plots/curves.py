"""Loss terms and collapse statistics of one or several runs, against optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from .style import LINE_COLOURS, plt, save

History = Sequence[Mapping[str, Any]]

_LABELS = {
    "loss": "total loss",
    "soft_dtw": "normalised soft-DTW",
    "idm": "contrastive IDM",
    "swapped_x": "cross-entropy: clean frames, other's codes",
    "swapped_y": "cross-entropy: perturbed frames, other's codes",
    "perplexity": "effective codes, targets",
    "code_perplexity": "effective codes, nearest to frames",
    "frame_cosine": "mean pairwise cosine of frames",
    "effective_rank": "effective rank of frames",
    "grad_norm": "gradient norm before clipping",
}
_STATISTICS = ("frame_cosine", "effective_rank", "grad_norm")
# Logged beside the terms by the Trainer, for book-keeping.
_NO_TERMS = {"step", "epoch", "learning_rate", "total_flos", "collapse", "skipped", "runtime", "processed_hours"}
_COLUMNS = 3


def term_names(histories: Sequence[History]) -> list[str]:
    """Names of the loss terms in the logs besides the total, in the order in which they come up.

    A term is what a line with a training loss carries besides the total, the statistics of the frames, the gradient
    norm and book-keeping (steps, learning rate, hours, speeds), whatever the objective calls it.
    """
    names: dict[str, None] = {}
    for history in histories:
        for entry in history:
            if "loss" in entry:
                names.update(dict.fromkeys(name for name, value in entry.items() if _is_term(name, value)))
    return list(names)


def _is_term(name: str, value: Any) -> bool:
    if name == "loss" or name in _STATISTICS or name in _NO_TERMS or name.endswith("_per_second"):
        return False
    return isinstance(value, int | float) and not name.startswith(("train_", "eval_"))


def _series(history: History, key: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _spans_decades(runs: Mapping[str, History], key: str) -> bool:
    values = [v for history in runs.values() for name in (key, f"eval_{key}") for v in _series(history, name)[1]]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def plot_training(runs: Mapping[str, History], path: str | Path, title: str = "") -> None:
    """Total loss, every loss term found in the logs, collapse statistics and gradient norm against optimiser steps.

    Args:
        runs: log history by name of the run; training values are drawn pale, held-out ones (`eval_…`) strong.
        path: of the PNG.
        title: above all panels.

    Raises:
        ValueError: no history holds a training or held-out loss.
    """
    if not any(_series(history, key)[0] for history in runs.values() for key in ("loss", "eval_loss")):
        raise ValueError(f"the log of {', '.join(runs) or 'no run'} holds no loss; is it a training_log.json?")
    panels = ["loss", *term_names(list(runs.values())), *_STATISTICS]
    panels = [key for key in panels if any(_has(history, key) for history in runs.values())]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.9 * rows + 0.6), layout="constrained")
    axes = axes.flatten().tolist() if len(panels) > 1 else [axes]
    colours = {name: LINE_COLOURS[index % len(LINE_COLOURS)] for index, name in enumerate(runs)}
    training_seen = held_seen = False
    for axis, key in zip(axes, panels, strict=False):
        for name, history in runs.items():
            steps, values = _series(history, key)
            held_steps, held = _series(history, f"eval_{key}")
            training_seen, held_seen = training_seen or bool(steps), held_seen or bool(held)
            if steps:
                # A run with one logged line has a point, which a line would not show.
                marker = "." if len(steps) == 1 else ""
                axis.plot(steps, values, color=colours[name], alpha=0.45 if held else 1.0, marker=marker)
            if held:
                axis.plot(held_steps, held, color=colours[name], marker="o", markersize=4, linewidth=1.8)
        if _spans_decades(runs, key):
            axis.set_yscale("log")
        axis.set_title(_LABELS.get(key, key.replace("_", " ")), fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    keys = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items()]
    if training_seen and held_seen:
        keys.append(Line2D([], [], color="black", alpha=0.45, label="training"))
    if held_seen:
        keys.append(Line2D([], [], color="black", marker="o", markersize=4, linewidth=1.8, label="held-out"))
    figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), fontsize=9, frameon=False)
    save(figure, path, title)


def _has(history: History, key: str) -> bool:
    return bool(_series(history, key)[0] or _series(history, f"eval_{key}")[0])
