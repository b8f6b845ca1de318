"""The loop of a search, and the processes that train and score one point each."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..cli import set_up_logging
from ..errors import LaserError
from ..records import TRAINING_RECORD, plain, read_json, write_json
from ..runs import RECIPE_NAME, differences
from .space import Point, label_of, name_of
from .study import Plan, SharedStudy, hold

SCORE = "score.json"
"""In a run's folder: its value, or why it failed."""
Train = Callable[[Plan, list[str], Path], float]
"""Trains the run with these arguments of train.py in this folder and returns its score."""
_LEAVE = 60  # seconds that a process gets to end


def start(plan: Plan, point: Point, train: Train | None = None) -> BaseProcess:
    """Start the process that trains and scores a point; its output goes to `runs/POINT.log`."""
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(plan, point, train or train_and_score))
    process.start()
    return process


def _work(plan: Plan, point: Point, train: Train) -> None:
    os.setsid()  # Ctrl-C is for the search, which then ends this process
    if Path(sys.argv[0]).name == "__main__.py":  # a spawned process does not know it, and records name the command
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("laser_hf.search.__main__")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    log = plan.folder / "runs" / f"{name_of(point)}.log"
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    set_up_logging()
    with hold(log.with_suffix(".worker"), wait=True):  # the worker of a killed search needs a moment to notice
        train_point(plan, point, train)


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(3)


def train_point(plan: Plan, point: Point, train: Train) -> None:
    """Train and score a point with each seed, up to the first that fails; runs that are scored are left alone."""
    for seed, folder in plan.runs(point):
        if "value" in read_score(folder):
            continue
        (folder / SCORE).unlink(missing_ok=True)
        try:
            write_json(folder / SCORE, {"value": train(plan, plan.arguments(point, seed, folder), folder)})
        except Exception as error:
            reason = str(error)
            if not isinstance(error, LaserError):
                logging.getLogger(__name__).exception("the run failed")
                reason = f"{type(error).__name__}: {error}"
            write_json(folder / SCORE, {"failed": reason})
            return


def train_and_score(plan: Plan, argv: list[str], folder: Path) -> float:
    """Train a run, or resume it, or take it as it is if it is finished; score it and delete its checkpoints.

    Raises:
        LaserError: from training, a finished run of another recipe, or a score that is not a number.
    """
    import torch

    from ..training import parse_options, run_training

    options = parse_options(argv)
    if not (folder / TRAINING_RECORD).is_file():
        run_training(options)
    elif changed := differences(read_json(folder / RECIPE_NAME), plain(options.recipe())):
        raise LaserError(f"{folder} holds a finished run of another recipe ({'; '.join(changed)}); move it away")
    device = "cuda" if torch.cuda.is_available() and not options.training.use_cpu else "cpu"
    value = plan.score.measure(folder, folder / "score", device)
    if value != value:
        raise LaserError("the score is not a number: do all frames of the encoder look alike?")
    for checkpoint in folder.glob("checkpoint-*"):  # nothing resumes a finished run
        shutil.rmtree(checkpoint)
    return value


def read_score(folder: Path) -> dict[str, Any]:
    """`value` or `failed` of a run; empty if it has not ended."""
    return read_json(folder / SCORE) if (folder / SCORE).is_file() else {}


def outcome(plan: Plan, point: Point, status: int | None = None) -> tuple[list[float], str | None]:
    """The scores of a point, one for each seed, and why it failed if it did.

    Args:
        plan: the search.
        point: one of its points.
        status: exit code of the process that trained it.
    """
    values = []
    for seed, folder in plan.runs(point):
        found = read_score(folder)
        if "value" not in found:
            how = signal.Signals(-status).name if status and status < 0 else f"exit status {status}"
            how += " (out of memory?)" if how == "SIGKILL" else ""
            reason = found.get("failed") or f"ended by {how}; see {name_of(point)}.log"
            return values, f"seed {seed}: {reason}" if len(plan.seeds) > 1 else reason
        values.append(found["value"])
    return values, None


def run_search(
    study: SharedStudy,
    jobs: int = 1,
    start: Callable[[Plan, Point], BaseProcess] = start,
    after_each: Callable[[], Any] = lambda: None,
    poll_seconds: float = 0.5,
) -> None:
    """Train all points of a study, together with other processes that run the same one.

    Args:
        study: the search.
        jobs: points that this process trains at a time.
        start: starts the process of a point.
        after_each: called after every point, and once when all are finished.
        poll_seconds: between two looks at what was started here and at what other processes train.
    """
    plan, working = study.plan, []
    try:
        while not study.finished:
            while len(working) < jobs and (claim := study.claim()):
                point = dict(claim[0].params)
                working.append([claim, point, None, time.time()])
                if outcome(plan, point)[1] is not None:
                    print(f"{label_of(point)}: training", flush=True)
                    working[-1][2] = start(plan, point)
            ended = [entry for entry in working if entry[2] is None or entry[2].exitcode is not None]
            for entry in ended:
                working.remove(entry)
                claim, point, process, began = entry
                values, reason = outcome(plan, point, process and process.exitcode)
                study.settle(claim, values, reason, time.time() - began)
                said = f"failed: {reason}" if reason else f"{sum(values) / len(values):.4f}"
                print(f"{label_of(point)}: {said} ({time.time() - began:.0f} s)", flush=True)
                after_each()
            if not ended:
                time.sleep(poll_seconds)
    finally:
        for (_, lock), _, process, _ in working:
            if process is not None:
                process.terminate()
                process.join(_LEAVE)
                process.kill()
            lock.close()
    after_each()
