"""Which pairs make an update must not depend on processes or micro-batches."""

from __future__ import annotations

import pytest
import torch

from laser_hf.data import PairTransform, SpeedPitch, load_speech
from laser_hf.training.sampling import EpochStream, PairBatchSampler, SecondsBatchSampler, micro_batches_per_update


def updates(count, pairs, micro, world, epoch=0, **options):
    """Pairs of each update over all processes, and the sizes of the micro-batches."""
    samplers = [PairBatchSampler(count, pairs, micro, world, rank, seed=5, **options) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    per_rank = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in per_rank} == {len(samplers[0])}
    steps = len(samplers[0]) // micro
    sizes = [[len(batch) for batch in batches] for batches in per_rank]
    return [
        sorted(i for batches in per_rank for batch in batches[s * micro : (s + 1) * micro] for i in batch)
        for s in range(steps)
    ], sizes


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (8, 1), (2, 1), (4, 2), (1, 2), (3, 2), (1, 8)])
def test_same_updates_whatever_the_split(micro, world):
    expected, _ = updates(43, 8, 1, 1)
    found, sizes = updates(43, 8, micro, world)
    assert found == expected
    assert sorted(i for update in found for i in update) == list(range(43))
    assert max(max(s) for s in sizes) == -(-8 // (micro * world))


def test_epochs_differ_and_repeat():
    first, second = updates(20, 8, 1, 1, epoch=0)[0], updates(20, 8, 1, 1, epoch=1)[0]
    assert first != second
    assert second == updates(20, 8, 1, 1, epoch=1)[0]
    assert updates(20, 8, 1, 1, epoch=1, shuffle=False)[0] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]


@pytest.mark.parametrize(
    ("pairs", "device", "world", "expected"), [(8, 4, 1, 2), (8, 3, 1, 3), (8, 8, 2, 1), (8, 1, 4, 2)]
)
def test_micro_batches(pairs, device, world, expected):
    assert micro_batches_per_update(pairs, device, world) == expected


def test_more_processes_than_pairs():
    with pytest.raises(ValueError, match="cannot be shared by 16"):
        micro_batches_per_update(8, 1, 16)
    with pytest.raises(ValueError, match="must be positive"):
        micro_batches_per_update(0, 1, 1)


def test_stream_goes_on_with_a_new_epoch(small_tree):
    speech = load_speech(small_tree, streaming=True)
    stream = EpochStream(speech, PairTransform(SpeedPitch(), seed=1), seed=1, buffer_size=100)
    items = iter(stream)
    first, second = ([next(items) for _ in range(18)] for _ in range(2))
    ids = [[pair["id"] for pair in epoch] for epoch in (first, second)]
    assert len(set(ids[0])) == 18
    assert sorted(ids[0]) == sorted(ids[1])
    assert ids[0] != ids[1]
    drawn = [{pair["id"]: tuple(pair["drawn"].values()) for pair in epoch} for epoch in (first, second)]
    assert drawn[0] != drawn[1]
    again = iter(EpochStream(speech, PairTransform(SpeedPitch(), seed=1), seed=1, buffer_size=100))
    assert [next(again)["id"] for _ in range(36)] == ids[0] + ids[1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_and_processes_share_a_stream(small_tree, world_size):
    speech = load_speech(small_tree, streaming=True)
    seen = []
    for rank in range(world_size):
        stream = EpochStream(
            speech, PairTransform(SpeedPitch(), seed=1), seed=1, buffer_size=5, rank=rank, world_size=world_size
        )
        assert stream.num_shards >= 2
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
        pairs = iter(loader)
        seen += [next(pairs)["id"] for _ in range(18 // world_size)]
        del pairs
    # Workers take turns, so that the first epoch is through when every share has been read once.
    assert sorted(seen) == sorted(item["id"] for item in speech)


LENGTHS = [3.0, 9.0, 1.5, 7.0, 7.0, 2.0, 4.5, 6.0, 0.0, 12.0]


def test_updates_filled_with_seconds():
    """By hand: sorted 12 9 7 7 6 4.5 3 2 1.5 0, at most 16 seconds each; the last, unfinished one is dropped."""
    assert SecondsBatchSampler(LENGTHS, 16.0).updates == [[9], [1, 3], [4, 7]]
    # A single utterance above the limit still makes an update of its own.
    assert SecondsBatchSampler(LENGTHS, 5.0).updates == [[9], [1], [3], [4], [7], [6], [0, 5]]
    with pytest.raises(ValueError, match="52 seconds of speech in 10 utterances do not fill one update of 100"):
        SecondsBatchSampler(LENGTHS, 100.0)


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_updates_of_seconds_whatever_the_split(micro, world):
    generator = torch.Generator().manual_seed(0)
    lengths = (20 * torch.rand(200, generator=generator)).tolist()

    def dealt(micro, world, epoch):
        samplers = [SecondsBatchSampler(lengths, 64.0, micro, world, rank, seed=3) for rank in range(world)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        per_rank = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in per_rank} == {len(samplers[0])}
        return [
            sorted(i for batches in per_rank for batch in batches[start : start + micro] for i in batch)
            for start in range(0, len(samplers[0]), micro)
        ]

    first = dealt(micro, world, 0)
    assert first == dealt(1, 1, 0)
    assert first != dealt(1, 1, 1)
    assert sorted(map(tuple, first)) == sorted(map(tuple, dealt(1, 1, 1)))
    for update in first:
        assert sum(lengths[i] for i in update) <= 64.0
    used = [i for update in first for i in update]
    assert len(used) == len(set(used))
    assert sum(lengths) - sum(lengths[i] for i in used) <= 64.0
