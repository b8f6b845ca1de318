"""Statistics of a set of frames: their mean cosine and their effective rank."""

from __future__ import annotations

import torch


def mean_pairwise_cosine(frames: torch.Tensor) -> float:
    """Mean cosine over all pairs of different frames of `(count, dim)`; 1 if all point the same way."""
    unit = torch.nn.functional.normalize(frames.double(), dim=-1)
    count = len(unit)
    if count < 2:
        return float("nan")
    return ((unit.sum(0).square().sum() - count) / (count * (count - 1))).item()


def effective_rank(frames: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred `(count, dim)` (Roy & Vetterli 2007).

    1 if all frames lie on a line through their mean or are equal; `min(count - 1, dim)` at most.
    """
    if len(frames) < 2:
        return float("nan")
    centred = frames.double() - frames.double().mean(0)
    singular = torch.linalg.svdvals(centred)
    total = singular.sum()
    if total <= 1e-12 * len(frames):
        return 1.0
    return torch.special.entr(singular / total).sum().exp().item()
