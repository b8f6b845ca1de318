"""The loop: take a point, train and score it in a process of its own, enter what came out, take the next one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .plan import Plan
from .results import Claim, Result
from .space import Point, label_of
from .study import SharedStudy

LOG = "search.log"
SCORE = "score.json"
FAILURE = "failure.json"
BUSY = 75  # exit status of a worker whose folder another one trains in
_LEAVE = 60  # seconds a worker gets to end


class Interrupted(Exception):
    """A run that did not come to its end through no fault of its own; it can be continued."""


class RunFailed(Exception):
    """A run that cannot be trained or scored; the message says why."""


@dataclass(frozen=True)
class Job:
    """What a worker is given: arguments of train.py, its folder, what to score, what to delete."""

    argv: list[str]
    folder: Path
    score: dict[str, Any]
    definition: dict[str, Any]
    keep_checkpoints: bool

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**self.__dict__, "folder": str(self.folder)})


Launch = Callable[[Job], float]


def launch_worker(job: Job) -> float:
    """Train and score one run in a process of its own; its output goes to `search.log` in its folder.

    Returns:
        The score.

    Raises:
        RunFailed: with the run's own message.
        Interrupted: another process works in the folder.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    environment = dict(os.environ)
    above = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [above, environment.get("PYTHONPATH")]))
    with (job.folder / LOG).open("ab") as log:
        # A session of its own: Ctrl-C is for the search, which then ends the worker by closing its input.
        process = subprocess.Popen(
            [sys.executable, "-m", "laser_hf.search.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            process.stdin.write(job.to_json().encode() + b"\n")
            process.stdin.flush()
            status = process.wait()
        except BrokenPipeError:
            status = process.wait()
        finally:
            _end(process)
    if status == 0:
        return json.loads((job.folder / SCORE).read_text())["value"]
    if status == BUSY:
        raise Interrupted(f"another process trains in {job.folder}")
    raise RunFailed(_reason(job.folder, status))


def _end(process: subprocess.Popen) -> None:
    """The end of its input tells a worker to leave."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_LEAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(folder: Path, status: int) -> str:
    if (folder / FAILURE).is_file():
        return json.loads((folder / FAILURE).read_text())["reason"]
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}; see {LOG}"
    return f"ended with exit status {status}; see {LOG}"


def train_point(plan: Plan, point: Point, launch: Launch) -> tuple[list[float], str | None]:
    """Train and score a point with every seed: its scores, and the reason if a run failed."""
    values = []
    for seed, folder in plan.runs(point):
        argv = plan.arguments(point, seed, folder)
        try:
            values.append(launch(Job(argv, folder, plan.score, plan.identity()["score"], plan.keep_checkpoints)))
        except RunFailed as error:
            return values, f"seed {seed}: {error}" if len(plan.seeds) > 1 else str(error)
    return values, None


def run_search(
    plan: Plan,
    launch: Launch = launch_worker,
    after_each: Callable[[SharedStudy], None] = lambda study: None,
    poll_seconds: float = 2.0,
) -> list[Result]:
    """Train all points of a plan, together with other processes that run the same one.

    Args:
        plan: the search.
        launch: trains and scores one run.
        after_each: called after every point, and once when all are finished.
        poll_seconds: between two looks at the points that other processes train.

    Returns:
        What became of each point.

    Raises:
        SearchError: the folder holds another search.
        KeyboardInterrupt: the point in work was given back.
    """
    with SharedStudy(plan) as study, tqdm(total=plan.size, unit="point", disable=None) as bar:
        waited = False
        while not study.finished:
            _show(bar, study)
            claim = study.claim()
            if claim is None:
                if not waited:
                    bar.write("Waiting for the points that other processes train ...", file=sys.stdout)
                waited = True
                time.sleep(poll_seconds)
                continue
            waited = False
            _work(study, claim, launch, bar)
            after_each(study)
        _show(bar, study)
        after_each(study)
        return study.results()


def _work(study: SharedStudy, claim: Claim, launch: Launch, bar: tqdm) -> None:
    plan, began = study.plan, time.time()
    (_, folder), *_ = plan.runs(claim.point)
    bar.write(f"{label_of(claim.point)}: training, see {folder / LOG}", file=sys.stdout)
    try:
        with study.heartbeat(claim):
            values, reason = train_point(plan, claim.point, launch)
    except Interrupted as error:
        study.release(claim)
        bar.write(f"{label_of(claim.point)}: {error}", file=sys.stdout)
        time.sleep(1)
        return
    except BaseException:
        study.release(claim)
        raise
    study.settle(claim, values, reason, time.time() - began)
    said = f"failed: {reason}" if reason else f"{sum(values) / len(values):.4f}"
    bar.write(f"{label_of(claim.point)}: {said} ({time.time() - began:.0f} s)", file=sys.stdout)


def _show(bar: tqdm, study: SharedStudy) -> None:
    results = study.results()
    bar.n = sum(result.state in ("complete", "failed") for result in results)
    scores = [result.value for result in results if result.value is not None]
    bar.set_postfix_str(f"best {max(scores):.4f}" if scores else "", refresh=True)
