"""Which waveform is in which row of the model's input."""

from __future__ import annotations

import torch

from laser_hf.data import PairCollator
from laser_hf.training.views import drawn_sides, stack_views


def batch():
    lengths = {"a": (5, 7), "b": (6, 4), "c": (3, 3)}
    pairs = [
        {"id": name, "clean": torch.arange(1.0, m + 1), "perturbed": -torch.arange(1.0, n + 1), "drawn": {}, "skip": ""}
        for name, (m, n) in lengths.items()
    ]
    return PairCollator()(pairs)


def test_rows_and_their_lengths():
    waveforms, lengths = stack_views(batch())
    assert waveforms.shape == (6, 7)
    assert lengths.tolist() == [5, 6, 3, 7, 4, 3]
    for row, (length, sign) in enumerate(zip(lengths.tolist(), (1, 1, 1, -1, -1, -1), strict=True)):
        assert waveforms[row].tolist() == [sign * (i + 1) for i in range(length)] + [0] * (7 - length)


def test_swapped_pairs_change_sides_and_no_other():
    straight, lengths = stack_views(batch())
    swapped, swapped_lengths = stack_views(batch(), torch.tensor([True, False, True]))
    order = [3, 1, 5, 0, 4, 2]
    assert torch.equal(swapped, straight[order])
    assert torch.equal(swapped_lengths, lengths[order])


def test_sides_are_drawn_by_seed_update_and_utterance_alone():
    names = [f"utterance-{i}" for i in range(400)]
    sides = drawn_sides(1, 5, names)
    assert torch.equal(drawn_sides(1, 5, names[::-1]), sides.flip(0))
    assert 0.4 < sides.float().mean() < 0.6
    for other in (drawn_sides(2, 5, names), drawn_sides(1, 6, names)):
        assert 0.4 < (other == sides).float().mean() < 0.6  # as independent draws agree
