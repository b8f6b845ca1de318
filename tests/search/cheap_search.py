"""A search whose runs cost nothing; as a script (FOLDER NAME=V1,V2 ...) one whose first run never ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from laser_hf.errors import LaserError
from laser_hf.search import run
from laser_hf.search.report import table, write_report
from laser_hf.search.score import Score
from laser_hf.search.space import name_of, parse_over
from laser_hf.search.study import Plan, SharedStudy

SCORE = Score("discrimination", [], {"metric": "points"}, "made-up points", "nothing", {"source": "x"}, digest="1")


def typed(name: str, text: str):
    """As train.py's options would: sigma is a whole number, distance a text, the others are floats."""
    return {"sigma": int, "distance": str}.get(name, float)(text)


def make_plan(folder: Path, *over: str, **more) -> Plan:
    return Plan(
        **{
            "folder": Path(folder),
            "preset": "demo",
            "fixed": ("--max_steps", "2"),
            "over": parse_over(over, typed),
            "score": SCORE,
            "recipe": {"objective": {"gamma": 0.1}},
            **more,
        }
    )


def worth(argv: list[str]) -> float:
    """Best at sigma 2, alpha 0.3, margin 1, distance euclidean; a little by seed."""
    given = dict(word[2:].split("=", 1) for word in argv if "=" in word)
    loss = abs(float(given.get("sigma", 2)) - 2) + abs(float(given.get("alpha", 0.3)) - 0.3)
    loss += abs(float(given.get("margin", 1)) - 1) + 0.5 * (given.get("distance") == "sqeuclidean")
    return 1 - 0.1 * loss + 0.001 * float(given.get("seed", 0))


class Cheap:
    """Stands for the process that trains a point, and is such a process that has ended.

    Args:
        folder: for notes of every start.
        fails: part of the folder name of runs that fail.
        interrupt_at: number of the start (from 1) that ends in Ctrl-C.
    """

    exitcode = 0

    def __init__(self, folder: Path, fails: str | None = None, interrupt_at: int = 0):
        self.folder, self.fails, self.interrupt_at = Path(folder), fails, interrupt_at
        self.started: list[str] = []

    def __call__(self, plan: Plan, point) -> Cheap:
        self.started.append(name_of(point))
        if len(self.started) == self.interrupt_at:
            raise KeyboardInterrupt
        run.train_point(plan, point, self.train)
        return self

    def train(self, plan: Plan, argv: list[str], folder: Path) -> float:
        if self.fails and self.fails in folder.name:
            raise LaserError("non-finite loss at step 4 | of 8")
        return worth(argv)


def search(plan: Plan, start, jobs: int = 1, **how) -> str:
    """Run a search to its end; its table."""
    study = SharedStudy(plan, **how)
    run.run_search(study, jobs, start, lambda: write_report(study), poll_seconds=0.05)
    return table(plan, study.trials())


def hang(plan: Plan, argv: list[str], folder: Path) -> float:
    """A training that never ends."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in_work").touch()
    time.sleep(3600)


if __name__ == "__main__":
    folder, *varied = sys.argv[1:]
    search(make_plan(Path(folder), *varied), lambda plan, point: run.start(plan, point, hang))
