"""The points of a search in one SQLite file, shared by any number of processes.

Optuna keeps the trials and draws new ones; a lock file beside the database makes taking a point one step, so that no
point is given out twice. A trial belongs to a process (host, process id, start of the process) that sends heartbeats
while it trains. A trial whose process has ended is given out again: at once where the process was on this host, after
`GRACE` seconds without a heartbeat where it was on another. A point is trained by its last trial; the others were
interrupted.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from .errors import SearchError
from .owner import has_ended, this_process
from .plan import Plan, changes
from .results import Claim, Result
from .space import Point, Range, draw_new, key_of

logger = logging.getLogger(__name__)

DATABASE = "study.db"
LOCK = ".study.lock"
NAME = "search"
HEARTBEAT, GRACE = 15, 60  # seconds
_PATIENCE = 300  # seconds to wait for the lock or the database; both are held for moments only
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class SharedStudy:
    """The study of a plan, created or opened; a context manager.

    Raises:
        SearchError: the folder holds another search, or cannot be used.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SearchError(
                f"cannot write to --output_dir {plan.folder} ({error.strerror}); choose another folder"
            ) from error
        self._lock = FileLock(plan.folder / LOCK, timeout=_PATIENCE)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.locked():
            self._open()
            self._check_identity()
            if plan.retry_failed:
                for result in self.results():
                    if result.state == "failed":
                        self._enqueue(result.params)

    def _open(self) -> None:
        path = self.plan.folder.resolve() / DATABASE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are marked as experimental
            try:
                self._storage = optuna.storages.RDBStorage(
                    URL.create("sqlite", database=str(path)).render_as_string(),
                    engine_kwargs={"connect_args": {"timeout": _PATIENCE}},
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                )
                self._study = optuna.create_study(
                    storage=self._storage, study_name=NAME, direction="maximize", load_if_exists=True
                )
            except (SQLAlchemyError, RuntimeError) as error:
                raise SearchError(f"{path} cannot be used as the database of a search: {error}") from error

    def _check_identity(self) -> None:
        """A study keeps what it was begun with; a grid may get further values."""
        now = json.loads(json.dumps(self.plan.identity()))
        before = self._study.user_attrs.get("identity")
        if before is not None:
            changed = changes(before, now)
            if changed:
                self.close()
                raise SearchError(
                    f"{self.plan.folder} holds another search ({'; '.join(changed)}). Give the old values to go on "
                    "with it (a grid may get further values), or choose another --output_dir"
                )
        if before != now:
            self._study.set_user_attr("identity", now)

    def __enter__(self) -> SharedStudy:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process of the search takes a point or writes a table meanwhile.

        Raises:
            SearchError: another process holds the lock all the time.
        """
        try:
            with self._lock:
                yield
        except Timeout as error:
            raise SearchError(
                f"{self._lock.lock_file} has been held for {_PATIENCE} seconds; is a process of this search stopped?"
            ) from error

    # -------------------------------------------------------------------------------------------- points

    def claim(self) -> Claim | None:
        """A point to train, now this process's; `None` if none is left to be taken."""
        with self.locked():
            self._release_abandoned()
            self._enqueue_missing()
            while True:
                results = self.results()
                if not any(result.state == "waiting" for result in results) and (
                    self.plan.sampler == "grid" or len(results) >= self.plan.size
                ):
                    return None
                claim = self._take({key_of(result.params) for result in results})
                if claim is not None:
                    return claim

    def _take(self, known: set[str]) -> Claim | None:
        """The next waiting trial, or a new one; `None` where the sampler drew a point that is there already."""
        # Seeded by the points there are: a search that was interrupted draws what it would have drawn.
        self._study.sampler = optuna.samplers.TPESampler(seed=self.plan.sampler_seed + len(known), constant_liar=True)
        distributions = self._distributions()
        with warnings.catch_warnings():
            # Optuna's heartbeats are meant for its own loop; `heartbeat` sends them here.
            warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
            trial = self._study.ask(distributions)
        point = trial.user_attrs.get("point")
        if point is None:
            point = {name: trial.params[name] for name in self.plan.names}
            if key_of(point) in known:
                self._study.tell(trial, state=TrialState.FAIL)
                self._enqueue(draw_new(self.plan.over, known, self.plan.sampler_seed + len(known)))
                return None
            trial.set_user_attr("point", point)
        study_id = self._storage.get_study_id_from_name(NAME)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        self._storage.record_heartbeat(trial_id)
        trial.set_user_attr("owner", this_process())
        return Claim(trial.number, trial_id, point)

    def _distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna is told of each option; texts of a grid are in a trial's `point` only.

        Optuna lets the bounds of numbers change, but no list, and a grid may grow.
        """
        known = [result.params for result in self.results()]
        found: dict[str, BaseDistribution] = {}
        for dimension in self.plan.over:
            if isinstance(dimension, Range):
                kind = IntDistribution if dimension.whole else FloatDistribution
                found[dimension.name] = kind(dimension.low, dimension.high, log=dimension.log)
            elif self.plan.sampler == "tpe":
                found[dimension.name] = CategoricalDistribution(dimension.values)
            elif dimension.numeric:
                # With what another process has added to the grid.
                values = [*dimension.values, *(point[dimension.name] for point in known)]
                kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
                found[dimension.name] = kind(min(values), max(values))
        return found

    def _enqueue(self, point: Point) -> None:
        unknown_to_optuna = {d.name for d in self.plan.over if self.plan.sampler == "grid" and not d.numeric}
        params = {name: value for name, value in point.items() if name not in unknown_to_optuna}
        self._study.enqueue_trial(params, user_attrs={"point": point})

    def _enqueue_missing(self) -> None:
        """Every point of the grid that has no trial, and every point whose last trial was interrupted."""
        last = self._last_trials()
        known = [trial.user_attrs["point"] for trial in last.values()]
        wanted = self.plan.grid() if self.plan.sampler == "grid" else []
        for point in [*known, *(point for point in wanted if key_of(point) not in last)]:
            trial = last.get(key_of(point))
            if trial is None or (trial.state == TrialState.FAIL and "reason" not in trial.user_attrs):
                self._enqueue(point)

    def _release_abandoned(self) -> None:
        """End the trials whose process has ended."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # The owner is entered under the lock that is held now: a trial without one was left halfway.
            if "owner" not in trial.user_attrs or has_ended(trial.user_attrs["owner"]):
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _last_trials(self) -> dict[str, FrozenTrial]:
        """The trial that counts for each point, in the order in which the points came."""
        last: dict[str, FrozenTrial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if "point" in trial.user_attrs:
                last[key_of(trial.user_attrs["point"])] = trial
        return last

    def results(self) -> list[Result]:
        """What became of each point so far, in the order in which they came."""
        results = []
        for trial in self._last_trials().values():
            attributes = trial.user_attrs
            state = _STATES[trial.state]
            if state == "failed" and "reason" not in attributes:
                state = "waiting"  # interrupted, to be given out again
            results.append(
                Result(
                    params=dict(attributes["point"]),
                    state=state,
                    number=trial.number,
                    value=trial.value if state == "complete" else None,
                    values=attributes.get("values", []),
                    reason=attributes.get("reason"),
                    seconds=attributes.get("seconds"),
                )
            )
        return results

    @property
    def finished(self) -> bool:
        """Whether every point has been trained or has failed."""
        results = self.results()
        return len(results) >= self.plan.size and all(result.state in ("complete", "failed") for result in results)

    # -------------------------------------------------------------------------------------------- outcome

    @contextmanager
    def heartbeat(self, claim: Claim) -> Iterator[None]:
        """Tell other processes all the while that this one is alive."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                # A busy database is no reason to end; the next beat follows.
                try:
                    self._storage.record_heartbeat(claim.trial_id)
                except Exception as error:
                    logger.warning("no heartbeat for trial %d: %s", claim.number, error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def settle(self, claim: Claim, values: list[float], reason: str | None, seconds: float) -> None:
        """Enter the scores of a point, or why it failed.

        Nothing happens where the point was meanwhile given to another process, which finds the finished run.
        """
        mean = sum(values) / len(values) if values and reason is None else None
        entries: dict[str, Any] = {"values": values, "seconds": round(seconds, 1)}
        if reason is not None:
            entries["reason"] = reason
        with self.locked(), suppress(UpdateFinishedTrialError):
            for name, value in entries.items():
                self._storage.set_trial_user_attr(claim.trial_id, name, value)
            state = TrialState.FAIL if mean is None else TrialState.COMPLETE
            self._study.tell(claim.number, mean, state=state, skip_if_finished=True)

    def release(self, claim: Claim) -> None:
        """Give a point back, to be trained by whoever comes next."""
        with self.locked():
            self._study.tell(claim.number, state=TrialState.FAIL, skip_if_finished=True)
