"""Which utterances make a batch: the two rules of SUPERB, and their distribution over steps and processes.

A *group* is what SUPERB calls a batch. An update is one group (ASR) or two (PR); its loss is the mean over its groups
of the mean over the utterances of a group, however the groups are split into micro-batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

Share = list[tuple[int, float]]
"""Utterances of one micro-batch on one process, each with its weight in the loss of the update."""


def length_buckets(samples: Sequence[int], size: int, halve_above: int) -> list[list[int]]:
    """SUPERB's ASR batches: utterances by descending length in groups of `size`, halved when long.

    A full group whose longest utterance has more than `halve_above` samples becomes two. SUPERB compares with 2,000,
    an eighth of a second: every full group of 32 is two batches of 16. What is left at the end stays one group,
    however long; a single utterance is dropped. Equally long ones keep their order.

    Returns:
        Indices into `samples`.
    """
    order = sorted(range(len(samples)), key=lambda index: -samples[index])
    groups = []
    for start in range(0, len(order), size):
        group = order[start : start + size]
        if len(group) < size:
            groups += [group] if len(group) > 1 else []
        elif size >= 2 and samples[group[0]] > halve_above:
            groups += [group[: size // 2], group[size // 2 :]]
        else:
            groups.append(group)
    return groups


def target_windows(labels: Sequence[int], samples: Sequence[int], size: int, halve_above: int) -> list[list[int]]:
    """SUPERB's PR batches: a window of `size` utterances slid over them by descending target length.

    As many windows as utterances; the last `size` are the same. A window whose first utterance has more than
    `halve_above` samples keeps its first half. Utterances of a window are in descending order of samples.

    Args:
        labels: labels of each target.
        samples: samples of each utterance.
        size, halve_above: SUPERB has 16 and 300,000 (18.75 s).

    Returns:
        Indices into `labels`.
    """
    order = sorted(range(len(labels)), key=lambda index: -labels[index])
    windows = []
    for position in range(len(order)):
        start = max(min(len(order) - size, position), 0)
        window = order[start : start + size]
        if samples[window[0]] > halve_above:
            window = window[: max(size // 2, 1)]
        windows.append(sorted(window, key=lambda index: -samples[index]))
    return windows


class UpdateSampler(torch.utils.data.Sampler[Share]):
    """Shares of one process for all updates of a run.

    The groups are shuffled anew each time all of them have been used, from (seed, round). Updates run on over the ends
    of rounds, as gradient accumulation does in S3PRL. To the Trainer the run is one long epoch.

    Args:
        groups: utterances of each group.
        updates: optimiser steps of the run.
        groups_per_update: gradient accumulation of the recipe.
        micro_batch_size: utterances a process holds at once; `None` for whole groups.
        world_size, rank: processes, and which of them this is.
        seed: of the order.

    Raises:
        ValueError: no groups.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        updates: int,
        groups_per_update: int = 1,
        micro_batch_size: int | None = None,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ):
        if not groups:
            raise ValueError("there is no batch to train on: at least two usable utterances are needed")
        self.groups = groups
        self.updates = updates
        self.groups_per_update = groups_per_update
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        largest = max(map(len, groups))
        self.splits = math.ceil(largest / (world_size * micro_batch_size)) if micro_batch_size else 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a process in one update: the Trainer's `gradient_accumulation_steps`."""
        return self.groups_per_update * self.splits

    def __len__(self) -> int:
        return self.updates * self.micro_batches

    def order(self, round_number: int) -> list[int]:
        """Order of the groups in one round."""
        sequence = np.random.SeedSequence([self.seed, round_number])
        return np.random.default_rng(sequence).permutation(len(self.groups)).tolist()

    def __iter__(self) -> Iterator[Share]:
        current, order = -1, []
        shares = self.splits * self.world_size
        for number in range(self.updates * self.groups_per_update):
            round_number, position = divmod(number, len(self.groups))
            if round_number != current:
                current, order = round_number, self.order(round_number)
            group = self.groups[order[position]]
            weight = 1 / (len(group) * self.groups_per_update)
            for split in range(self.splits):
                yield [(index, weight) for index in group[split * self.world_size + self.rank :: shares]]
