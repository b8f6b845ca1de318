"""One account of means: loss terms over pairs (or frames) of all processes, and frames to see a collapse by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..objectives.spin import several_processes
from ..ops.statistics import effective_rank, mean_pairwise_cosine

MAX_FRAMES = 512
"""Frames of the collapse statistics: enough for a stable spectrum, few enough for a singular value decomposition."""
FRAMES_PER_PAIR = 64
"""Frames of one pair among which these are drawn."""


def sum_over_processes(value: Tensor, device: torch.device | None = None) -> Tensor:
    """The sum of `value` over all processes, each of which has to call it; `device` is where they communicate."""
    if several_processes():
        value = value.to(device, copy=True)
        dist.all_reduce(value)
    return value


def from_all_processes(value: Any) -> list[Any]:
    """`value` of every process, each of which has to call it."""
    gathered = [value]
    if several_processes():
        gathered *= dist.get_world_size()
        dist.all_gather_object(gathered, value)
    return gathered


def from_first_process(choose: Callable[[], Any]) -> Any:
    """What `choose()` returns in the first process, or the `LaserError` that it raises there, in every process."""
    found = error = None
    if not several_processes() or dist.get_rank() == 0:
        try:
            found = choose()
        except LaserError as raised:
            error = raised
    found, error = from_all_processes((found, error))[0]
    if error is not None:
        raise error
    return found


def spread(frames: Tensor, count: int) -> Tensor:
    """At most `count` of the rows of `frames`, evenly spaced; no random number is drawn."""
    if len(frames) <= count:
        return frames
    return frames[torch.linspace(0, len(frames) - 1, count, device=frames.device).long()]


class Means:
    """Mean loss terms of the pairs added, and collapse statistics of their frames, over all processes.

    The statistics are of a fixed number of projected frames, drawn evenly from the pairs added since the last `draw`.
    Fewer frames have a lower effective rank, so the first draw fixes the number (`count`, at most `MAX_FRAMES` on each
    process). Where a later draw finds fewer, as in the short last update of an epoch, the draw before fills it up.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names, self.device = tuple(names), device
        self.count: int | None = None
        self._sums: Tensor | None = None
        self._drawn: Tensor | None = None
        self._units, self._added = 0, []

    def add(self, terms: Mapping[str, Tensor], units: int, projected: Tensor, lengths: Sequence[int]) -> None:
        """Count a micro-batch without a host sync: terms `(pairs,)`, means over so many `units` (pairs or frames).

        Of the projected frames of the clean views, `(pairs, frames, dim)` with `lengths` in use, a few are kept.
        """
        sums = torch.stack([terms[name].detach().sum() for name in self.names])
        self._sums = sums if self._sums is None else self._sums + sums
        self._units += units
        for rows, length in zip(projected.detach(), lengths, strict=True):
            self._added.append(spread(rows[:length], FRAMES_PER_PAIR))

    def draw(self) -> None:
        """Draw from the frames added since the last draw: at the end of an update, or of a held-out pass."""
        if not self._added:
            return
        found, self._added = torch.cat(self._added).float(), []
        if self.count is None:
            self.count = min(len(found), MAX_FRAMES)
        if len(found) < self.count and self._drawn is not None:
            found = torch.cat((spread(self._drawn, self.count - len(found)), found))
        self._drawn = spread(found, self.count)

    def terms(self) -> dict[str, float]:
        """The means, "loss" for "total"; empty where no pair was added. Every process has to call it."""
        sums = [0.0] * len(self.names) if self._sums is None else self._sums.tolist()
        sums = torch.tensor([*sums, self._units], dtype=torch.float64)
        *sums, units = sum_over_processes(sums, self.device).tolist()
        names = ["loss" if name == "total" else name for name in self.names]
        return {name: total / units for name, total in zip(names, sums, strict=True)} if units else {}

    def statistics(self) -> dict[str, float]:
        """`frame_cosine` and `effective_rank` of the last draw; empty if it is incomplete. Every process calls it."""
        drawn = torch.zeros(0, 0) if self._drawn is None else self._drawn.cpu()
        everywhere = from_all_processes((drawn, self.count or 0))
        frames = torch.cat([part for part, _ in everywhere if len(part)] or [drawn])
        if len(frames) < max(sum(count for _, count in everywhere), 2):
            return {}
        frames = spread(frames, MAX_FRAMES)
        return {"frame_cosine": mean_pairwise_cosine(frames), "effective_rank": effective_rank(frames)}


class TrainingWindow(Means):
    """Means since the last line of the training log, with speech processed and time."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        super().__init__(names, device)
        self._processed_seconds = self._trained_seconds = 0.0  # before this window
        self.restart()

    def restart(self) -> None:
        """Begin a new window, with no frame of both views and no sample of the clean ones."""
        self._sums = None
        self._units = self.frames = self.samples = 0
        self.began = time.perf_counter()

    def close(self) -> dict[str, float]:
        """Values for a line of the log; begins the next window. Every process has to call it.

        They are terms, `processed_hours` (of source speech so far), `frames_per_second` and the collapse statistics.
        """
        logs, elapsed = self.terms(), time.perf_counter() - self.began
        frames = float(sum_over_processes(torch.tensor(self.frames), self.device))
        self.load_state(self.state())
        self.restart()
        speed = {"processed_hours": self._processed_seconds / 3600, "frames_per_second": frames / max(elapsed, 1e-9)}
        return {**logs, **speed, **self.statistics()}

    def state(self) -> dict[str, Any]:
        """Speech processed and time trained so far, over all resumes and processes, each of which has to call it."""
        samples = int(sum_over_processes(torch.tensor(self.samples), self.device))
        return {
            "processed_seconds": (round(self._processed_seconds * SAMPLE_RATE) + samples) / SAMPLE_RATE,
            "trained_seconds": self._trained_seconds + time.perf_counter() - self.began,
            "collapse_frames": self.count,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self._processed_seconds, self._trained_seconds = state["processed_seconds"], state["trained_seconds"]
        self.count = state["collapse_frames"]

    def partial(self) -> dict[str, Any]:
        """Of this process: what the next line of the log goes on from."""
        return {"sums": self._sums, "units": self._units, "drawn": self._drawn, "count": self.count}

    def load_partial(self, partial: Mapping[str, Any]) -> None:
        """Begin the window with what `partial` gave."""
        self.restart()
        self._units, self.count = partial["units"], partial["count"]
        kept = (partial["sums"], partial["drawn"])
        self._sums, self._drawn = (one if one is None else one.to(self.device) for one in kept)
