"""Kinds 1 and 2: damaged checkpoints, kills, and the ends of a resumed run."""

from __future__ import annotations

from pathlib import Path

from ..kills import KillPlan, training_result
from ..lab import Fault, Lab, Outcome


def _interrupted(lab: Lab) -> Path:
    """A run that was killed after its second checkpoint; returns that checkpoint."""
    newest = lab.out / "checkpoint-4"
    lab.train(kill_when=lambda: (newest / "files.json").is_file())
    return newest


def _truncate(name: str, keep: int):
    def provoke(lab: Lab) -> Outcome:
        path = _interrupted(lab) / name
        path.write_bytes(path.read_bytes()[:keep])
        return lab.train()

    return provoke


def _ended_with_all_updates(lab: Lab, outcome: Outcome) -> str | None:
    updates = training_result(lab)["updates"]
    return None if updates == 6 else f"{updates} updates instead of 6"


FAULTS = [
    Fault(
        1,
        f"truncated {name} in the newest checkpoint",
        _truncate(name, keep),
        status=0,
        says=("broken-checkpoint-4",),
        judge=_ended_with_all_updates,
        quick=name == "trainer_state.json",
    )
    for name, keep in (
        ("trainer_state.json", 0),
        ("model.safetensors", 100),
        ("optimizer.pt", 50),
        ("scheduler.pt", 0),
        ("rng_state.pth", 10),
    )
]

KILLS = [KillPlan("training, map-style", lambda lab: ["train", *lab.training()], training_result, 30)]
