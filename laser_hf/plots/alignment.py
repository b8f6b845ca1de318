"""How soft-DTW aligns the two views of an utterance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .style import plt, save


def plot_alignment(
    alignments: Mapping[str, torch.Tensor], path: str | Path, frame_seconds: float, title: str = ""
) -> None:
    """Expected soft-DTW alignments side by side.

    Args:
        alignments: `(m, n)` matrices by name ("before", "after"), entries in [0, 1].
        path: of the PNG.
        frame_seconds: duration of a frame.
        title: above all panels.
    """
    figure, axes = plt.subplots(
        1, len(alignments), figsize=(4.6 * len(alignments), 4.7), layout="constrained", squeeze=False
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
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("perturbed view, seconds")
    axes.flat[0].set_ylabel("clean view, seconds")
    figure.colorbar(image, ax=axes, label="square root of the expected alignment")
    save(figure, path, title)
