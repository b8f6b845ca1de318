"""One account of means: loss terms over pairs (or frames) of all processes, and frames to see a collapse by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..ops.statistics import effective_rank, mean_pairwise_cosine

MAX_FRAMES = 512
"""Frames of the collapse statistics: enough for a stable spectrum, few enough for a singular value decomposition."""
FRAMES_PER_PAIR = 64


def several_processes() -> bool:
    """Whether other processes take part in the training."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(value: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """The sum of `value` over all processes, each of which has to call it; `device` is where they communicate."""
    if several_processes():
        value = value.to(device, copy=True)
        dist.all_reduce(value)
    return value


def from_all_processes(value: Any) -> list[Any]:
    """`value` of every process, each of which has to call it."""
    if not several_processes():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def spread(frames: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` of the rows of `frames`, evenly spaced; no random number is drawn."""
    if len(frames) <= count:
        return frames
    return frames[torch.linspace(0, len(frames) - 1, count, device=frames.device).long()]


class Means:
    """Sums over pairs since the last `restart`: of a window of the training log, or of one pass over held-out pairs.

    Args:
        names: of the loss terms.
        device: where processes communicate.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget all sums."""
        self._sums: torch.Tensor | None = None
        self._units = self._frames = self._samples = 0

    def add(self, terms: Mapping[str, torch.Tensor], units: int, frames: int = 0, samples: int = 0) -> None:
        """Count one micro-batch; the device is not waited for.

        Args:
            terms: each `(pairs,)`.
            units: pairs, or frames, that the terms are a mean over.
            frames: of both views.
            samples: of the clean views.
        """
        sums = torch.stack([terms[name].detach().sum() for name in self.names])
        self._sums = sums if self._sums is None else self._sums + sums
        self._units += units
        self._frames += frames
        self._samples += samples

    def totals(self) -> tuple[dict[str, float], int, int]:
        """Means of the terms ("loss" for "total"; none without any pair), frames and samples, over all processes."""
        sums = self._sums if self._sums is not None else torch.zeros(len(self.names))
        counts = torch.tensor([self._units, self._frames, self._samples], dtype=torch.float64)
        *sums, units, frames, samples = sum_over_processes(torch.cat((sums.double().cpu(), counts)), self.device).tolist()
        means = {}
        if units:
            means = {
                "loss" if name == "total" else name: total / units
                for name, total in zip(self.names, sums, strict=True)
            }
        return means, int(frames), int(samples)

    def samples(self) -> int:
        """Samples of the clean views so far, over all processes."""
        return int(sum_over_processes(torch.tensor(self._samples), self.device))


class FrameSample:
    """A fixed number of projected frames, drawn evenly from the pairs of one update, or of one held-out pass.

    Fewer frames have a lower effective rank, so the number is fixed by the first draw (at most `MAX_FRAMES` on each
    process). Where a later draw finds fewer, as in the short last update of an epoch, frames of the draw before fill
    it up.

    Attributes:
        count: frames of a draw of this process, once it is fixed.
    """

    def __init__(self) -> None:
        self.count: int | None = None
        self._added: list[torch.Tensor] = []
        self._drawn: torch.Tensor | None = None

    def add(self, projected: torch.Tensor, lengths: Sequence[int]) -> None:
        """Take at most `FRAMES_PER_PAIR` frames of each pair.

        Args:
            projected: frames of the clean views, `(pairs, frames, dim)`.
            lengths: their frames in use, as numbers.
        """
        for rows, length in zip(projected.detach(), lengths, strict=True):
            self._added.append(spread(rows[:length], FRAMES_PER_PAIR))

    def draw(self) -> None:
        """Draw from the frames added since the last draw."""
        if not self._added:
            return
        found = torch.cat(self._added).float()
        self._added = []
        if self.count is None:
            self.count = min(len(found), MAX_FRAMES)
        if len(found) < self.count and self._drawn is not None:
            found = torch.cat((spread(self._drawn, self.count - len(found)), found))
        self._drawn = spread(found, self.count)

    def statistics(self) -> dict[str, float]:
        """`frame_cosine` and `effective_rank` of the last draw, over all processes; empty if it is incomplete."""
        drawn = torch.zeros(0, 0) if self._drawn is None else self._drawn.cpu()
        everywhere = from_all_processes((drawn, self.count or 0))
        frames = torch.cat([part for part, _ in everywhere if len(part)] or [drawn])
        if len(frames) < max(sum(count for _, count in everywhere), 2):
            return {}
        frames = spread(frames, MAX_FRAMES)
        return {"frame_cosine": mean_pairwise_cosine(frames), "effective_rank": effective_rank(frames)}
