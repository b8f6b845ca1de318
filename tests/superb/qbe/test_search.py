"""Searching on stored frames: the statistics, and blocks that change no score."""

import numpy as np
import pytest
import torch

from laser_hf.errors import LaserError
from laser_hf.superb.frame_store import FrameStore
from laser_hf.superb.qbe import search as module
from laser_hf.superb.qbe.search import search, statistics


def stored(folder, lengths, layers=(1,), dim=6):
    torch.manual_seed(0)
    store = FrameStore(folder, layers, dim)
    frames = [torch.randn(length, dim) * 4 + 200 for length in lengths]
    store.add(list(range(len(lengths))), [frames for _ in layers], [])
    return store, frames


def test_statistics_are_over_all_frames_asked_for(tmp_path):
    store, frames = stored(tmp_path, (1, 5, 9))
    mean, deviation = statistics(store, 1, [2, 0])
    asked = torch.cat([frames[2], frames[0]]).double()
    np.testing.assert_allclose(mean, asked.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, asked.std(0), rtol=1e-12)
    assert (statistics(store, 1, [0])[1] == 1e-9).all()


def test_blocks_do_not_change_scores(tmp_path, monkeypatch):
    store, _ = stored(tmp_path, (12, 30, 4, 25, 40, 9, 33, 18))
    queries, documents = [0, 2, 5, 7], [1, 3, 4, 6]
    wide = search(store, 1, queries, documents, tmp_path / "wide.npy")
    monkeypatch.setattr(module, "BLOCK_DOCUMENTS", 1)
    monkeypatch.setattr(module, "BLOCK_QUERIES", 3)
    narrow = search(store, 1, queries, documents, tmp_path / "narrow.npy")
    np.testing.assert_allclose(narrow.scores, wide.scores, atol=1e-6)
    assert (wide.scores[1] == 0).all()  # four frames
    assert np.isfinite(wide.scores).all()


def test_what_was_skipped_has_no_score(tmp_path):
    store, _ = stored(tmp_path, (12, 30))
    store.add([], [[]], [(2, "silent", "nothing to hear"), (3, "empty", "no samples")])
    found = search(store, 1, [0, 2], [1, 3], tmp_path / "scores.npy").scores
    np.testing.assert_array_equal(np.isnan(found), [[False, True], [True, True]])
    with pytest.raises(LaserError, match="the first is silent: nothing to hear"):
        search(store, 1, [2], [1], tmp_path / "none.npy")
