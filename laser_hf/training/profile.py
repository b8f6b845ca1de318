"""Where the time of an update goes, measured inside the running Trainer (`--profile_updates N`).

An update is timed from asking for its pairs to the end of the optimiser step; logging, evaluation and checkpoints
lie outside. Every part of it is one of

* `wait`: the main process waits for the data loader (wall time),
* `encode`, `loss`, `backward`, `optimizer` (clipping and the check for non-finite values included): wall time,
* `perturb`: wall time if it runs on the device; else time of the workers,
* `decode`: time of the workers,
* `other`: what is left, such as the copy to the device and the cutting into micro-batches.

**With worker processes, what they do overlaps the rest**: their `decode` and `perturb` are core-seconds, summed in the
workers over the pairs of the update, and their shares say how many cores they keep busy while training runs at this
speed (they may exceed 1). The other shares then add up to 1. Without workers (`--dataloader_num_workers 0`) everything
runs one after the other, `wait` is what remains of loading after decoding and perturbing, and all shares add up to 1.

On CUDA the timers synchronise with the device, so that each part is charged with its own kernels; updates therefore
take somewhat longer while they are profiled.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..records import provenance, write_json
from .arguments import precision
from .micro_batches import padding

logger = logging.getLogger(__name__)

PROFILE_NAME = "profile.json"
PARTS = ("decode", "perturb", "encode", "loss", "backward", "optimizer", "wait", "other")
WARM_UP = 2
"""Updates left out at the start of a process: caches, compilation and the workers' first batch."""


class UpdateProfile(TrainerCallback):
    """Times of the parts of `updates` optimiser steps, after `WARM_UP` others.

    The Trainer calls `begin`, `add_batch`, `section` and `start`/`stop`; outside the profiled updates, and with
    `updates` 0, they do nothing.

    Args:
        updates: how many to profile.
        device: of the model.

    Attributes:
        workers: processes that load the data, as the Trainer's data loader has them.
    """

    def __init__(self, updates: int, device: torch.device) -> None:
        self.updates = updates
        self.device = device
        self.workers = 0
        self.active = False
        self._seen = 0
        self._walls: list[float] = []
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._in_workers = dict.fromkeys(("decode", "perturb"), 0.0)
        self._pairs = self._used = self._encoded = 0
        self._began = 0.0
        self._starts: dict[str, float] = {}

    # ---- called by the Trainer ----

    def begin(self) -> None:
        """An update begins: its pairs are asked for."""
        self.active = self._seen >= WARM_UP and len(self._walls) < self.updates
        self._seen += 1
        self._starts.clear()
        if self.active:
            self._began = self._now()

    def start(self, part: str) -> None:
        """The part named `part` begins."""
        if self.active:
            self._starts[part] = self._now()

    def stop(self, part: str) -> None:
        """It ends; nothing happens if it has not begun."""
        if self.active and part in self._starts:
            self._seconds[part] += self._now() - self._starts.pop(part)

    @contextlib.contextmanager
    def section(self, part: str):
        """`start` and `stop` around a block."""
        self.start(part)
        yield
        self.stop(part)

    def add_batch(self, batch: Mapping[str, Any]) -> None:
        """Take the workers' times of a batch of `laser_hf.data.PairCollator`."""
        if self.active:
            for part, seconds in batch["seconds"].items():
                self._in_workers[part] += seconds

    def add_pairs(self, micro_batches: Sequence[Mapping[str, Any]]) -> None:
        """Count the pairs of this process, and how much of what is encoded is padding."""
        if self.active:
            self._pairs += sum(len(batch["ids"]) for batch in micro_batches)
            used, encoded = padding(micro_batches)
            self._used += used
            self._encoded += encoded

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """The optimiser step is done."""
        if self.active:
            self.stop("optimizer")
            self._walls.append(self._now() - self._began)
            self.active = False

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Write `OUTPUT_DIR/profile.json` and show it."""
        if not self.updates or not state.is_world_process_zero:
            return
        if not self._walls:
            logger.warning(
                "nothing to profile: the run ended before update %d, and the first %d updates are warm-up",
                WARM_UP + 1,
                WARM_UP,
            )
            return
        record = self.record() | {"precision": precision(args)} | provenance()
        write_json(Path(args.output_dir) / PROFILE_NAME, record)
        logger.info("Profile of %d updates (%s):\n%s", record["updates"], PROFILE_NAME, profile_table(record))

    # ---- results ----

    def record(self) -> dict[str, Any]:
        """`updates`, `seconds_per_update`, `seconds` and `shares` of each part, and under what conditions.

        `seconds` are per update; `shares` are these over `seconds_per_update`. `overlapped` names the parts whose
        shares do not belong to the sum. `padding` is the share of padding in the samples encoded.
        """
        count, wall = len(self._walls), sum(self._walls)
        seconds = dict(self._seconds)
        if self.workers == 0:
            # The workers' time is the main process's own and lies inside the waiting.
            seconds["wait"] -= sum(self._in_workers.values())
        for part, own in self._in_workers.items():
            seconds[part] += own
        overlapped = [part for part, own in self._in_workers.items() if self.workers and own]
        seconds["other"] = wall - sum(time for part, time in seconds.items() if part not in overlapped)
        return {
            "updates": count,
            "warm_up": WARM_UP,
            "seconds_per_update": wall / count,
            "seconds": {part: seconds[part] / count for part in PARTS},
            "shares": {part: seconds[part] / wall for part in PARTS},
            "overlapped": overlapped,
            "pairs_per_update": self._pairs / count,
            "padding": 1 - self._used / self._encoded if self._encoded else 0.0,
            "workers": self.workers,
            "device": str(self.device),
            "synchronised": self.device.type == "cuda",
            "threads": torch.get_num_threads(),
        }

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def profile_table(record: Mapping[str, Any]) -> str:
    """The record as a small text table, one part a line."""
    lines = [f"  {'part':<10} {'ms/update':>10} {'share':>7}"]
    for part, share in record["shares"].items():
        cores = "  (core time of the workers, beside the rest)" if part in record["overlapped"] else ""
        lines.append(f"  {part:<10} {1000 * record['seconds'][part]:>10.1f} {100 * share:>6.1f}%{cores}")
    lines.append(f"  {'update':<10} {1000 * record['seconds_per_update']:>10.1f}")
    lines.append(f"  {100 * record['padding']:.1f}% of the samples encoded are padding")
    return "\n".join(lines)
