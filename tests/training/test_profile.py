"""The parts of an update add up, what overlaps is said to, and warm-up stays out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from laser_hf.training import profile as profile_module
from laser_hf.training.profile import PARTS, WARM_UP, UpdateProfile, profile_table


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profile_module, "time", clock)
    return clock


def updates(profile, clock, count, slow=1.0):
    """Updates of 1 s waiting, 2 encoding, 0.5 loss, 3 backward, 0.25 optimiser and 0.25 of other things."""
    for _ in range(count):
        profile.begin()
        with profile.section("wait"):
            clock.spend(1.0 * slow)
        profile.add_batch({"seconds": {"decode": 0.25 * slow, "perturb": 0.5 * slow}})
        clock.spend(0.25 * slow)
        for part, seconds in (("encode", 2.0), ("loss", 0.5), ("backward", 3.0)):
            profile.start(part)
            clock.spend(seconds * slow)
            profile.stop(part)
        profile.start("optimizer")
        clock.spend(0.25 * slow)
        profile.on_step_end(None, None, None)
        clock.spend(100.0)  # logging, evaluation, a checkpoint


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_and_overlap(clock, workers):
    profile = UpdateProfile(2, torch.device("cpu"))
    profile.workers = workers
    updates(profile, clock, WARM_UP, slow=50.0)
    updates(profile, clock, 2)
    updates(profile, clock, 3, slow=9.0)
    record = profile.record()
    assert record["updates"] == 2
    assert record["seconds_per_update"] == pytest.approx(7.0)
    seconds = {
        "decode": 0.25, "perturb": 0.5, "encode": 2.0, "loss": 0.5, "backward": 3.0, "optimizer": 0.25,
        "wait": 1.0 if workers else 0.25, "other": 0.25,
    }  # fmt: skip
    assert list(record["seconds"]) == list(PARTS)
    assert record["seconds"] == pytest.approx(seconds)
    assert record["shares"] == pytest.approx({part: value / 7 for part, value in seconds.items()})
    assert record["overlapped"] == (["decode", "perturb"] if workers else [])
    assert sum(share for part, share in record["shares"].items() if part not in record["overlapped"]) == (
        pytest.approx(1.0)
    )
    table = profile_table(record)
    assert ("beside the rest" in table) == bool(workers)
    assert "7000.0" in table


def test_perturbing_on_the_device_is_wall_time(clock):
    profile = UpdateProfile(1, torch.device("cpu"))
    profile.workers = 2
    profile._seen = WARM_UP
    profile.begin()
    profile.add_batch({"seconds": {"decode": 9.0, "perturb": 0.0}})
    with profile.section("perturb"):
        clock.spend(1.0)
    clock.spend(3.0)
    profile.on_step_end(None, None, None)
    record = profile.record()
    assert record["overlapped"] == ["decode"]
    assert record["shares"]["perturb"] == pytest.approx(0.25)
    assert record["shares"]["other"] == pytest.approx(0.75)
    assert record["shares"]["decode"] == pytest.approx(2.25)  # cores of the workers


def test_a_run_too_short_to_profile_says_so(clock, tmp_path, caplog):
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(is_world_process_zero=True)
    profile = UpdateProfile(5, torch.device("cpu"))
    updates(profile, clock, WARM_UP)
    profile.on_train_end(args, state, None)
    assert "warm-up" in caplog.text
    assert not list(tmp_path.iterdir())
    updates(profile, clock, 1)
    args.bf16, args.fp16 = True, False
    profile.on_train_end(args, state, None)
    record = json.loads((tmp_path / "profile.json").read_text())
    assert record["updates"] == 1
    assert record["precision"] == "bf16"
    assert record["hardware"]["cores"]
