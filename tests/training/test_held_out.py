"""Held-out means against sums by hand."""

from __future__ import annotations

import pytest
import torch

from laser_hf.ops.statistics import effective_rank, mean_pairwise_cosine
from laser_hf.training.held_out import HeldOutMeans

CPU = torch.device("cpu")


def test_means_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    terms = {"total": torch.rand(6), "soft_dtw": torch.rand(6)}
    frames = torch.nn.functional.normalize(torch.randn(6, 9, 4), dim=-1)
    lengths = torch.tensor([9, 4, 7, 9, 1, 5])
    used = torch.cat([rows[:length] for rows, length in zip(frames, lengths, strict=True)])
    for cuts in ([6], [2, 4], [1, 1, 3, 1]):
        means, start = HeldOutMeans(("total", "soft_dtw"), 4), 0
        for size in cuts:
            part = slice(start, start + size)
            means.add({name: term[part] for name, term in terms.items()}, size, frames[part], lengths[part])
            start += size
        found = means.gather(lambda value: value, CPU, 1)
        assert found["loss"] == pytest.approx(float(terms["total"].mean()))
        assert found["soft_dtw"] == pytest.approx(float(terms["soft_dtw"].mean()))
        assert found["frame_cosine"] == pytest.approx(mean_pairwise_cosine(used), abs=1e-6)
        assert found["effective_rank"] == pytest.approx(effective_rank(used), rel=1e-5)


def test_sums_of_other_processes_count():
    means = HeldOutMeans(("total",), 4)
    means.add({"total": torch.tensor([1.0, 2.0])}, 2, torch.randn(2, 3, 4), torch.tensor([3, 2]))
    found = means.gather(lambda value: value + torch.tensor([9.0, 2.0]), CPU, 1)  # two pairs more, 9 in sum
    assert found["loss"] == pytest.approx(3.0)


def test_nothing_that_can_be_used():
    with pytest.raises(ValueError, match="none of the held-out utterances could be used"):
        HeldOutMeans(("total",), 4).gather(lambda value: value, CPU, 1)
