"""The loop of a search, and the processes that train and score one point each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
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
"""In a run's folder: its value or why it failed, and which run and measure that is of."""
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
        run = describe_run(plan, point, seed, folder)
        if "value" in read_score(run, folder):
            continue
        (folder / SCORE).unlink(missing_ok=True)
        try:
            write_json(folder / SCORE, {"value": train(plan, run["argv"], folder), **run})
        except Exception as error:
            reason = str(error)
            if not isinstance(error, LaserError):
                logging.getLogger(__name__).exception("the run failed")
                reason = f"{type(error).__name__}: {error}"
            write_json(folder / SCORE, {"failed": reason, **run})
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
    value = plan.score.measure(folder, folder / "score", device, options.model.do_normalize)
    if value != value:
        raise LaserError("the score is not a number: do all frames of the encoder look alike?")
    for checkpoint in folder.glob("checkpoint-*"):  # nothing resumes a finished run
        shutil.rmtree(checkpoint)
    return value


def describe_run(plan: Plan, point: Point, seed: int | None, folder: Path) -> dict[str, Any]:
    return {"argv": plan.arguments(point, seed, folder), "score": plain(plan.score.definition())}


def read_score(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the folder holds of a run; empty if it holds nothing, or another run or measure."""
    found = read_json(folder / SCORE) if (folder / SCORE).is_file() else {}
    return found if found == {**found, **run} else {}


def outcome(plan: Plan, point: Point, status: int | None = None) -> tuple[list[float], str | None]:
    """The scores of a point, one for each seed, and why it failed if it did.

    Args:
        plan: the search.
        point: one of its points.
        status: exit code of the process that trained it.
    """
    values = []
    for seed, folder in plan.runs(point):
        found = read_score(describe_run(plan, point, seed, folder), folder)
        if "value" not in found:
            reason = found.get("failed") or f"{_ending(status)}; see {name_of(point)}.log"
            return values, f"seed {seed}: {reason}" if len(plan.seeds) > 1 else reason
        values.append(found["value"])
    return values, None


def _ending(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


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
                scored = outcome(plan, claim.point)[1] is None
                print(f"{label_of(claim.point)}: {'is scored' if scored else 'training'}", flush=True)
                working.append([claim, None, time.time()])
                if not scored:
                    working[-1][1] = start(plan, claim.point)
            ended = [entry for entry in working if entry[1] is None or entry[1].exitcode is not None]
            for entry in ended:
                working.remove(entry)
                claim, process, began = entry
                values, reason = outcome(plan, claim.point, process and process.exitcode)
                study.settle(claim, values, reason, time.time() - began)
                said = f"failed: {reason}" if reason else f"{sum(values) / len(values):.4f}"
                print(f"{label_of(claim.point)}: {said} ({time.time() - began:.0f} s)", flush=True)
                after_each()
            if not ended:
                time.sleep(poll_seconds)
    finally:
        for claim, process, _ in working:
            if process is not None:
                process.terminate()
                process.join(_LEAVE)
                process.kill()
            claim.lock.close()
    after_each()
