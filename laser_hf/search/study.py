"""What a search is, and its points in one SQLite file that any number of processes share.

Optuna keeps the trials and draws the points of TPE. The process that trains a point holds a lock on a file, which the
operating system releases when the process ends, however that happens. A point without a result whose lock is free was
interrupted; the next process takes it. That is why Optuna's heartbeats are not used: they need a minute to notice a
dead process, and work in `Study.optimize` only, where processes that share a grid get points twice.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..errors import LaserError
from ..runs import RunFolder
from .score import Score
from .space import Point, Space, describe, grid, name_of, size_of, text_of

SAMPLERS = ("grid", "tpe")
DATABASE, RECORD, TABLE, PICTURE = "study.db", "search.json", "search.md", "heatmap.png"
SETTLED = (TrialState.COMPLETE, TrialState.FAIL)


@dataclass(frozen=True)
class Plan:
    """One search.

    Attributes:
        folder: where study, runs and tables go.
        preset: of train.py.
        fixed: further arguments of train.py, the same for all points.
        over: what is varied.
        score: what a point is worth.
        recipe: what decides the result of all points alike.
        sampler: `grid` trains all points, `tpe` draws `trials` of them, the later ones near good ones.
        trials: points of `tpe`.
        seeds: every point is trained with each; empty for the preset's own.
    """

    folder: Path
    preset: str
    fixed: tuple[str, ...]
    over: Space
    score: Score
    recipe: dict[str, Any] = field(default_factory=dict)
    sampler: str = "grid"
    trials: int | None = None
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, distribution in self.over.items():
            if self.sampler == "grid" and not isinstance(distribution, CategoricalDistribution):
                raise LaserError(
                    f"--over {describe(name, distribution)} is a range, and --sampler grid trains every value of a "
                    f"list: give a list ({name}=v1,v2,...), or use --sampler tpe --trials N"
                )
        if self.sampler == "grid" and self.trials is not None:
            raise LaserError(f"--trials is for --sampler tpe; the grid trains all its {self.size} points")
        if self.sampler == "tpe" and (self.trials is None or self.trials < 1):
            raise LaserError("--sampler tpe needs --trials N, how many points to train")
        if len(set(self.seeds)) < len(self.seeds):
            raise LaserError(f"--seeds {' '.join(map(str, self.seeds))} names a seed twice")

    @property
    def size(self) -> int:
        """Points that this search trains; TPE ends early when a finite space is used up."""
        size = size_of(self.over)
        return int(size if self.trials is None else min(self.trials, size))

    def runs(self, point: Point) -> list[tuple[int | None, Path]]:
        """Seed and folder of each run of a point."""
        seeds = self.seeds or (None,)
        names = [name_of({**point, "seed": seed} if len(seeds) > 1 else point) for seed in seeds]
        return [(seed, self.folder / "runs" / name) for seed, name in zip(seeds, names, strict=True)]

    def arguments(self, point: Point, seed: int | None, folder: Path | str) -> list[str]:
        """Arguments of train.py for one run; without `seed` that of preset and fixed options."""
        varied = [f"--{name}={text_of(value)}" for name, value in point.items()]
        seeded = [] if seed is None else [f"--seed={seed}"]
        return ["--preset", self.preset, *self.fixed, *varied, *seeded, f"--output_dir={folder}"]

    def identity(self) -> dict[str, Any]:
        """What must stay while points are added to one folder; the lists of a grid may change."""
        over = sorted(self.over) if self.sampler == "grid" else sorted(describe(*item) for item in self.over.items())
        search = {"over": over, "sampler": self.sampler, "seeds": list(self.seeds)}
        return {"search": search, "score": self.score.definition(), **self.recipe}


Claim = tuple[Trial, IO]
"""A point (the trial's `params`) that this process is to train, as long as it keeps the lock open."""


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


class SharedStudy:
    """The study of a plan, created or opened.

    Args:
        plan: the search.
        retry_failed: give out failed points again.
        overwrite: delete what an earlier search left.

    Raises:
        LaserError: the folder holds another search, or cannot be used.
    """

    def __init__(self, plan: Plan, retry_failed: bool = False, overwrite: bool = False) -> None:
        self.plan = plan
        folder = RunFolder(plan.folder, RECORD, progress=(DATABASE, "runs"), owned=(TABLE, PICTURE))
        folder.make()
        with self.locked():
            for path in plan.folder.glob("runs/*.lock") if overwrite else ():
                lock = hold(path)
                if lock is None:
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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna keeps the values of a list for good, so a grid with other values is another study. Its old points cost
        # nothing: their runs are finished.
        name = " ".join(sorted(describe(*item) for item in self.plan.over.items()))
        try:
            storage = optuna.storages.RDBStorage(
                URL.create("sqlite", database=str(path)).render_as_string(),
                engine_kwargs={"connect_args": {"timeout": 300}, "poolclass": NullPool},  # nothing is left to close
            )
            # All points are enqueued, so the sampler draws nothing.
            return optuna.create_study(
                storage=storage,
                sampler=RandomSampler(),
                study_name=name,
                direction="maximize",
                load_if_exists=True,
            )
        except (SQLAlchemyError, RuntimeError) as error:
            raise LaserError(f"{path} cannot be used as the database of a search: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of the search from taking points and writing tables meanwhile."""
        with hold(self.plan.folder / ".lock", wait=True):
            yield

    def trials(self) -> list[FrozenTrial]:
        """The last trial of each point so far, in the order in which the points came."""
        # Optuna enters the parameters one by one: without the last of them its process was killed meanwhile.
        trials = [t for t in self._in(*SETTLED, TrialState.RUNNING) if len(t.params) == len(self.plan.over)]
        return list({name_of(trial.params): trial for trial in trials}.values())

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    @property
    def finished(self) -> bool:
        """Whether every point has been trained or has failed, and none is to be tried again."""
        settled = [trial for trial in self.trials() if trial.state in SETTLED]
        return len(settled) >= self.plan.size and not self._in(TrialState.WAITING)

    def claim(self) -> Claim | None:
        """A point to train; `None` if all of them are finished or held by other processes."""
        with self.locked():
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and (lock := self._hold(trial.params)):
                    return Trial(self._study, trial._trial_id), lock
            if not self._in(TrialState.WAITING):
                if len(trials) >= self.plan.size:
                    return None
                self._study.enqueue_trial(self._draw(trials))
            trial = self._study.ask(self.plan.over)
            lock = self._hold(trial.params)
            return (trial, lock) if lock else None

    def _hold(self, point: Point) -> IO | None:
        return hold(self.plan.folder / "runs" / f"{name_of(point)}.lock")

    def _draw(self, trials: list[FrozenTrial]) -> Point:
        """A new point."""
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

    def settle(self, claim: Claim, values: list[float], reason: str | None, seconds: float) -> None:
        """Enter the scores of a point, one for each seed, or why it failed; give up its lock."""
        trial, lock = claim
        with self.locked(), lock:
            for name, entry in (("values", values), ("reason", reason), ("seconds", round(seconds, 1))):
                trial.set_user_attr(name, entry)
            if reason is None:
                self._study.tell(trial, sum(values) / len(values))
            else:
                self._study.tell(trial, state=TrialState.FAIL)
