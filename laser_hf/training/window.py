"""What is counted between two lines of the log: loss terms, speech processed, speed, collapse statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from ..encoders import SAMPLE_RATE
from ..ops.statistics import effective_rank, mean_pairwise_cosine
from .monitor import pick_frames


class LogWindow:
    """Sums over the updates since the last line of the log.

    Args:
        names: of the loss terms.
        reduce: sum of a tensor over all processes.
        device: where `reduce` wants its tensor.

    Attributes:
        processed_seconds: source speech of all processes since training began, the unit of the paper's Table 1.
        trained_seconds: wall time of training, over all resumes.
    """

    def __init__(
        self, names: tuple[str, ...], reduce: Callable[[torch.Tensor], torch.Tensor], device: torch.device
    ) -> None:
        self.names = names
        self.reduce = reduce
        self.device = device
        self.processed_seconds = 0.0
        self.trained_seconds = 0.0
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        self._sums: torch.Tensor | None = None
        self._units = self._frames = self._samples = 0
        self._start = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Time that was no training time, such as an evaluation."""
        self._start += seconds

    def add(
        self,
        terms: Mapping[str, torch.Tensor],
        units: int,
        frames: int,
        samples: int,
        projected: torch.Tensor,
        lengths: torch.Tensor,
    ) -> None:
        """Count one micro-batch.

        Args:
            terms: each `(pairs,)`.
            units: pairs, or frames, that the terms are a mean over.
            frames: of both views.
            samples: of the clean views.
            projected: frames of the clean views, `(pairs, frames, dim)`; statistics are computed when a line is logged.
            lengths: their frames in use.
        """
        sums = torch.stack([terms[name].detach().sum() for name in self.names])
        self._sums = sums if self._sums is None else self._sums + sums
        self._units += units
        self._frames += frames
        self._samples += samples
        self._last = projected.detach(), lengths

    def seconds(self) -> tuple[float, float]:
        """Speech processed by all processes and wall time trained, with what this window has so far."""
        samples = float(self.reduce(torch.tensor(self._samples, device=self.device)))
        return (
            self.processed_seconds + samples / SAMPLE_RATE,
            self.trained_seconds + time.perf_counter() - self._start,
        )

    def close(self) -> dict[str, float]:
        """Means of the terms, speech processed, speed and collapse statistics; begins the next window."""
        sums = self._sums if self._sums is not None else torch.zeros(len(self.names))
        counts = torch.tensor([self._units, self._frames, self._samples], dtype=torch.float64)
        summed = self.reduce(torch.cat((sums.double().cpu(), counts)).to(self.device)).tolist()
        units, frames, samples = summed[-3:]
        elapsed = time.perf_counter() - self._start
        self.trained_seconds += elapsed
        self.processed_seconds += samples / SAMPLE_RATE
        logs = {}
        if units:
            # The total is the Trainer's own "loss".
            logs = {name: summed[i] / units for i, name in enumerate(self.names) if name != "total"}
        logs["processed_hours"] = self.processed_seconds / 3600
        logs["frames_per_second"] = frames / max(elapsed, 1e-9)
        last = pick_frames(*self._last) if self._last is not None else ()
        if len(last) > 1:
            logs["frame_cosine"] = mean_pairwise_cosine(last)
            logs["effective_rank"] = effective_rank(last)
        self.restart()
        return logs
