"""Pictures of a run, drawn without a display."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from .records import read_json

_PANELS = (
    ("loss", "total loss"),
    ("soft_dtw", "normalised soft-DTW"),
    ("idm", "contrastive IDM"),
    ("frame_cosine", "mean pairwise cosine of frames"),
    ("effective_rank", "effective rank of frames"),
    ("grad_norm", "gradient norm before clipping"),
)


def _series(history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _spans_decades(runs: dict[str, list[dict[str, Any]]], key: str) -> bool:
    values = [v for history in runs.values() for name in (key, f"eval_{key}") for v in _series(history, name)[1]]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def plot_training(runs: dict[str, list[dict[str, Any]]], path: str | Path, title: str = "") -> None:
    """Loss terms and collapse statistics against optimiser steps.

    Args:
        runs: log history by name of the run; training values are drawn pale, held-out ones (`eval_…`) strong.
        path: of the PNG.
        title: above all panels.
    """
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.2), layout="constrained")
    for axis, (key, label) in zip(axes.flat, _PANELS, strict=True):
        for index, (name, history) in enumerate(runs.items()):
            colour = f"C{index}"
            steps, values = _series(history, key)
            held_steps, held = _series(history, f"eval_{key}")
            if steps:
                axis.plot(steps, values, color=colour, alpha=0.4 if held else 1.0, label=f"{name}: training")
            if held:
                axis.plot(held_steps, held, color=colour, marker=".", label=f"{name}: held-out")
        if _spans_decades(runs, key):
            axis.set_yscale("log")
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_alignment(
    alignments: dict[str, torch.Tensor], path: str | Path, frame_seconds: float, title: str = ""
) -> None:
    """Expected soft-DTW alignments side by side.

    Args:
        alignments: `(m, n)` matrices by name ("before", "after"), entries in [0, 1].
        path: of the PNG.
        frame_seconds: duration of a frame.
        title: above all panels.
    """
    figure, axes = plt.subplots(
        1, len(alignments), figsize=(4.6 * len(alignments), 4.4), layout="constrained", squeeze=False
    )
    for axis, (name, alignment) in zip(axes.flat, alignments.items(), strict=True):
        m, n = alignment.shape
        image = axis.imshow(
            alignment.clamp(0, 1).sqrt().numpy(),  # the root makes faint side paths visible
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=0,
            vmax=1,
            extent=(0, n * frame_seconds, 0, m * frame_seconds),
        )
        axis.set_title(name)
        axis.set_xlabel("perturbed view, seconds")
        axis.set_ylabel("clean view, seconds")
    figure.colorbar(image, ax=axes, label="square root of the expected alignment")
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Draw the loss terms of one or several finished runs into one picture."""
    parser = argparse.ArgumentParser(prog="python -m laser_hf.plots", description=main.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--output", type=Path, default=Path("loss_terms.png"), help="PNG to write (%(default)s)")
    parser.add_argument("--title", default="")
    options = parser.parse_args(argv)
    histories = {}
    for run in options.runs:
        log = run / "training_log.json"
        if not log.is_file():
            parser.error(f"{run} holds no training_log.json; is the run finished?")
        histories[run.name] = read_json(log)["log"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    plot_training(histories, options.output, options.title)
    print(options.output)


if __name__ == "__main__":
    main()
