"""Means over held-out pairs, and collapse statistics of their frames, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ..ops.statistics import effective_rank, mean_pairwise_cosine
from .monitor import pick_frames

FRAMES_PER_PAIR = 64


class HeldOutMeans:
    """Sums over the held-out pairs of one evaluation.

    Args:
        names: of the loss terms.
        dim: of the projected frames.
    """

    def __init__(self, names: tuple[str, ...], dim: int) -> None:
        self.names = names
        self._sums = torch.zeros(len(names), dtype=torch.float64)
        self._units = 0
        self._frames = [torch.zeros(0, dim)]

    def add(
        self, terms: Mapping[str, torch.Tensor], units: int, projected: torch.Tensor, lengths: torch.Tensor
    ) -> None:
        """Count one batch.

        Args:
            terms: each `(pairs,)`.
            units: pairs, or frames, that the terms are a mean over.
            projected: frames of the clean views, `(pairs, frames, dim)`.
            lengths: their frames in use.
        """
        self._sums += torch.stack([terms[name].sum().double().cpu() for name in self.names])
        self._units += units
        self._frames.append(pick_frames(projected.float(), lengths, FRAMES_PER_PAIR * len(projected)).cpu())

    def gather(
        self, reduce: Callable[[torch.Tensor], torch.Tensor], device: torch.device, world_size: int
    ) -> dict[str, float]:
        """Mean terms (`loss` for the total), `frame_cosine` and `effective_rank`; every process has to call it.

        Raises:
            ValueError: no process counted a pair.
        """
        frames = torch.cat(self._frames)
        if world_size > 1:
            gathered: list[Any] = [None] * world_size
            dist.all_gather_object(gathered, frames)
            frames = torch.cat(gathered)
        frames = pick_frames(frames[None], torch.tensor([len(frames)]))
        *sums, units = reduce(torch.cat((self._sums, torch.tensor([float(self._units)]))).to(device)).tolist()
        if not units:
            raise ValueError("none of the held-out utterances could be used; see the log for the reasons")
        means = {
            "loss" if name == "total" else name: total / units for name, total in zip(self.names, sums, strict=True)
        }
        if len(frames) > 1:
            means["frame_cosine"] = mean_pairwise_cosine(frames)
            means["effective_rank"] = effective_rank(frames)
        return means
