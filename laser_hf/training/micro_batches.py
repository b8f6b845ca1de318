"""The pairs of an update on one process: completed on the device, sorted by length and cut into micro-batches.

The data loader yields the pairs in the order of their random draw, so that neither sampling nor resuming knows about
lengths. Only when the pairs of an update are together are they sorted, so that a micro-batch needs little padding. The
loss of an update is a mean over its pairs and padding changes no frame, so the cut changes the update through
dropout alone. (Spin is the exception: it assigns codes to the frames of a micro-batch together.)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data import PairCollator, Perturbation

Batch = dict[str, Any]
Pair = dict[str, Any]
_collate = PairCollator()


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """Samples on `device`, without waiting for a copy from pinned memory; lengths stay on the CPU.

    There they are read without waiting for the device.
    """
    return {
        key: value.to(device, non_blocking=True) if key in ("clean", "perturbed") and value is not None else value
        for key, value in batch.items()
    }


def split_batch(batch: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a batch as `PairCollator` took them, without those skipped; waveforms are views of the batch."""
    views = {}
    for view in ("clean", "perturbed"):
        rows, lengths = batch[view], batch[f"{view}_lengths"]
        views[view] = (
            [None] * len(batch["ids"])
            if rows is None
            else [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]
        )
    return [
        {"id": name, "clean": clean, "perturbed": perturbed, "drawn": drawn, "skip": ""}
        for name, clean, perturbed, drawn in zip(
            batch["ids"], views["clean"], views["perturbed"], batch["drawn"], strict=True
        )
    ]


@torch.no_grad()
def perturb_pairs(pairs: Sequence[Pair], perturbation: Perturbation | None) -> list[Pair]:
    """The pairs with their second view made where the clean one lies, in one batched call.

    Raises:
        ValueError: there is no perturbation to make it.
    """
    if perturbation is None:
        raise ValueError(
            "the pairs come without their perturbed view (PairTransform with perturb=False); give LaserTrainer the "
            "perturbation that makes it"
        )
    perturbed = perturbation.apply_batch([pair["clean"] for pair in pairs], [pair["drawn"] for pair in pairs])
    return [pair | {"perturbed": view} for pair, view in zip(pairs, perturbed, strict=True)]


def cut_by_length(pairs: Sequence[Pair], count: int) -> list[Batch]:
    """`count` micro-batches of nearly equal numbers of pairs, the longest pairs first.

    Pairs of equal length keep their order, and all pairs do when there is but one micro-batch. With fewer pairs than
    micro-batches some of these are empty.
    """
    by_length = sorted(pairs, key=_longer_view, reverse=True) if count > 1 else pairs
    cuts = [part * len(pairs) // count for part in range(count + 1)]
    return [_collate(by_length[first:last]) for first, last in itertools.pairwise(cuts)]


def _longer_view(pair: Pair) -> int:
    """Samples that the pair takes: both views are padded to the longest of the micro-batch."""
    return max(len(pair["clean"]), len(pair["perturbed"]))


def padding(micro_batches: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Samples of both views of all pairs, and samples that are encoded when they are padded."""
    used = encoded = 0
    for batch in micro_batches:
        if batch["ids"]:
            lengths = torch.cat((batch["clean_lengths"], batch["perturbed_lengths"]))
            used += int(lengths.sum())
            encoded += len(lengths) * int(lengths.max())
    return used, encoded
