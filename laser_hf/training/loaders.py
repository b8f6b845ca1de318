"""Data loaders of pairs for one process."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..data import PairCollator
from .arguments import LaserTrainingArguments
from .sampling import PairBatchSampler, SecondsBatchSampler, micro_batches_per_update


def accumulation_steps(args: LaserTrainingArguments) -> int:
    """Micro-batches of an update on each process."""
    if args.seconds_per_update is None:
        return micro_batches_per_update(args.pairs_per_update, args.per_device_train_batch_size, args.world_size)
    if args.per_device_train_seconds is None:
        return 1
    return math.ceil(args.seconds_per_update / (args.world_size * args.per_device_train_seconds))


def train_loader(
    dataset, args: LaserTrainingArguments, seconds: list[float] | None = None
) -> tuple[DataLoader, PairBatchSampler | SecondsBatchSampler | None]:
    """Micro-batches for this process, and the sampler behind them (a stream has none).

    Args:
        dataset: pairs, map-style or a stream.
        args: sizes, processes and seeds; `gradient_accumulation_steps` as `accumulation_steps` says.
        seconds: of the utterances of a map-style data set, where updates are filled by their length.

    Raises:
        ValueError: a stream whose updates do not divide among the processes, or that is to be filled by length.
    """
    if isinstance(dataset, IterableDataset):
        if args.seconds_per_update is not None:
            raise ValueError("a stream does not know its lengths beforehand; leave out --seconds_per_update")
        shares = args.world_size * args.gradient_accumulation_steps
        if args.pairs_per_update % shares:
            raise ValueError(
                f"a streamed update of {args.pairs_per_update} pairs does not divide into {args.world_size} "
                f"processes x {args.gradient_accumulation_steps} micro-batches; choose "
                "--per_device_train_batch_size and the number of processes so that it does"
            )
        return _loader(dataset, args, batch_size=args.pairs_per_update // shares), None
    seed = args.seed if args.data_seed is None else args.data_seed
    how = (args.gradient_accumulation_steps, args.world_size, args.process_index, seed)
    sampler: PairBatchSampler | SecondsBatchSampler
    if args.seconds_per_update is None:
        sampler = PairBatchSampler(len(dataset), args.pairs_per_update, *how)
    elif seconds is None:
        raise ValueError("--seconds_per_update needs the lengths of the utterances: give LaserTrainer train_seconds")
    else:
        sampler = SecondsBatchSampler(seconds, args.seconds_per_update, *how)
    return _loader(dataset, args, batch_sampler=sampler), sampler


def eval_loader(dataset, args: LaserTrainingArguments) -> DataLoader:
    """Held-out pairs in the order of the data set, shared among the processes."""
    sampler = PairBatchSampler(
        len(dataset),
        args.per_device_eval_batch_size * args.world_size,
        world_size=args.world_size,
        rank=args.process_index,
        shuffle=False,
    )
    # Without one of its own it would draw from torch's generator, and looking would change the dropout to come.
    return _loader(dataset, args, batch_sampler=sampler, generator=torch.Generator().manual_seed(args.seed))


def _loader(dataset, args: LaserTrainingArguments, **how: Any) -> DataLoader:
    # Not through accelerator.prepare: the sampler (or the split of the stream) already knows its process.
    workers = args.dataloader_num_workers
    if isinstance(dataset, IterableDataset):
        workers = min(workers, dataset.num_shards)
    return DataLoader(
        dataset,
        collate_fn=PairCollator(),
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers and workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        **how,
    )
