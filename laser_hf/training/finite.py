"""Losses and gradients that are not finite: who is to blame, and what is said and written about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..records import write_json

FILE_NAME = "non_finite.json"


class NonFiniteLossError(RuntimeError):
    """Loss or gradient became NaN or infinite; the message names the utterances and the saved state."""


def culprits(
    totals: Sequence[tuple[list[str], torch.Tensor]], world_size: int
) -> tuple[dict[str, float], list[str], str]:
    """Losses that are not finite by utterance, the utterances to name, and what it is: "loss" or "gradient".

    A gradient can be bad where every loss is fine: then all pairs of the update are named. Over all processes, each of
    which has to come here.

    Args:
        totals: utterances and losses `(pairs,)` of the micro-batches of this process.
        world_size: processes.
    """
    values = {
        name: value
        for ids, total in totals
        for name, value in zip(ids, total.tolist(), strict=True)
        if not math.isfinite(value)
    }
    everything = [name for ids, _ in totals for name in ids]
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        dist.all_gather_object(gathered, (values, everything))
        values = {name: value for found, _ in gathered for name, value in found.items()}
        everything = [name for _, names in gathered for name in names]
    return values, list(values) or everything, "loss" if values else "gradient"


def report(output_dir: Path, step: int, what: str, ids: list[str], losses: dict[str, float]) -> None:
    """Write `non_finite.json`."""
    write_json(
        output_dir / FILE_NAME,
        {
            "step": step,
            "what": what,
            "utterances": ids,
            "losses": {name: repr(value) for name, value in losses.items()},
        },
    )
