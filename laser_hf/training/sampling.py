"""Which pairs make an update, which of them a process takes, and the loaders that yield them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..errors import LaserError
from .arguments import LaserTrainingArguments
from .batches import pack
from .callbacks import outlive_signals

Plan = Callable[[np.random.Generator], list[list[int]]]


class UpdateSampler(torch.utils.data.Sampler[list[int]]):
    """For each update of an epoch the indices that one process takes: every `world_size`-th pair, perhaps none.

    `plan` makes the updates of an epoch, over all processes, from random numbers that (seed, epoch) decide.
    """

    def __init__(self, plan: Plan, world_size: int = 1, rank: int = 0, seed: int = 0):
        self.plan, self.world_size, self.rank, self.seed = plan, world_size, rank, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def updates(self) -> list[list[int]]:
        """The pairs of each update of this epoch, over all processes."""
        return self.plan(np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch])))

    def __len__(self) -> int:
        return len(self.updates())

    def __iter__(self) -> Iterator[list[int]]:
        return (update[self.rank :: self.world_size] for update in self.updates())


def updates_of_pairs(order: Sequence[int], pairs_per_update: int) -> list[list[int]]:
    """Updates of `pairs_per_update` pairs in the given order; the last one may be smaller."""
    return [list(order[first : first + pairs_per_update]) for first in range(0, len(order), pairs_per_update)]


def updates_of_seconds(seconds: Sequence[float], limit: float) -> list[list[int]]:
    """Updates filled with speech instead of with a number of pairs, as Spin's released code has it.

    Utterances of so many `seconds` (0: not known) are sorted by descending length and cut into updates of at most
    `limit` seconds over all processes (at least one utterance); what is left at the end makes no update. `LaserError`
    if all the speech is not enough for one.
    """
    updates: list[list[int]] = [[]]
    total = 0.0
    for index in sorted(range(len(seconds)), key=lambda i: seconds[i], reverse=True):
        if updates[-1] and total + seconds[index] > limit:
            updates.append([])
            total = 0.0
        updates[-1].append(index)
        total += seconds[index]
    if len(updates) == 1:
        have = f"{sum(seconds):.0f} seconds of speech in {len(seconds)} utterances"
        raise LaserError(f"{have} do not fill one update of {limit:g}; lower --seconds_per_update or give more speech")
    return updates[:-1]


def micro_batches(args: LaserTrainingArguments) -> int:
    """Micro-batches of a full update on each process; `LaserError` if it has fewer pairs than there are processes."""
    if args.seconds_per_update is not None:
        here = args.seconds_per_update / args.world_size
        return math.ceil(here / (args.per_device_train_seconds or here))
    if args.pairs_per_update < args.world_size:
        asked = f"an update of {args.pairs_per_update} pairs cannot be shared by {args.world_size} processes"
        raise LaserError(f"{asked}; start fewer, or raise --pairs_per_update (which changes the recipe)")
    return math.ceil(args.pairs_per_update / (args.world_size * args.per_device_train_batch_size))


def train_loader(dataset, args: LaserTrainingArguments, done: int = 0) -> tuple[DataLoader, UpdateSampler | None]:
    """A loader whose item holds this process's pairs of one update (`pack`), and its sampler (a stream has none).

    The items of a stream for the `done` updates are empty. `LaserError` if `seconds_per_update` meets a data set
    without `seconds`, the length of each utterance.
    """
    world, rank = args.world_size, args.process_index
    if isinstance(dataset, IterableDataset):
        if args.seconds_per_update is not None:
            raise LaserError("--seconds_per_update needs lengths, which a stream does not know: give --streaming false")
        share = args.pairs_per_update // world + (rank < args.pairs_per_update % world)
        if done and hasattr(dataset, "skip"):
            dataset = dataset.skip(done * share, share)
        return _loader(dataset, args, batch_size=share), None
    filled: list[list[int]] = []
    if args.seconds_per_update is not None:
        if not hasattr(dataset, "seconds"):
            raise LaserError("--seconds_per_update needs a training set with `seconds`, such as PairDataset")
        filled = updates_of_seconds(dataset.seconds, args.seconds_per_update)

    def plan(generator: np.random.Generator) -> list[list[int]]:
        if filled:
            return [filled[index] for index in generator.permutation(len(filled))]
        # As released, updates run on over the end of a pass.
        passes = math.ceil(args.max_steps * args.pairs_per_update / len(dataset)) if args.released else 1
        order = [index for _ in range(passes) for index in generator.permutation(len(dataset)).tolist()]
        return updates_of_pairs(order, args.pairs_per_update)[: args.max_steps if args.released else None]

    sampler = UpdateSampler(plan, world, rank, args.seed if args.data_seed is None else args.data_seed)
    return _loader(dataset, args, batch_sampler=sampler), sampler


def eval_loader(dataset, args: LaserTrainingArguments, together: bool = False) -> DataLoader:
    """Held-out pairs in the order of the data set, shared among the processes, as `pack` hands them over.

    With `together`, a loss that looks at a whole batch (Spin) sees the same ones with any number of processes.
    """
    world = args.world_size
    batches = updates_of_pairs(range(len(dataset)), args.per_device_eval_batch_size * (1 if together else world))
    sampler = UpdateSampler(lambda _: batches, world, args.process_index)
    # With torch's own generator, evaluation would change later dropout.
    return _loader(dataset, args, batch_sampler=sampler, generator=torch.Generator().manual_seed(args.seed))


def data_workers(dataset, args: LaserTrainingArguments) -> int:
    """How many processes read a data set for this one: of a stream at most one for each file."""
    workers = args.dataloader_num_workers
    return min(workers, dataset.num_shards) if isinstance(dataset, IterableDataset) else workers


def _loader(dataset, args: LaserTrainingArguments, **how: Any) -> DataLoader:
    # Not through accelerator.prepare: the sampler, or the split of the stream, already knows its process.
    workers = data_workers(dataset, args)
    return DataLoader(
        dataset,
        collate_fn=pack,
        num_workers=workers,
        worker_init_fn=outlive_signals,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers and workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        **how,
    )
