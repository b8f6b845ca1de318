"""The pairs of an update on one process: moved to the device, completed there, and cut into padded micro-batches.

Padding changes no frame, so the cut changes an update through dropout alone (but for Spin, whose frames share codes).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil
import torch
from transformers import PretrainedConfig

from ..data import draw_generator, pad_pairs
from ..data.pairs import in_memory
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..objectives import Objective
from ..transfer import to_device

Batch = dict[str, Any]
Pair = Update = Mapping[str, Any]
VIEWS = ("clean", "perturbed")


def pack(pairs: Sequence[Pair | None]) -> Update:
    """The pairs of an update as a data worker hands them over, lengths in place of waveforms, and these in one tensor.

    One block of shared memory needs one open file. A resumed stream gives `None` for what it skips.
    """
    pairs = [pair for pair in pairs if pair is not None]
    waveforms = [pair[view] for pair in pairs for view in VIEWS if pair[view] is not None]
    packed = [pair | {view: None if pair[view] is None else len(pair[view]) for view in VIEWS} for pair in pairs]
    return {"samples": torch.cat(waveforms) if waveforms else torch.zeros(0), "pairs": packed}


def unpack(update: Update, device: torch.device | str) -> list[Pair]:
    """The pairs, skipped ones included, with waveforms on `device`; the copy from pinned memory does not block."""
    lengths = [pair[view] for pair in update["pairs"] for view in VIEWS if pair[view] is not None]
    views = iter(to_device(update["samples"], torch.device(device)).split(lengths))
    return [pair | {view: None if pair[view] is None else next(views) for view in VIEWS} for pair in update["pairs"]]


def cut_by_length(pairs: Sequence[Pair], count: int) -> list[Batch]:
    """`count` padded micro-batches of nearly equal numbers of pairs, perhaps none, the longest first (stable)."""
    by_length = sorted(pairs, key=lambda pair: max(len(pair["clean"]), len(pair["perturbed"])), reverse=True)
    cuts = [part * len(pairs) // count for part in range(count + 1)]
    return [pad_pairs(by_length[first:last]) for first, last in itertools.pairwise(cuts)]


@contextlib.contextmanager
def memory_named(batch: Batch, config: PretrainedConfig, device: torch.device) -> Iterator[None]:
    """Compute with a micro-batch; the `LaserError` that it does not fit into memory names its longest utterance.

    A batch whose first layer alone is too large (input and output, in 16 bits) is refused before the system kills us.
    """
    lengths, count = torch.maximum(batch["clean_lengths"], batch["perturbed_lengths"]).tolist(), len(batch["ids"])
    longest, name = max(zip(lengths, batch["ids"], strict=True), default=(0, "none"))
    what = f"utterance {name} of {longest / SAMPLE_RATE:.0f} s, in a micro-batch of {count},"
    mend = "give --max_seconds or --crop_seconds, or a smaller --per_device_train_batch_size"
    if longest > 60 * SAMPLE_RATE:
        needed = 2 * 2 * 2 * count * longest // config.conv_stride[0] * config.conv_dim[0]
        free = psutil.virtual_memory().available
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if needed > free:
            sizes = f"{needed / 1e9:.1f} GB or more are needed, {free / 1e9:.1f} GB are free"
            raise LaserError(f"{what} does not fit into memory: {sizes}; {mend}")
    with in_memory(what, mend):
        yield


def drawn_sides(seed: int, step: int, ids: Sequence[str]) -> torch.Tensor:
    """Whether the trained encoder hears the perturbed view, a bool a pair; seed, update and utterance alone decide."""
    return torch.tensor([draw_generator(seed, step, f"{name}\nside").random() < 0.5 for name in ids])


def stack_views(batch: Mapping[str, Any], swap: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms `(2 * pairs, samples)` and lengths `(2 * pairs,)` of a batch of `pad_pairs`: DDP wants one call.

    The clean ones come first, except where `swap`, bool `(pairs,)` on the CPU, is set.
    """
    longest = max(batch[view].shape[1] for view in VIEWS)
    pad = torch.nn.functional.pad
    waveforms = torch.stack([pad(batch[view], (0, longest - batch[view].shape[1])) for view in VIEWS])
    lengths = torch.stack([batch[f"{view}_lengths"] for view in VIEWS])
    if swap is not None:
        waveforms = torch.where(to_device(swap, waveforms.device).unsqueeze(1), waveforms.flip(0), waveforms)
        lengths = torch.where(swap, lengths.flip(0), lengths)
    return waveforms.flatten(0, 1), lengths.flatten()


def check_views(dataset, objective: Objective) -> None:
    """`LaserError` on perturbations that change durations where `objective` needs equal ones, or cannot be batched."""
    transform, perturbation = getattr(dataset, "transform", None), getattr(dataset, "perturbation", None)
    if objective.equal_lengths and perturbation is not None and not perturbation.keeps_duration:
        which = "voice, equalizer, noise; speed_pitch with --speed_factors 1"
        name = objective.title or type(objective).__name__
        raise LaserError(f"{name} needs perturbations that keep the duration ({which})")
    if transform is not None and not transform.perturb and not perturbation.batched:
        mend = "use --perturb_on worker, or set batched = True in the class if its `apply` works on the training device"
        raise LaserError(f"{perturbation.title or type(perturbation).__name__} perturbs in data workers only: {mend}")
