"""A point that is taken, and what became of a point."""

from __future__ import annotations

from dataclasses import dataclass, field

from .space import Point


@dataclass(frozen=True)
class Claim:
    """A point that this process is to train."""

    number: int
    trial_id: int
    point: Point


@dataclass
class Result:
    """What became of a point.

    Attributes:
        params: the point.
        state: "complete", "failed", "running" or "waiting".
        value, values: mean over the seeds and the value of each.
        reason: why it failed.
        seconds: of training and scoring.
        number: of Optuna's trial.
    """

    params: Point
    state: str
    number: int
    value: float | None = None
    values: list[float] = field(default_factory=list)
    reason: str | None = None
    seconds: float | None = None
