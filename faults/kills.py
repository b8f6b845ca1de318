"""Random kills: a command that is killed again and again and restarted ends as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laser_hf.records import TRAINING_RECORD, read_json

from .lab import Lab, Outcome, digest, fresh_lab


@dataclass(frozen=True)
class KillPlan:
    """A command to be killed.

    Attributes:
        name: of the command in words.
        argv: the command.
        result: everything that must come out as without kills.
        kills: how many runs are killed.
        quick: one of them is part of the test-suite.
    """

    name: str
    argv: Callable[[Lab], list[str]]
    result: Callable[[Lab], dict[str, Any]]
    kills: int
    quick: bool = False


def training_result(lab: Lab, out: Path | None = None) -> dict[str, Any]:
    """Weights, and of the record what does not depend on the clock."""
    folder = out or lab.out
    record = read_json(folder / TRAINING_RECORD)
    kept = ("updates", "processed_hours", "data", "collapse", "recipe", "seed", "trained_parameters")
    # The speed of the machine is no result.
    last = {name: value for name, value in record["last"].items() if name != "frames_per_second"}
    return {
        "model.safetensors": digest(folder / "model.safetensors"),
        "config.json": digest(folder / "config.json"),
        "last": last,
        **{name: record[name] for name in kept},
    }


@dataclass
class Kill:
    """One run that was killed and restarted until it ended."""

    plan: str
    number: int
    after: list[float]
    restarts: int
    differs: list[str]
    failed: str = ""


def run_kills(plan: KillPlan, template: Path, folder: Path, seed: int = 0) -> list[Kill]:
    """Carry out a plan; every run is killed once to three times at random moments before it may end."""
    with fresh_lab(template, folder / "reference") as lab:
        outcome = lab.run(*plan.argv(lab))
        if outcome.status != 0:
            raise RuntimeError(f"{plan.name} does not run without kills:\n{outcome.output}")
        expected, seconds = plan.result(lab), outcome.seconds
    drawn = random.Random(f"{seed} {plan.name}")
    kills: list[Kill] = []
    while len(kills) < plan.kills:
        # The same path as the reference: it is part of what records hold.
        with fresh_lab(template, folder / "reference") as lab:
            kill = Kill(plan.name, len(kills), [], 0, [])
            for _ in range(drawn.randint(1, 3)):
                after = drawn.uniform(0.02, seconds)
                last: Outcome = lab.run(*plan.argv(lab), kill_after=after)
                if last.status == 0:
                    break
                kill.after.append(round(after, 3))
            if not kill.after:
                # It ended before its kill, which says nothing: draw again, from the time that it took.
                seconds = min(seconds, last.seconds)
                continue
            kill.restarts = len(kill.after)
            if last.status != 0:
                last = lab.run(*plan.argv(lab))
            if last.status != 0:
                kill.failed = last.output.strip()[-2000:]
            else:
                found = plan.result(lab)
                kill.differs = [name for name in expected if found.get(name) != expected[name]]
            kills.append(kill)
    return kills
