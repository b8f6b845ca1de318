"""Connectionist temporal classification: losses of a batch, and greedy paths back to label sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def ctc_losses(
    log_probs: torch.Tensor, frames: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor, blank: int = 0
) -> torch.Tensor:
    """Loss of each utterance divided by the length of its target, (batch,) float32.

    Their mean is `torch.nn.CTCLoss(reduction="mean", zero_infinity=True)`: a target that does not fit into its frames
    counts 0.

    Args:
        log_probs: (batch, frames, classes), normalised.
        frames: frames in use, (batch,).
        targets: (batch, labels), padded with anything.
        target_lengths: labels in use, (batch,).
        blank: class of the blank.
    """
    losses = F.ctc_loss(
        log_probs.float().transpose(0, 1),
        targets,
        frames,
        target_lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return losses / target_lengths.clamp(min=1).to(losses)


def collapse(path: Sequence[int], blank: int = 0) -> list[int]:
    """Labels of a frame-wise path: repeats merged, then blanks dropped, so that `A _ A` is `A A`."""
    return [label for before, label in zip([None, *path], path, strict=False) if label not in (before, blank)]


def merge_without_blanks(path: Sequence[int], dropped: Sequence[int]) -> list[int]:
    """Labels of a path as S3PRL's PR task reads it: blanks (and `<eos>`) dropped first, then repeats merged.

    `A _ A` is `A`: two equal phones in a row can never be recognised.
    """
    kept = [label for label in path if label not in dropped]
    return [label for before, label in zip([None, *kept], kept, strict=False) if label != before]
