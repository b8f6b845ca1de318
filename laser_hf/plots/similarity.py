"""How alike the frames of one utterance are: its self-similarity matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..superb.probing.alignments import Token
from .style import plt, save

_WORD_SIZE = 8  # points


def self_similarity(frames: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs of frames, `(n, n)` float64 in [-1, 1], of `(n, dim)`.

    Raises:
        ValueError: no frames, a wrong shape, or values that are not finite.
    """
    if frames.ndim != 2 or len(frames) == 0:
        raise ValueError(f"expected frames (n, dim) with n > 0, got {tuple(frames.shape)}")
    if not torch.isfinite(frames).all():
        raise ValueError("the frames are not all finite, so they have no cosines")
    unit = torch.nn.functional.normalize(frames.double(), dim=1)
    return (unit @ unit.T).clamp(-1, 1)


def plot_self_similarity(
    frames: Mapping[str, torch.Tensor],
    path: str | Path,
    frame_seconds: float,
    title: str = "",
    words: Sequence[Token] = (),
) -> None:
    """Self-similarity matrices side by side, on one colour scale.

    Args:
        frames: of one utterance, `(n, dim)`, by name ("before", "after").
        path: of the PNG.
        frame_seconds: duration of a frame.
        title: above all panels.
        words: spoken in the utterance; those within the frames are named at the upper edge.
    """
    matrices = {name: self_similarity(value) for name, value in frames.items()}
    # Frames of one encoder rarely point in opposite directions: the scale starts where the values do.
    lowest = min(float(matrix.min()) for matrix in matrices.values())
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(4.9 * len(matrices) + 0.8, 5.9), layout="constrained", squeeze=False
    )
    longest = max(map(len, matrices.values())) * frame_seconds
    inside = [word for word in words if word.end <= longest + frame_seconds]
    # The title of a panel clears the slanted words by itself, but the layout does not learn of it.
    height = _WORD_SIZE * (1 + 0.5 * max(len(word.label) for word in inside)) if inside else 0
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        seconds = len(matrix) * frame_seconds
        image = axis.imshow(
            matrix.numpy(),
            origin="lower",
            cmap="viridis",
            vmin=lowest,
            vmax=1,
            extent=(0, seconds, 0, seconds),
        )
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
    save(figure, path, title)
