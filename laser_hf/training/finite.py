"""Find the utterances behind a loss or a gradient that is not finite, and report them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from ..errors import LaserError
from ..records import write_json
from .means import from_all_processes, sum_over_processes

FILE_NAME = "non_finite.json"


class NonFiniteLossError(LaserError):
    """Loss or gradient became NaN or infinite; the message names the utterances and the saved state."""


def all_finite(
    losses: Sequence[tuple[list[str], torch.Tensor]], gradient_norm: torch.Tensor | None, device: torch.device
) -> bool:
    """Whether all losses of an update, and its gradient norm if given, are finite on every process.

    Args:
        losses: utterances and losses `(pairs,)` of the micro-batches of this process.
        gradient_norm: a scalar on `device`.
        device: where processes communicate.
    """
    found = [torch.isfinite(total).all() for _, total in losses]
    if gradient_norm is not None:
        found.append(torch.isfinite(gradient_norm))
    return sum_over_processes((~torch.stack(found).all()).to(torch.int64), device).item() == 0


def stop(
    losses: Sequence[tuple[list[str], torch.Tensor]], step: int, output_dir: Path, saved: str, write: bool
) -> NoReturn:
    """End the training, and name what made it end in `non_finite.json`; every process has to call it.

    Args:
        losses: as for `all_finite`.
        step: number of the update.
        output_dir: of the run.
        saved: what was kept, in words.
        write: whether this process writes the file.

    Raises:
        NonFiniteLossError: always.
    """
    values, ids, what = _culprits(losses)
    if write:
        found = {name: repr(value) for name, value in values.items()}
        write_json(output_dir / FILE_NAME, {"step": step, "what": what, "utterances": ids, "losses": found})
    raise NonFiniteLossError(
        f"non-finite {what} at step {step} on the utterances {', '.join(ids)}; {saved}. "
        "Look at those files, lower the learning rate, or train without --bf16."
    )


def _culprits(losses: Sequence[tuple[list[str], torch.Tensor]]) -> tuple[dict[str, float], list[str], str]:
    """Losses that are not finite by utterance, the utterances to name, and what is bad: "loss" or "gradient".

    A gradient can be bad where every loss is fine: then all pairs of the update are named. Over all processes.
    """
    values = {
        name: value
        for ids, total in losses
        for name, value in zip(ids, total.tolist(), strict=True)
        if not math.isfinite(value)
    }
    gathered = from_all_processes((values, [name for ids, _ in losses for name in ids]))
    values = {name: value for found, _ in gathered for name, value in found.items()}
    everything = [name for _, names in gathered for name in names]
    return values, list(values) or everything, "loss" if values else "gradient"
