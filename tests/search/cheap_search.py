"""A search whose runs cost nothing; as a script it is one process of it: FOLDER SECONDS NAME=V1,V2 ..."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from laser_hf.search.plan import Plan
from laser_hf.search.run import RunFailed, run_search
from laser_hf.search.space import parse_over

SCORED = {
    "metric": "points",
    "name": "made-up points",
    "chosen_on": "nothing",
    "revision": "1",
    "source": {"data": "x"},
}


def typed(name: str, text: str):
    """As train.py's options would: sigma is a whole number, distance a text, the others are floats."""
    return {"sigma": int, "distance": str}.get(name, float)(text)


def make_plan(folder: Path, *over: str, **more) -> Plan:
    return Plan(
        folder=Path(folder),
        preset="demo",
        fixed=("--max_steps", "2"),
        over=parse_over(over, typed),
        score={},
        scored=dict(SCORED),
        **{"recipe": {"objective": {"gamma": 0.1}}, **more},
    )


def worth(argv: list[str]) -> float:
    """Best at sigma 2, alpha 0.3, margin 1, distance euclidean; a little by seed."""
    given = dict(word[2:].split("=", 1) for word in argv if "=" in word)
    loss = abs(float(given.get("sigma", 2)) - 2) + abs(float(given.get("alpha", 0.3)) - 0.3)
    loss += abs(float(given.get("margin", 1)) - 1) + 0.5 * (given.get("distance") == "sqeuclidean")
    return 1 - 0.1 * loss + 0.001 * float(given.get("seed", 0))


class Launch:
    """Stands for the process that trains: notes every start, and a second one in the same folder at once.

    Args:
        folder: of the notes.
        seconds: that a run takes.
        fails: part of the folder name of runs that fail.
        interrupt_at: number of the start (from 1) that ends in Ctrl-C.
    """

    def __init__(self, folder: Path, seconds: float = 0.0, fails: str | None = None, interrupt_at: int = 0):
        self.folder, self.seconds, self.fails, self.interrupt_at = Path(folder), seconds, fails, interrupt_at
        self.started = 0

    def __call__(self, job) -> float:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "starts.txt").open("a") as file:
            file.write(f"{job.folder.name} {os.getpid()}\n")
        self.started += 1
        if self.started == self.interrupt_at:
            raise KeyboardInterrupt
        if self.fails and self.fails in job.folder.name:
            raise RunFailed("non-finite loss at step 4 | of 8")
        in_work = self.folder / f"{job.folder.name}.in_work"
        in_work.touch(exist_ok=False)
        time.sleep(self.seconds)
        in_work.unlink()
        return worth(job.argv)


def starts(folder: Path) -> list[tuple[str, str]]:
    """Run and process of every start so far."""
    notes = Path(folder) / "starts.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [tuple(line.split()) for line in lines]


if __name__ == "__main__":
    where, pause, *varied = sys.argv[1:]
    run_search(make_plan(Path(where), *varied), Launch(Path(where), float(pause)), poll_seconds=0.1)
