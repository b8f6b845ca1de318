"""The collapse monitor and the frames it looks at."""

from __future__ import annotations

import torch

from laser_hf.training.monitor import CollapseMonitor, pick_frames


def test_picked_frames_are_valid_ones():
    frames = torch.arange(2 * 50 * 1).reshape(2, 50, 1).float()
    picked = pick_frames(frames, torch.tensor([50, 3]), 20)
    assert picked.shape == (20, 1)
    assert picked.max() <= 52
    assert len(pick_frames(frames, torch.tensor([4, 3]), 20)) == 7


def test_monitor_fires_and_remembers():
    monitor = CollapseMonitor(0.5, 0.5)
    assert not monitor.check(0, 0.2, 100.0)
    assert not monitor.check(10, 0.59, 51.0)
    assert monitor.check(20, 0.61, 60.0)
    assert "cosine 0.610 (started at 0.200, limit 0.600)" in monitor.reason
    assert monitor.check(30, 0.2, 49.0)
    assert "rank" in monitor.reason
    assert monitor.fired_at == 20


def test_a_start_with_frames_alike_is_no_alarm():
    monitor = CollapseMonitor(0.5, 0.5)
    assert not monitor.check(0, 0.9, 100.0)
    assert not monitor.check(1, 0.94, 90.0)
    assert monitor.check(2, 0.96, 90.0)
