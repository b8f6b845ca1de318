"""What a training prints: one line for each line of the Trainer's log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import datasets
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

EVAL = "eval_"
NAMED = {
    "frame_cosine": ("cos", 2, ""),
    "effective_rank": ("rank", 2, ""),
    "word_ap_across": ("word AP", 3, ""),
    "abx_across": ("ABX", 3, ""),
    "abx_within": ("ABX within", 3, ""),
    "frames_per_second": ("", 2, "frames/s"),
    "processed_hours": ("", 2, "h"),
    "skipped": ("", 1, "skipped"),
}
"""What stands before a value of the log, how many significant digits it has, and what stands behind it."""
_UNSHOWN = {"epoch", "grad_norm", "learning_rate", "collapse", "trained_seconds", "total_flos"}


def short(value: float, digits: int = 3) -> str:
    """A number in few characters, such as `47.1`, `.130`, `98`, `5.0k`, `94.4M` or `1e-05`."""
    size = abs(value)
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if size >= factor and math.isfinite(size):
            return f"{value / factor:.1f}{unit}"
    if 0 < size < 0.001:
        return f"{value:.0e}"
    whole = len(str(int(size))) if math.isfinite(size) and size >= 1 else 0
    text = f"{value:.{max(digits - whole, 0)}f}"
    return text.replace("0.", ".", 1) if 0 < size < 1 else text if size else "0"


def time_left(seconds: float) -> str:
    """A duration such as `12 min left`; empty if nothing is left."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit} left"
    return ""


def hide_bars() -> None:
    """No bars for loading and saving weights, which takes moments, and none of `datasets` without a terminal."""
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


class LogLines(TrainerCallback):
    """Prints the log on the first process: `labels` name terms and scores, `held_out` begins an evaluation's line."""

    def __init__(self, labels: Mapping[str, str], held_out: str = "held-out") -> None:
        self.named = {name: (label, 3, "") for name, label in labels.items()} | NAMED
        self.held_out = held_out
        self._last: tuple[int, float] | None = None

    @classmethod
    def replace_bars(cls, trainer: Trainer, *arguments: Any) -> None:
        """Give a trainer these lines instead of progress bars and dictionaries."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(cls(*arguments))

    def line(self, step: int, max_steps: int, logs: Mapping[str, float], left: str = "") -> str:
        """One entry of the log; `left` is the time that the rest takes. A term that is the whole loss is left out."""
        held_out = any(name.startswith(EVAL) for name in logs)
        values = {name.removeprefix(EVAL): value for name, value in logs.items()}
        begin = self.held_out if held_out else f"{step}/{max_steps}"
        parts = [f"{begin:>{max(len(self.held_out), 2 * len(str(max_steps)) + 1)}}"]
        others = {name: (name.replace("_", " "), 3, "") for name in values if name not in _UNSHOWN}
        for name, (before, digits, behind) in {**self.named, **others, **self.named}.items():
            if name in values and (name == "loss" or values[name] != values.get("loss")):
                parts.append(f"{before} {short(values[name], digits):>{digits + 1}} {behind}".strip())
        end = left if not held_out else f"after {step}" if step else "before training"
        return "  ".join([*parts, end]).rstrip()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Print an entry, but for the Trainer's own summary."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        left, step = "", state.global_step
        if "loss" in logs:
            last, self._last = self._last, (step, time.perf_counter())
            if last and step > last[0]:
                left = time_left((self._last[1] - last[1]) / (step - last[0]) * (state.max_steps - step))
        print(self.line(step, state.max_steps, logs, left), flush=True)
