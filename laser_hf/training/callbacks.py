"""Callbacks of the Trainer: the collapse monitor, the profiler, and the end that a scheduler asks for."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..records import write_json

logger = logging.getLogger(__name__)

PROFILE_NAME = "profile.json"
TRACE_NAME = "profile_trace.json.gz"
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
WARM_UP = 2
"""Updates of a process that are not profiled: caches, compilation and the workers' first pairs."""
PARTS = {"wait": "enumerate(DataLoader)", "perturb": "perturb", "encode": "encode", "loss": "loss"}
PARTS |= {"backward": "micro_batch", "optimizer": "Optimizer.step"}
"""Parts of an update, and how the profiler's names of their ranges begin; torch marks loader and optimiser itself."""


class CollapseMonitor(TrainerCallback):
    """Warns when the frames become alike, from the `frame_cosine` and `effective_rank` in the lines of the log.

    Soft-DTW without its regulariser collapses so (LASER, Table 3). Limits are relative, because encoders differ in how
    alike their frames are to begin with. A line that is judged gets a `collapse` of 0 or 1.

    The alarm comes when the mean pairwise cosine has covered `cosine_fraction` of the way from its start to 1, or the
    effective rank is below `rank_fraction` of its start; `remedy` is an option to raise, such as "--alpha". `prefix` is
    "eval_" for held-out frames. `start` is the run's first measurement, `fired_at` the step of the first alarm.
    """

    def __init__(self, cosine_fraction: float = 0.5, rank_fraction: float = 0.5, prefix: str = "", remedy: str = ""):
        self.cosine_fraction, self.rank_fraction = cosine_fraction, rank_fraction
        self.prefix, self.remedy = prefix, remedy
        self.start: dict[str, float] | None = None
        self.fired_at: int | None = None
        self.reason = ""

    def check(self, step: int, cosine: float, rank: float) -> bool:
        """Note one measurement; `True` if the frames are becoming alike."""
        if self.start is None:
            self.start = {"step": step, "frame_cosine": cosine, "effective_rank": rank}
        start, reasons = self.start["frame_cosine"], []
        limit = start + self.cosine_fraction * (1.0 - start)
        if cosine > limit:
            reasons.append(f"mean pairwise cosine {cosine:.3f} (started at {start:.3f}, limit {limit:.3f})")
        if rank < self.rank_fraction * self.start["effective_rank"]:
            reasons.append(f"effective rank {rank:.1f} (started at {self.start['effective_rank']:.1f})")
        self.reason = " and ".join(reasons)
        if reasons and self.fired_at is None:
            self.fired_at = step
        return bool(reasons)

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs) -> None:
        """Judge a line of the log that has both statistics."""
        names = [f"{self.prefix}{name}" for name in ("frame_cosine", "effective_rank")]
        if logs is None or any(name not in logs for name in names):
            return
        collapsing = self.check(state.global_step, *(logs[name] for name in names))
        for line in (logs, state.log_history[-1]):
            line[f"{self.prefix}collapse"] = int(collapsing)
        if collapsing and state.is_world_process_zero:
            mend = f"raise {self.remedy} or lower --learning_rate" if self.remedy else "lower --learning_rate"
            logger.warning("Collapse: %s at step %d. Frames become alike; %s.", self.reason, state.global_step, mend)


class StopSignals(TrainerCallback):
    """Ends training with a checkpoint after the update in which SIGUSR1 or SIGTERM comes to any process.

    `asked` is the signal that came to this process; `agreed`, whether one came to any, which each update tells all.
    """

    asked, agreed = "", False

    @contextlib.contextmanager
    def noticed(self) -> Iterator[None]:
        """Take the signals meanwhile; only the main thread can."""
        taken = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._note) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = signal.Signals(number).name
        logger.warning("%s: training stops after this update", self.asked)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """An update ends; after the last one the run goes on to its end."""
        if self.agreed and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def outlive_signals(worker: int) -> None:
    """In a data worker: go on after a signal to the whole job, for the process that reads from it still saves.

    SIGTERM from that process, which has no more use for the worker, ends it.
    """

    def obey_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=obey_parent, daemon=True).start()


class UpdateProfiler(TrainerCallback):
    """Profiles so many `updates` with `torch.profiler`, after `WARM_UP` others.

    It writes `profile.json`, seconds of an update and of its `PARTS` in the main thread, and `profile_trace.json.gz`, a
    trace for https://ui.perfetto.dev. Evaluation, checkpoints and logging are in the time of the update that follows.
    `device_seconds` are of GPU kernels that this thread starts (autograd's backward pass has a thread of its own).
    """

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self._profiler: torch.profiler.profile | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Start the profiler, on the first process."""
        if state.is_world_process_zero:
            when = torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=self.updates, repeat=1)
            write = partial(self._write, Path(args.output_dir))
            self._profiler = torch.profiler.profile(schedule=when, on_trace_ready=write, acc_events=True)
            self._profiler.start()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """An update ends."""
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Stop; a run that ends before the last update to be profiled is profiled as far as it goes."""
        if self._profiler is not None:
            self._profiler.stop()
            if self._profiler.step_num <= WARM_UP:
                logger.warning("nothing is profiled: the run ended within the %d updates of the warm-up", WARM_UP)
            self._profiler = None

    def _write(self, folder: Path, profiler: torch.profiler.profile) -> None:
        updates = min(profiler.step_num - WARM_UP, self.updates)
        if updates < 1:
            return
        events = profiler.key_averages()

        def spent(kind: str, begin: str) -> float:
            return sum(getattr(event, kind) for event in events if event.key.startswith(begin)) / 1e6 / updates

        whole = spent("cpu_time_total", "ProfilerStep")
        seconds = {part: spent("cpu_time_total", begin) for part, begin in PARTS.items()}
        device_seconds = {part: spent("device_time_total", begin) for part, begin in PARTS.items()}
        for times in (seconds, device_seconds):
            times["backward"] -= times["encode"] + times["loss"]  # the rest of a micro-batch
        record = {"updates": updates, "warm_up": WARM_UP, "seconds_per_update": whole, "seconds": seconds}
        if device_seconds["encode"]:
            record["device_seconds"] = device_seconds
        write_json(folder / PROFILE_NAME, record)
        profiler.export_chrome_trace(str(folder / TRACE_NAME))
        parts = ", ".join(f"{part} {value:.3f}" for part, value in seconds.items() if value)
        logger.info("%d updates of %.3f s: %s (%s, %s)", updates, whole, parts, PROFILE_NAME, TRACE_NAME)
