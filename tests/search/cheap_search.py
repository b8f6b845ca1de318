"""A search whose runs cost nothing; as a script (FOLDER NAME=V1,V2 ...) one whose first run never ends."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from laser_hf.errors import LaserError
from laser_hf.search import study
from laser_hf.search.plan import Plan, name_of, parse_over
from laser_hf.search.score import Score


class CheapScore(Score):
    """A score without training."""

    def train_and_measure(self, argv: list[str], folder: Path) -> float:
        return worth(argv)


class HangingScore(Score):
    """A training that never ends."""

    def train_and_measure(self, argv: list[str], folder: Path) -> float:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "in_work").touch()
        time.sleep(3600)


MADE_UP = ("discrimination", [], {"metric": "points"}, "made-up points", "nothing", {"source": "x"}, "1")


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
            "score": CheapScore(*MADE_UP),
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
        study.train_point(replace(plan, score=Failing(*MADE_UP, self.fails)), point)
        return self


@dataclass(frozen=True)
class Failing(CheapScore):
    """Runs fail whose folder's name has a part `fails`."""

    fails: str | None = None

    def train_and_measure(self, argv: list[str], folder: Path) -> float:
        if self.fails and self.fails in folder.name:
            raise LaserError("non-finite loss at step 4 | of 8")
        return worth(argv)


def search(plan: Plan, start, jobs: int = 1, **how) -> str:
    """Run a search to its end, with `start` in place of processes; its table."""
    with mock.patch.object(study, "start_process", start):
        return study.run_search(study.SharedStudy(plan, **how), jobs)


if __name__ == "__main__":
    folder, *varied = sys.argv[1:]
    study.run_search(study.SharedStudy(make_plan(Path(folder), *varied, score=HangingScore(*MADE_UP))))
