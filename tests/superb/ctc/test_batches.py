"""SUPERB's two batch rules by brute force, and how updates are dealt out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from laser_hf.errors import LaserError
from laser_hf.superb.ctc.data import UpdateSampler
from laser_hf.superb.ctc.tasks import Asr, AsrRecipe, Lexicon, Pr, PrRecipe


def length_buckets(samples, size, halve_above):
    return Asr().groups(samples, [], AsrRecipe(batch_size=size // 2, halve_above_samples=halve_above))


def target_windows(labels, samples, size, halve_above):
    return Pr(Lexicon({}, {})).groups(samples, labels, PrRecipe(batch_size=size, halve_above_samples=halve_above))


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("halve_above", [0, 50, 10**9])
def test_length_buckets_by_hand(count, halve_above):
    random.seed(count)
    samples = [random.randint(1, 100) for _ in range(count)]
    # As S3PRL fills its buckets: one utterance after the other.
    order = [i for _, i in sorted(((-length, i) for i, length in enumerate(samples)))]
    expected, bucket = [], []
    for index in order:
        bucket.append(index)
        if len(bucket) == 8:
            longest = max(samples[i] for i in bucket)
            expected += [bucket[:4], bucket[4:]] if longest > halve_above else [bucket]
            bucket = []
    if len(bucket) > 1:
        expected.append(bucket)
    assert length_buckets(samples, 8, halve_above) == expected


def test_superbs_batches_of_train_clean_100():
    """28,539 utterances, all longer than 2,000 samples: 1,782 batches of 16, and one of 27."""
    groups = length_buckets(range(30_000, 30_000 + 28_539), 32, 2_000)
    assert Counter(map(len, groups)) == {16: 1782, 27: 1}
    assert len(groups[-1]) == 27
    assert sorted(index for group in groups for index in group) == list(range(28_539))


def test_target_windows_by_hand():
    random.seed(0)
    labels = [random.randint(1, 20) for _ in range(40)]
    samples = [random.randint(1_000, 400_000) for _ in range(40)]
    by_target = sorted(range(40), key=lambda i: (-labels[i], i))
    windows = target_windows(labels, samples, 16, 300_000)
    assert len(windows) == 40
    for item, window in enumerate(windows):
        start = min(40 - 16, item)
        expected = by_target[start : start + 16]
        if samples[expected[0]] > 300_000:
            expected = expected[:8]
        assert sorted(window) == sorted(expected)
        assert [samples[i] for i in window] == sorted((samples[i] for i in window), reverse=True)
    assert {len(window) for window in windows} == {8, 16}


def test_windows_are_halved_beyond_the_limit_and_not_at_it():
    for first, size in ((300_000, 4), (300_001, 2)):
        assert len(target_windows([4, 3, 2, 1], [first, 1, 2, 3], 4, 300_000)[0]) == size


def test_windows_of_fewer_utterances_than_a_batch():
    assert target_windows([3, 1, 2], [10, 20, 30], 16, 300_000) == [[2, 1, 0]] * 3


def flat(sampler):
    return [[index for index, _ in share] for share in sampler]


def test_every_round_has_all_groups_in_a_new_order():
    groups = [[i, i + 100] for i in range(7)]
    batches = flat(UpdateSampler(groups, updates=21, seed=3))
    rounds = [batches[i : i + 7] for i in (0, 7, 14)]
    for each in rounds:
        assert sorted(each) == groups
    assert rounds[0] != rounds[1] != rounds[2]
    assert batches == flat(UpdateSampler(groups, updates=21, seed=3))
    assert batches != flat(UpdateSampler(groups, updates=21, seed=4))
    assert batches[:5] == flat(UpdateSampler(groups, updates=5, seed=3))


def test_accumulation_runs_on_over_the_end_of_a_round():
    groups = [[i] for i in range(5)]
    sampler = UpdateSampler(groups, updates=5, groups_per_update=2)
    batches = flat(sampler)
    assert len(batches) == len(sampler) == 10
    assert sampler.micro_batches == 2
    assert sorted(batches[:5]) == sorted(batches[5:]) == groups
    assert all(weight == 0.5 for share in sampler for _, weight in share)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 3, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_of_an_update_add_up(micro_batch_size, world_size):
    groups = [list(range(16)), list(range(16, 24)), list(range(24, 51)), [60, 61]]
    samplers = [UpdateSampler(groups, 4, 2, micro_batch_size, world_size, rank, seed=1) for rank in range(world_size)]
    whole = UpdateSampler(groups, 4, 2, seed=1)
    steps = whole.micro_batches
    shares = list(whole)
    wanted = [[p for share in shares[u * steps : (u + 1) * steps] for p in share] for u in range(4)]
    parts = [list(sampler) for sampler in samplers]
    steps = samplers[0].micro_batches
    assert all(len(part) == 4 * steps == len(samplers[0]) for part in parts)
    for update in range(4):
        got = [pair for part in parts for share in part[update * steps : (update + 1) * steps] for pair in share]
        assert sorted(got) == sorted(wanted[update])
        assert sum(weight for _, weight in got) == pytest.approx(1)
    if micro_batch_size:
        assert max(len(share) for part in parts for share in part) <= micro_batch_size


def test_nothing_to_train_on():
    with pytest.raises(LaserError, match="at least two usable utterances"):
        UpdateSampler([], 1)
