"""SpecAugment: ranges and frequencies of what is drawn, and what it does to features."""

from __future__ import annotations

import pytest
import torch

from laser_hf.superb.ctc.heads import SpecAugment, draw_mask, time_warp
from laser_hf.superb.ctc.tasks import ASR


def test_widths_and_starts_of_masks():
    torch.manual_seed(0)
    batch, size, width = 4000, 100, 30
    mask = draw_mask(batch, size, 1, width)
    widths = mask.sum(1)
    counts = torch.bincount(widths, minlength=width + 1)
    assert widths.max() == width - 1  # the upper end is exclusive
    assert counts[0] > 0  # a mask may be empty
    expected = batch / width
    assert ((counts[:width] - expected).abs() < 5 * expected**0.5).all()
    used = widths > 0
    starts = mask[used].float().argmax(1)
    # Starts are bounded by the widest mask of the batch, so every mask fits.
    assert starts.max() == size - (width - 1) - 1
    assert starts.min() == 0
    assert abs(starts.float().mean() - (size - width) / 2) < 2


def test_masks_wider_than_the_utterance():
    torch.manual_seed(0)
    mask = draw_mask(50, 10, 2, 40)
    assert mask.all(1).any()  # start 0, whole utterance
    assert mask.shape == (50, 10)


def test_share_of_masked_values_of_superbs_recipe():
    """Four masks of 0 to 49 of 768 dimensions: about (1 - the chance to be missed by all four)."""
    torch.manual_seed(0)
    recipe = ASR["superb"]
    augment = SpecAugment(0, recipe.feature_masks, recipe.feature_mask_width, 0, 0)
    shares = [(augment(torch.ones(16, 3, 768), torch.full((16,), 3)) == 0).float().mean() for _ in range(60)]
    assert torch.stack(shares).mean() == pytest.approx(4 * 24.5 / 768, abs=0.01)


def test_defaults_are_superbs():
    recipe = ASR["superb"]
    assert SpecAugment() == SpecAugment(
        recipe.warp_window,
        recipe.feature_masks,
        recipe.feature_mask_width,
        recipe.time_masks,
        recipe.time_mask_width,
    )
    assert SpecAugment() == SpecAugment(5, 4, 50, 2, 40)


def test_short_utterances_are_not_warped():
    frames = torch.randn(10, 3)
    assert time_warp(frames, 5) is frames
    assert not torch.equal(time_warp(torch.randn(11, 3), 5), torch.zeros(11, 3))


def test_where_the_centre_goes(monkeypatch):
    """A ramp shows it: the value at the new place is the old centre. Its range is that of S3PRL."""
    torch.manual_seed(0)
    ramp = torch.arange(40.0)[:, None].expand(40, 2)
    drawn = []
    real = torch.randint

    def spy(low, high, size):
        drawn.append((low, high, int(real(low, high, size))))
        return torch.tensor(drawn[-1][2])

    monkeypatch.setattr(torch, "randint", spy)
    moves = set()
    for _ in range(400):
        warped = time_warp(ramp, 5)
        (low, high, centre), (left, right, place) = drawn[-2:]
        assert (low, high) == (5, 35)  # {5, ..., T - 6}
        assert (left, right) == (centre - 5, centre + 5)
        moves.add(place + 1 - centre)
        assert warped.shape == ramp.shape
        # Bicubic halves meet between the last frame before the centre and the centre.
        assert warped[place, 0] <= centre + 0.5
        assert warped[min(place + 1, 39), 0] >= centre - 0.5
    assert moves == set(range(-4, 6))


def test_warping_is_bicubic_in_time_only():
    torch.manual_seed(3)
    frames = torch.randn(30, 4, dtype=torch.float64)
    torch.manual_seed(7)
    together = time_warp(frames, 5)
    for dimension in range(4):
        torch.manual_seed(7)
        torch.testing.assert_close(time_warp(frames[:, dimension : dimension + 1], 5)[:, 0], together[:, dimension])


def test_a_batch_is_warped_utterance_by_utterance():
    features = torch.randn(2, 40, 6)
    features[1, 25:] = 0
    lengths = torch.tensor([40, 25])
    torch.manual_seed(0)
    batch = SpecAugment(5, 0, 50, 0, 40)(features, lengths)
    torch.manual_seed(0)
    alone = [time_warp(features[0], 5), time_warp(features[1, :25], 5)]
    assert torch.equal(batch[0], alone[0])
    assert torch.equal(batch[1, :25], alone[1])
    assert (batch[1, 25:] == 0).all()


def test_gradients_reach_what_is_not_masked():
    torch.manual_seed(0)
    features = torch.randn(2, 60, 30, requires_grad=True)
    augmented = SpecAugment(0, 1, 10, 1, 20)(features, torch.tensor([60, 50]))
    gradient = torch.autograd.grad(augmented.sum(), features)[0]
    assert torch.equal(gradient == 1, augmented != 0)
    assert 0 < (gradient == 0).float().mean() < 0.7


def test_a_seed_gives_the_same_masks():
    features, lengths = torch.randn(3, 50, 60), torch.tensor([50, 40, 30])
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(SpecAugment()(features, lengths))
    assert torch.equal(*draws)
