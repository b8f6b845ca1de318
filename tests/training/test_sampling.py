"""Which pairs make an update must not depend on processes."""

from __future__ import annotations

import os

import pytest
import torch

from laser_hf.data import PairDataset, PairStream, PairTransform, SpeedPitch, load_speech
from laser_hf.errors import LaserError
from laser_hf.training import LaserTrainingArguments
from laser_hf.training.sampling import (
    UpdateSampler,
    micro_batches,
    train_loader,
    updates_of_pairs,
    updates_of_seconds,
)


def updates(count, pairs, world, epoch=0):
    """Pairs of each update over all processes, and the sizes of the shares."""

    def plan(generator):
        return updates_of_pairs(generator.permutation(count).tolist(), pairs)

    return dealt(plan, world, epoch)


def dealt(plan, world, epoch=0):
    samplers = [UpdateSampler(plan, world, rank, seed=5) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    together = [sorted(i for share in update for i in share) for update in zip(*shares, strict=True)]
    return together, [[len(share) for share in update] for update in zip(*shares, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_same_updates_whatever_the_number_of_processes(world):
    expected, _ = updates(43, 8, 1)
    found, sizes = updates(43, 8, world)
    assert found == expected
    assert sorted(i for update in found for i in update) == list(range(43))
    assert all(max(shares) - min(shares) <= 1 for shares in sizes)


def test_epochs_differ_and_repeat():
    first, second = updates(20, 8, 1, epoch=0)[0], updates(20, 8, 1, epoch=1)[0]
    assert first != second
    assert second == updates(20, 8, 1, epoch=1)[0]
    assert updates_of_pairs(range(20), 8) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


@pytest.mark.parametrize(
    ("pairs", "device", "world", "expected"), [(8, 4, 1, 2), (8, 3, 1, 3), (8, 8, 2, 1), (8, 1, 4, 2), (7, 2, 2, 2)]
)
def test_micro_batches(pairs, device, world, expected):
    assert micro_batches(arguments(world, pairs_per_update=pairs, per_device_train_batch_size=device)) == expected


def test_micro_batches_of_seconds():
    assert micro_batches(arguments(2, seconds_per_update=256.0)) == 1
    assert micro_batches(arguments(2, seconds_per_update=256.0, per_device_train_seconds=50.0)) == 3


class Several(LaserTrainingArguments):
    """Of one process of several that are not there."""

    world_size = property(lambda self: self.__dict__.get("_world", 1))
    process_index = property(lambda self: self.__dict__.get("_rank", 0))


def arguments(world, rank=0, **options):
    args = Several(output_dir="unused", use_cpu=True, report_to="none", dataloader_num_workers=0, **options)
    args.__dict__.update(_world=world, _rank=rank)
    return args


def test_more_processes_than_pairs():
    with pytest.raises(LaserError, match="cannot be shared by 16"):
        micro_batches(arguments(16))
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        arguments(1, pairs_per_update=0)


@pytest.mark.parametrize(("world", "expected"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2])])
def test_a_streamed_update_is_shared_by_any_number_of_processes(small_tree, world, expected):
    speech, seen = load_speech(small_tree, streaming=True), []
    for rank, size in enumerate(expected):
        stream = PairStream(speech, PairTransform(SpeedPitch()), rank=rank, world_size=world)
        loader, sampler = train_loader(stream, arguments(world, rank, pairs_per_update=7))
        assert sampler is None
        update = next(iter(loader))["pairs"]
        assert len(update) == size
        seen += [pair["id"] for pair in update]
    assert len(set(seen)) == 7


def test_an_item_of_the_loader_is_an_update(small_tree):
    data = PairDataset(load_speech(small_tree), PairTransform(SpeedPitch()))
    loader, sampler = train_loader(data, arguments(1))
    items = list(loader)
    assert [len(item["pairs"]) for item in items] == [8, 8, 2]
    assert {pair["id"] for item in items for pair in item["pairs"]} == {row["id"] for row in load_speech(small_tree)}
    for item in items:  # not padded
        assert len(item["samples"]) == sum(pair["clean"] + pair["perturbed"] for pair in item["pairs"])
    loader, sampler = train_loader(data, arguments(1, seconds_per_update=4.0))
    assert len(loader) == len(sampler) == len(list(sampler.updates()))
    with pytest.raises(LaserError, match="needs a training set with `seconds`"):
        train_loader([], arguments(1, seconds_per_update=4.0))


LENGTHS = [3.0, 9.0, 1.5, 7.0, 7.0, 2.0, 4.5, 6.0, 0.0, 12.0]


def test_updates_filled_with_seconds():
    """By hand: sorted 12 9 7 7 6 4.5 3 2 1.5 0, at most 16 seconds each; the last, unfinished one is dropped."""
    assert updates_of_seconds(LENGTHS, 16.0) == [[9], [1, 3], [4, 7]]
    # A single utterance above the limit still makes an update of its own.
    assert updates_of_seconds(LENGTHS, 5.0) == [[9], [1], [3], [4], [7], [6], [0, 5]]
    with pytest.raises(LaserError, match="52 seconds of speech in 10 utterances do not fill one update of 100"):
        updates_of_seconds(LENGTHS, 100.0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_updates_of_seconds_whatever_the_number_of_processes(world):
    generator = torch.Generator().manual_seed(0)
    lengths = (20 * torch.rand(200, generator=generator)).tolist()

    filled = updates_of_seconds(lengths, 64.0)

    def plan(generator):
        return [filled[index] for index in generator.permutation(len(filled))]

    first, second = (dealt(plan, world, epoch)[0] for epoch in range(2))
    assert first == dealt(plan, 1, 0)[0]
    assert first != second
    assert sorted(first) == sorted(second)
    for update in first:
        assert sum(lengths[i] for i in update) <= 64.0
    used = [i for update in first for i in update]
    assert len(used) == len(set(used))
    assert sum(lengths) - sum(lengths[i] for i in used) <= 64.0


def test_a_large_update_takes_few_open_files():
    """Workers hand it over in one block, not in one for each waveform."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are counted on Linux")
    pairs = [
        {"id": str(i), "clean": torch.ones(5), "perturbed": torch.ones(7), "drawn": {}, "skip": ""} for i in range(600)
    ]
    args = arguments(1, pairs_per_update=300)
    args.dataloader_num_workers = 1
    before = set(os.listdir("/proc/self/fd"))
    for item in train_loader(pairs, args)[0]:
        assert item["samples"].shape == (3600,)
        assert len(set(os.listdir("/proc/self/fd")) - before) < 50
