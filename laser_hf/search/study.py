"""The points of a search, in one SQLite file that any number of processes share, and the processes that train them.

The process that trains a point holds a lock on a file until it ends, however that happens: a point without a result
whose lock is free was interrupted. (Optuna's heartbeats need a minute, and its `optimize` gives points out twice.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import multiprocessing
import os
import signal
import sqlite3
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import IO

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..cli import disk_is_full, set_up_logging
from ..errors import LaserError
from ..records import write_json
from ..runs import RECIPE_NAME, RunFolder
from .plan import DATABASE, PICTURE, RECORD, TABLE, Plan, Point, describe, grid, name_of
from .report import draw, record, table
from .score import read_or_empty

logger = logging.getLogger(__name__)

SCORE = "score.json"  # in a run's folder: its value, or why it failed


def hold(path: Path, wait: bool = False) -> IO | None:
    """Lock `path` until the file that is returned is closed or this process ends; `None` if another one has it."""
    path.parent.mkdir(exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def find_damage(database: Path) -> str:
    """What is wrong with an SQLite file; nothing if it is intact or missing."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=300)) as connection:
            return connection.execute("PRAGMA quick_check").fetchone()[0].removeprefix("ok").partition("\n")[0]
    except sqlite3.DatabaseError as error:
        return str(error)


class SharedStudy:
    """The study of a plan, created or opened; `LaserError` if the folder holds another search, or cannot be used."""

    def __init__(self, plan: Plan, retry_failed: bool = False, overwrite: bool = False) -> None:
        self.plan = plan
        folder = RunFolder(plan.folder, RECORD, (f"{DATABASE}*", "runs"), (TABLE, PICTURE, f"broken-*-{DATABASE}"))
        if (other := read_or_empty(plan.folder / RECIPE_NAME)) and "search" not in other:
            raise LaserError(f"{plan.folder} holds a run of another command; choose another --output_dir")
        folder.make()
        with self.locked():
            for path in plan.folder.glob("runs/*.lock") if overwrite else ():
                if not (lock := hold(path)):
                    raise LaserError(f"another process trains in {plan.folder}; end it before --overwrite_output_dir")
                lock.close()
            folder.prepare(plan.identity(), overwrite, reopen=True)
            self._study = self._open()
            for trial in self.trials() if retry_failed else ():
                if trial.state == TrialState.FAIL:
                    self._study.enqueue_trial(trial.params)
            if not self.finished:
                (plan.folder / RECORD).unlink(missing_ok=True)  # of fewer points

    def _open(self) -> optuna.Study:
        path = self.plan.folder.resolve() / DATABASE
        if fault := find_damage(path):
            aside = next(p for n in itertools.count(1) if not (p := path.with_name(f"broken-{n}-{DATABASE}")).exists())
            logger.warning("%s is damaged (%s) and kept as %s; the runs enter their scores anew", path, fault, aside)
            path.with_name(f"{DATABASE}-journal").unlink(missing_ok=True)
            path.rename(aside)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna keeps the values of a list for good, so a grid with other values is another study. Its old points cost
        # nothing: their runs are finished.
        name = " ".join(sorted(describe(*item) for item in self.plan.over.items()))
        url = URL.create("sqlite", database=str(path)).render_as_string()
        options = {"connect_args": {"timeout": 300}, "poolclass": NullPool}  # nothing is left to close
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
            return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        except (SQLAlchemyError, RuntimeError) as error:
            raise LaserError(f"{path} cannot be used as the database of a search: {error}") from error

    def locked(self) -> IO:
        """Keep other processes of the search from taking points and writing tables until this is closed."""
        return hold(self.plan.folder / ".lock", wait=True)

    def trials(self) -> list[FrozenTrial]:
        """The last trial of each point so far, in the order in which the points came."""
        # Optuna enters the parameters one by one: without the last of them its process was killed meanwhile.
        trials = [t for t in self._study.get_trials(deepcopy=False) if len(t.params) == len(self.plan.over)]
        return list({name_of(trial.params): trial for trial in trials}.values())

    def _waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    @property
    def finished(self) -> bool:
        """Whether every point has been trained or has failed, and none is to be tried again."""
        return sum(t.state.is_finished() for t in self.trials()) >= self.plan.size and not self._waiting()

    def claim(self) -> tuple[Trial, IO] | None:
        """A point to train while its lock is open; `None` if all are finished or held by other processes."""
        with self.locked():
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and (lock := hold(self.plan.file(trial.params, "lock"))):
                    return Trial(self._study, trial._trial_id), lock
            if not self._waiting():
                if len(trials) >= self.plan.size:
                    return None
                self._study.enqueue_trial(self._draw(trials))
            trial = self._study.ask(self.plan.over)
            lock = hold(self.plan.file(trial.params, "lock"))
            return (trial, lock) if lock else None

    def _draw(self, trials: list[FrozenTrial]) -> Point:
        known = {name_of(trial.params) for trial in trials}
        if self.plan.sampler == "grid":
            return next(point for point in grid(self.plan.over) if name_of(point) not in known)
        # In memory, so that points that are drawn twice leave no trace. Seeded by the number of points, so that an
        # interrupted search draws what it would have drawn.
        copy = optuna.create_study(direction="maximize", sampler=TPESampler(seed=len(known)))
        copy.add_trials(trials)
        anywhere = RandomSampler(seed=len(known))
        while name_of(point := copy.ask(self.plan.over).params) in known:
            copy.sampler = anywhere  # TPE may stay with the best points of a finite space
        return point

    def settle(self, claim: tuple[Trial, IO], values: list[float], reason: str | None, seconds: float) -> None:
        """Enter the scores of a point, one for each seed, or why it failed; give up its lock."""
        trial, lock = claim
        std = statistics.stdev(values) if len(values) > 1 else None
        with self.locked(), lock:
            for name, entry in {"values": values, "std": std, "reason": reason, "seconds": round(seconds, 1)}.items():
                trial.set_user_attr(name, entry)
            mean, state = (None, TrialState.FAIL) if reason else (statistics.fmean(values), TrialState.COMPLETE)
            self._study.tell(trial, mean, state)

    def report(self) -> str:
        """Write the table, and when every point is done the record and the picture; return the table."""
        with self.locked():
            trials = self.trials()
            text = table(self.plan, trials)
            (self.plan.folder / TABLE).write_text(text, encoding="utf-8")
            if self.finished:
                draw(self.plan, trials)
                write_json(self.plan.folder / RECORD, record(self.plan, trials))
        return text


def run_search(study: SharedStudy, jobs: int = 1) -> str:
    """Train all points of a study, `jobs` at a time, with other processes that do the same; the table."""
    plan, working = study.plan, []
    try:
        while not study.finished:
            while len(working) < jobs and (claim := study.claim()):
                point = dict(claim[0].params)
                working.append([claim, point, None, time.time()])
                if outcome(plan, point)[1] is not None:
                    print(f"{name_of(point)}: training", flush=True)
                    working[-1][2] = start_process(plan, point)
            ended = [entry for entry in working if entry[2] is None or entry[2].exitcode is not None]
            for claim, point, process, began in ended:
                if process and process.exitcode == errno.ENOSPC:
                    raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {name_of(point)}")
                values, reason = outcome(plan, point, process and process.exitcode)
                study.settle(claim, values, reason, time.time() - began)
                said = f"failed: {reason}" if reason else f"{statistics.fmean(values):.4f}"
                print(f"{name_of(point)}: {said} ({time.time() - began:.0f} s)", flush=True)
                study.report()
            working = [entry for entry in working if entry not in ended]
            time.sleep(0 if ended else 0.1)  # for what was started here and by other processes
    finally:
        for (_, lock), _, process, _ in working:
            if process is not None:
                process.terminate()
                process.join(60)
                process.kill()
            lock.close()
    return study.report()


def start_process(plan: Plan, point: Point):
    """Start the process that trains and scores a point; its output goes to `runs/POINT.log`."""
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(plan, point))
    process.start()
    return process


def _work(plan: Plan, point: Point) -> None:
    os.setsid()  # Ctrl-C is for the search, which then ends this process
    if Path(sys.argv[0]).name == "__main__.py":  # a spawned process does not know it, and records name the command
        sys.argv[0] = "laser-hf search"
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        with plan.file(point, "log").open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        set_up_logging()
        with hold(plan.file(point, "worker"), wait=True):  # that of a killed search needs a moment to notice
            train_point(plan, point)
    except Exception as error:
        if disk_is_full(error):
            os._exit(errno.ENOSPC)  # the search ends, and the point is no failed one
        raise


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(3)


def train_point(plan: Plan, point: Point) -> None:
    """Train and score a point with each seed, up to the first that fails; runs that are scored are left alone."""
    for folder, run in plan.runs(point).items():
        if "value" in read_or_empty(folder / SCORE):
            continue
        (folder / SCORE).unlink(missing_ok=True)
        try:
            write_json(folder / SCORE, {"value": plan.score.train_and_measure(plan.arguments(run, folder), folder)})
        except Exception as error:
            if disk_is_full(error):
                raise
            logger.exception("the run failed")
            kind = "" if isinstance(error, LaserError) else f"{type(error).__name__}: "
            return write_json(folder / SCORE, {"failed": f"{kind}{error}"})


def outcome(plan: Plan, point: Point, status: int | None = None) -> tuple[list[float], str | None]:
    """The scores of a point, one for each seed, and why it failed if it did; `status` is that of its process."""
    values: list[float] = []
    for folder, run in plan.runs(point).items():
        found = read_or_empty(folder / SCORE)
        if "value" not in found:
            how = signal.Signals(-status).name if status and status < 0 else f"exit status {status}"
            how += " (out of memory?)" if how == "SIGKILL" else ""
            reason = found.get("failed") or f"ended by {how}; see {plan.file(point, 'log').name}"
            return values, f"seed {run['seed']}: {reason}" if len(plan.seeds) > 1 else reason
        values.append(found["value"])
    return values, None
