"""Pictures of an evaluation: the trade-off of misses and false alarms, and how two pairs align."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .matching import best_path
from .scoring import BETA, DetectionCurve

_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


def _deviate(rates: np.ndarray) -> np.ndarray:
    """Normal deviates of rates, kept off 0 and 1 where they are infinite."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(float(rate)) for rate in np.clip(rates, 5e-5, 1 - 5e-5)])


def plot_detection(curves: Mapping[str, DetectionCurve], path: Path, beta: float = BETA, title: str = "") -> None:
    """Miss rate against false-alarm rate on normal deviate scales (after Martin et al., 1997), means over queries.

    The best term-weighted value of each curve is marked. Unlike in a DET curve of pooled trials every query weighs the
    same.

    Args:
        curves: by name ("layer 4, eval").
        path: of the PNG.
        beta: of the term-weighted value.
        title: above the picture.
    """
    figure, axis = plt.subplots(figsize=(5.6, 5.2), layout="constrained")
    for number, (name, curve) in enumerate(curves.items()):
        points = len(curve.miss)  # one for every distinct score: drawn thinly where they crowd
        keep = np.unique(np.concatenate([np.geomspace(1, points, 1500), np.linspace(1, points, 500)]).astype(int)) - 1
        axis.plot(
            _deviate(curve.false_alarm[keep]), _deviate(curve.miss[keep]), color=f"C{number}", drawstyle="steps-post"
        )
        values = 1 - curve.miss - beta * curve.false_alarm
        best = int(values.argmax())
        axis.plot(
            _deviate(curve.false_alarm[[best]]),
            _deviate(curve.miss[[best]]),
            "o",
            color=f"C{number}",
            label=f"{name}: MTWV {values[best]:.4f}",
        )
    ticks = _deviate(np.array(_TICKS))
    labels = [f"{100 * tick:g}" for tick in _TICKS]
    axis.set_xticks(ticks, labels)
    axis.set_yticks(ticks, labels)
    axis.set_xlim(*_deviate(np.array([5e-5, 0.995])))
    axis.set_ylim(*_deviate(np.array([5e-5, 0.995])))
    axis.set_xlabel("false alarms, % of non-targets")
    axis.set_ylabel("misses, % of targets")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@dataclass(frozen=True)
class Match:
    """One pair to draw: its scaled distance matrix (query frames, document frames) and what is known of it."""

    title: str
    distance: np.ndarray


def plot_matches(matches: list[Match], path: Path, frame_seconds: float) -> None:
    """Distance matrices below each other, dark where frames are alike, with the best alignment drawn in.

    Args:
        matches: at least one.
        path: of the PNG.
        frame_seconds: time from one frame to the next.
    """
    figure, axes = plt.subplots(len(matches), 1, figsize=(9, 2.9 * len(matches)), layout="constrained", squeeze=False)
    for axis, match in zip(axes.flat, matches, strict=True):
        n, m = match.distance.shape
        image = axis.imshow(
            match.distance,
            origin="lower",
            aspect="auto",
            cmap="viridis",
            vmin=0,
            vmax=1,
            extent=(0, m * frame_seconds, 0, n * frame_seconds),
        )
        cost, alignment = best_path(match.distance)
        points = (np.array(alignment, dtype=float) + 0.5) * frame_seconds
        axis.plot(points[:, 1], points[:, 0], color="white", linewidth=2.5)
        axis.plot(points[:, 1], points[:, 0], color="C3", linewidth=1.2)
        axis.set_title(f"{match.title}; alignment cost {cost:.3f}", fontsize=9)
        axis.set_xlabel("document, seconds")
        axis.set_ylabel("query, seconds")
    figure.colorbar(image, ax=axes, label="distance, scaled to [0, 1] in each row")
    figure.savefig(path, dpi=110)
    plt.close(figure)
