"""Pictures of probes, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def plot_layer_weights(runs: Mapping[str, Sequence[float]], path: str | Path, title: str = "") -> None:
    """Learned layer weights as bars: their mean over runs, each run a dot.

    Args:
        runs: softmaxed weights by name of the run, one a hidden state (0 is the input of the first layer).
        path: of the PNG.
        title: above the picture.
    """
    shares = np.array(list(runs.values()))
    layers = np.arange(shares.shape[1])
    figure, axis = plt.subplots(figsize=(max(4.5, 0.5 * len(layers)), 3.4), layout="constrained")
    axis.bar(layers, shares.mean(0), color="C0", alpha=0.8)
    if len(shares) > 1:
        for row in shares:
            axis.plot(layers, row, ".", color="black", markersize=4)
    axis.axhline(1 / len(layers), color="grey", linestyle=":", linewidth=1, label="at the start: all alike")
    axis.set_xticks(layers)
    axis.set_xlabel("hidden state (0: input of the first layer)")
    axis.set_ylabel("weight")
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_probe_training(history: Sequence[Mapping[str, Any]], metric: str, path: str | Path, title: str = "") -> None:
    """CTC loss of training and dev, and the dev error rate, against optimiser steps.

    Args:
        history: log of the Trainer.
        metric: name of the error rate, in percent.
        path: of the PNG.
        title: above both panels.
    """

    def series(key: str) -> tuple[list[int], list[float]]:
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    figure, (losses, errors) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for key, name in (("loss", "training"), ("eval_loss", "dev")):
        losses.plot(*series(key), marker=".", label=name)
    losses.set_ylabel("CTC loss per label")
    losses.set_yscale("log")
    losses.legend(fontsize=8)
    errors.plot(*series(f"eval_{metric}"), marker=".", color="C1")
    errors.set_ylabel(f"dev {metric.upper()} (%)")
    errors.set_ylim(bottom=0)
    for axis in (losses, errors):
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
