"""Which pairs make an update, on which process and in which micro-batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch


def micro_batches_per_update(pairs_per_update: int, per_device: int, world_size: int) -> int:
    """Micro-batches that each process accumulates so that `world_size` of them see `pairs_per_update` pairs.

    Raises:
        ValueError: fewer pairs than processes.
    """
    if pairs_per_update < 1 or per_device < 1:
        raise ValueError(
            f"pairs_per_update and per_device_train_batch_size must be positive, got {pairs_per_update} "
            f"and {per_device}"
        )
    if pairs_per_update < world_size:
        raise ValueError(
            f"an update of {pairs_per_update} pairs cannot be shared by {world_size} processes; start fewer, or "
            "raise --pairs_per_update (which changes the recipe)"
        )
    return math.ceil(pairs_per_update / (world_size * per_device))


class PairBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of dataset indices for one process.

    An epoch is a permutation drawn from (seed, epoch) and cut into updates of `pairs_per_update`; an update is dealt
    out to `world_size * micro_batches` micro-batches. So the pairs of an update depend neither on the number of
    processes nor on the micro-batch size. Every process gets the same number of micro-batches; the last
    update of an epoch may leave some of them smaller or empty.

    Args:
        count: size of the dataset.
        pairs_per_update: pairs of one optimiser step, over all processes.
        micro_batches: micro-batches that a process accumulates for one step.
        world_size, rank: processes, and which of them this is.
        seed: of the permutation.
        shuffle: `False` keeps the order of the dataset (evaluation).
    """

    def __init__(
        self,
        count: int,
        pairs_per_update: int,
        micro_batches: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.count = count
        self.pairs_per_update = pairs_per_update
        self.micro_batches = micro_batches
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.pairs_per_update) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = list(range(self.count))
        shares = self.world_size * self.micro_batches
        for start in range(0, self.count, self.pairs_per_update):
            update = order[start : start + self.pairs_per_update]
            for micro_batch in range(self.micro_batches):
                yield update[micro_batch * self.world_size + self.rank :: shares]
