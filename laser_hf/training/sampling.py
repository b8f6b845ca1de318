"""Which pairs make an update, on which process and in which micro-batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import IterableDataset

from ..data import PairTransform, shuffled_stream, with_pairs


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
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
            order = generator.permutation(self.count).tolist()
        else:
            order = list(range(self.count))
        shares = self.world_size * self.micro_batches
        for start in range(0, self.count, self.pairs_per_update):
            update = order[start : start + self.pairs_per_update]
            for micro_batch in range(self.micro_batches):
                yield update[micro_batch * self.world_size + self.rank :: shares]


class SecondsBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of dataset indices for one process, updates filled with speech instead of with a number of pairs.

    Utterances are sorted by length and cut into updates of at most `seconds_per_update` (at least one utterance); what
    is left at the end makes no update; the order of the updates is drawn from (seed, epoch). As Spin's released code
    has it. An update is dealt out as in `PairBatchSampler`.

    Args:
        seconds: of each utterance, as it is trained on (cropped). 0 where it is not known.
        seconds_per_update: source speech of one optimiser step, over all processes.
        micro_batches: micro-batches that a process accumulates for one step.
        world_size, rank: processes, and which of them this is.
        seed: of the order.

    Raises:
        ValueError: all the speech is not enough for one update.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        seconds_per_update: float,
        micro_batches: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ):
        self.updates = _fill(seconds, seconds_per_update)
        if not self.updates:
            raise ValueError(
                f"{sum(seconds):.0f} seconds of speech in {len(seconds)} utterances do not fill one update of "
                f"{seconds_per_update:g}; lower --seconds_per_update or give more speech"
            )
        self.micro_batches = micro_batches
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.updates) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
        shares = self.world_size * self.micro_batches
        for index in generator.permutation(len(self.updates)):
            for micro_batch in range(self.micro_batches):
                yield self.updates[index][micro_batch * self.world_size + self.rank :: shares]


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


class EpochStream(torch.utils.data.IterableDataset):
    """Endless stream of pairs for one process: epoch after epoch, each shuffled and perturbed anew.

    To the Trainer it is one long epoch, so that a run neither ends nor waits where a process or a worker
    runs out of its share. Every worker counts its own epochs; nothing is shared between them.

    Args:
        speech: stream as `laser_hf.data.load_speech` returns it.
        transform: makes the pairs; its epoch is set here.
        seed: of the shuffling.
        buffer_size: utterances shuffled at a time.
        rank, world_size: this process and how many there are.
    """

    def __init__(
        self,
        speech: IterableDataset,
        transform: PairTransform,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.speech = speech
        self.transform = transform
        self.seed = seed
        self.buffer_size = buffer_size
        self.rank = rank
        self.world_size = world_size

    @property
    def num_shards(self) -> int:
        """Files this process reads: more workers than that would idle."""
        return max(self.speech.num_shards // self.world_size, 1)

    def __iter__(self) -> Iterator[dict]:
        for epoch in itertools.count():
            seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
            stream = shuffled_stream(self.speech, seed, self.buffer_size, rank=self.rank, world_size=self.world_size)
            empty = True
            for pair in with_pairs(stream, self.transform.at_epoch(epoch)):
                empty = False
                yield pair
            if empty:
                return
