"""Which pairs make an update, which of them a process takes, and the loaders that yield them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..errors import LaserError
from .arguments import LaserTrainingArguments


class UpdateSampler(torch.utils.data.Sampler[list[int]]):
    """For each update of an epoch the indices that one process takes: every `world_size`-th pair.

    The pairs of an update do not depend on the number of processes.

    Args:
        world_size, rank: processes, and which of them this is.
        seed: of the order.
    """

    def __init__(self, world_size: int = 1, rank: int = 0, seed: int = 0):
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    @abstractmethod
    def updates(self) -> Iterator[list[int]]:
        """The pairs of each update of this epoch, over all processes."""

    def __iter__(self) -> Iterator[list[int]]:
        return (update[self.rank :: self.world_size] for update in self.updates())

    def _permutation(self, count: int) -> list[int]:
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch])).permutation(count).tolist()


class PairSampler(UpdateSampler):
    """Updates of `pairs_per_update` pairs: an epoch is a permutation drawn from (seed, epoch) and cut.

    The last update of an epoch may be smaller, so that some processes have no pair in it.

    Args:
        count: size of the data set.
        pairs_per_update: pairs of one optimiser step, over all processes.
        world_size, rank, seed: see `UpdateSampler`.
        shuffle: `False` keeps the order of the data set (evaluation).
    """

    def __init__(
        self,
        count: int,
        pairs_per_update: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ):
        super().__init__(world_size, rank, seed)
        self.count = count
        self.pairs_per_update = pairs_per_update
        self.shuffle = shuffle

    def __len__(self) -> int:
        return math.ceil(self.count / self.pairs_per_update)

    def updates(self) -> Iterator[list[int]]:
        """See `UpdateSampler.updates`."""
        order = self._permutation(self.count) if self.shuffle else list(range(self.count))
        return (order[first : first + self.pairs_per_update] for first in range(0, self.count, self.pairs_per_update))


class SecondsSampler(UpdateSampler):
    """Updates filled with speech instead of with a number of pairs, as Spin's released code has it.

    Utterances are sorted by length and cut into updates of at most `seconds_per_update` (at least one utterance); what
    is left at the end makes no update; the order of the updates is drawn from (seed, epoch).

    Args:
        seconds: of each utterance, as it is trained on (cropped). 0 where it is not known.
        seconds_per_update: source speech of one optimiser step, over all processes.
        world_size, rank, seed: see `UpdateSampler`.

    Raises:
        LaserError: all the speech is not enough for one update.
    """

    def __init__(
        self, seconds: Sequence[float], seconds_per_update: float, world_size: int = 1, rank: int = 0, seed: int = 0
    ):
        super().__init__(world_size, rank, seed)
        self.filled = _fill(seconds, seconds_per_update)
        if not self.filled:
            raise LaserError(
                f"{sum(seconds):.0f} seconds of speech in {len(seconds)} utterances do not fill one update of "
                f"{seconds_per_update:g}; lower --seconds_per_update or give more speech"
            )

    def __len__(self) -> int:
        return len(self.filled)

    def updates(self) -> Iterator[list[int]]:
        """See `UpdateSampler.updates`."""
        return (self.filled[index] for index in self._permutation(len(self.filled)))


def _fill(seconds: Sequence[float], limit: float) -> list[list[int]]:
    """Indices by descending length, cut before the sum of an update passes the limit; the rest is dropped."""
    updates: list[list[int]] = []
    current, total = [], 0.0
    for index in sorted(range(len(seconds)), key=lambda i: seconds[i], reverse=True):
        if current and total + seconds[index] > limit:
            updates.append(current)
            current, total = [], 0.0
        current.append(index)
        total += seconds[index]
    return updates


def micro_batches(args: LaserTrainingArguments) -> int:
    """Micro-batches of a full update on each process.

    Raises:
        LaserError: an update has fewer pairs than there are processes.
    """
    if args.seconds_per_update is not None:
        here = args.seconds_per_update / args.world_size
        return math.ceil(here / (args.per_device_train_seconds or here))
    if args.pairs_per_update < args.world_size:
        raise LaserError(
            f"an update of {args.pairs_per_update} pairs cannot be shared by {args.world_size} processes; start "
            "fewer, or raise --pairs_per_update (which changes the recipe)"
        )
    return math.ceil(args.pairs_per_update / (args.world_size * args.per_device_train_batch_size))


def train_loader(dataset, args: LaserTrainingArguments) -> tuple[DataLoader, UpdateSampler | None]:
    """A loader whose item is the list of this process's pairs of one update, and its sampler (a stream has none).

    Args:
        dataset: pairs, map-style or a stream of this process's share. With `seconds_per_update` it needs `seconds`,
            the length of each utterance (`PairDataset`).
        args: sizes, processes and seeds.

    Raises:
        LaserError: updates are to be filled by length, and the lengths are not known.
    """
    world, rank = args.world_size, args.process_index
    if isinstance(dataset, IterableDataset):
        if args.seconds_per_update is not None:
            raise LaserError(
                "--seconds_per_update fills updates with utterances of like length, and a stream does not know lengths "
                "beforehand. Give --streaming false to download the data first, or leave it out"
            )
        share = args.pairs_per_update // world + (rank < args.pairs_per_update % world)
        return _loader(dataset, args, batch_size=share), None
    seed = args.seed if args.data_seed is None else args.data_seed
    sampler: UpdateSampler
    if args.seconds_per_update is None:
        sampler = PairSampler(len(dataset), args.pairs_per_update, world, rank, seed)
    elif not hasattr(dataset, "seconds"):
        raise LaserError("--seconds_per_update needs a training set with `seconds`, such as PairDataset")
    else:
        sampler = SecondsSampler(dataset.seconds, args.seconds_per_update, world, rank, seed)
    return _loader(dataset, args, batch_sampler=sampler), sampler


def eval_loader(dataset, args: LaserTrainingArguments) -> DataLoader:
    """Held-out pairs in the order of the data set, shared among the processes; an item is a list of pairs."""
    world = args.world_size
    sampler = PairSampler(
        len(dataset), args.per_device_eval_batch_size * world, world, args.process_index, shuffle=False
    )
    # Without a generator of its own, the loader would draw from torch's, and evaluation would change later dropout.
    return _loader(dataset, args, batch_sampler=sampler, generator=torch.Generator().manual_seed(args.seed))


def _as_it_is(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return pairs


def _loader(dataset, args: LaserTrainingArguments, **how: Any) -> DataLoader:
    # Not through accelerator.prepare: the sampler, or the split of the stream, already knows its process.
    workers = args.dataloader_num_workers
    if isinstance(dataset, IterableDataset):
        workers = min(workers, dataset.num_shards)
    return DataLoader(
        dataset,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers and workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        **how,
    )
