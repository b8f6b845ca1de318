"""How far the frames of two views are aligned from where they belong, which the drawn speed tells exactly.

Speed changed by a factor `s` moves what is at time `s * t` of the clean view to the time `t` of the perturbed one;
other perturbations of this package leave all times as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from .. import figures
from ..errors import LaserError
from ..ops import soft_dtw_alignment

DISTANCES = torch.arange(201, dtype=torch.float64) / 1000  # seconds
METHODS = ("along the soft-DTW alignment", "nearest frames, in any order")


def drawn_speed(drawn: Mapping[str, Any]) -> float:
    """How many times as fast a perturbed view is, from what was drawn for it: the product of all `speed` in it."""
    speed = float(drawn.get("speed", 1.0))
    for part in drawn.get("parts", ()):
        speed *= drawn_speed(part)
    return speed


def deviations(clean: int, perturbed: int, speed: float, frame_seconds: float, middle: float = 0.0) -> torch.Tensor:
    """Seconds `(clean, perturbed)` by which a clean frame is later than where a perturbed frame belongs."""
    times = [middle + frame_seconds * torch.arange(count, dtype=torch.float64) for count in (clean, perturbed)]
    return times[0][:, None] - speed * times[1]


def shares_beyond(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor, float]], gamma: float, frame_seconds: float, middle: float = 0.0
) -> torch.Tensor:
    """How far aligned frames are from the true warp: shares further away than each of `DISTANCES`, a mean over pairs.

    Row 0 is along the soft-DTW alignment: frames (i, j) count with the expected alignment there. In row 1, each
    perturbed frame counts with the clean frame of largest cosine, wherever that is.

    `pairs` are frames of the clean and of the perturbed view, `(m, dim)` and `(n, dim)`, and the view's speed
    (`LaserError` if it does not explain the durations); `middle` is the time of the first frame's centre in its view.
    """
    shares = []
    for clean, perturbed, speed in pairs:
        if abs(len(clean) - speed * len(perturbed)) > 4:
            unknown = f"the true warp is not known: a speed of {speed:g} does not explain"
            raise LaserError(f"{unknown} views of {len(clean)} and {len(perturbed)} frames")
        x, y = normalize(clean, dim=-1), normalize(perturbed, dim=-1)
        soft = soft_dtw_alignment(x[None], y[None], gamma=gamma)[0].double()
        nearest = torch.zeros_like(soft).scatter_(0, (x @ y.T).argmax(0, keepdim=True), 1.0)
        # A distance that is a whole number of frames is not beyond itself.
        distance = deviations(len(clean), len(perturbed), speed, frame_seconds, middle).abs().flatten() - 1e-6
        place = torch.bucketize(distance, DISTANCES).expand(2, -1)
        weights = torch.stack([soft / soft.sum(), nearest / nearest.sum()]).flatten(1)
        within = torch.zeros(2, len(DISTANCES) + 1, dtype=torch.float64).scatter_add(1, place, weights)
        shares.append(1 - within.cumsum(1)[:, :-1])
    return torch.stack(shares).mean(0)


def alignment_figure(shares: Mapping[str, torch.Tensor], frame_seconds: float) -> Figure:
    """How far aligned frames of all pairs are from the true warp: `shares` from `shares_beyond`, by encoder."""
    figure, axes = figures.new_figure(1, 2, (8.6, 4.4))
    lines = list(zip(shares.items(), figures.LINE_COLOURS, figures.LINE_STYLES, strict=False))
    one_frame = int((DISTANCES - frame_seconds).abs().argmin())
    for number, (axis, method) in enumerate(zip(axes, METHODS, strict=True)):
        for (name, beyond), colour, style in lines:
            label = f"{name}: {100 * beyond[number][one_frame]:.1f} %"
            axis.plot(1000 * DISTANCES, 100 * beyond[number], color=colour, linestyle=style, label=label)
        axis.axvline(1000 * frame_seconds, color="0.6", linewidth=0.8, zorder=0)
        axis.set(yscale="log", ylim=(0.1, 100), xlim=(0, 1000 * float(DISTANCES[-1])))
        axis.set(xlabel="distance from the true warp, ms", ylabel="share further away, %")
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
        further = f"further than {1000 * frame_seconds:.0f} ms"
        axis.legend(fontsize=8, title_fontsize=8, loc="upper right", title=further)
    return figure
