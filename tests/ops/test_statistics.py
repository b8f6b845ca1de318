"""Collapse statistics against closed forms."""

from __future__ import annotations

import pytest
import torch

from laser_hf.ops.statistics import effective_rank, mean_pairwise_cosine


def test_cosine_is_the_mean_over_pairs():
    torch.manual_seed(0)
    frames = torch.randn(9, 4) + 1.0
    unit = torch.nn.functional.normalize(frames.double(), dim=1)
    expected = torch.stack([unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j]).mean()
    assert mean_pairwise_cosine(frames) == pytest.approx(expected.item())
    assert mean_pairwise_cosine(torch.ones(5, 3)) == pytest.approx(1.0)


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.cat((torch.eye(6), -torch.eye(6)))) == pytest.approx(6.0)
    line = torch.linspace(-1, 1, 20)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-5)
    assert effective_rank(torch.ones(8, 3)) == 1.0
