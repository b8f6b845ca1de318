"""A scheduler's signals: the update ends, a checkpoint is saved, and the same command ends as without them."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training_runs import arguments, assert_same_weights, fork_two, history, kill_in_step_4, start, train

from laser_hf.cli import Stopped
from laser_hf.data import PairDataset, PairTransform, SpeedPitch, load_speech
from laser_hf.errors import LaserError
from laser_hf.records import TRAINING_RECORD
from laser_hf.runs import find_fault
from laser_hf.training import LaserTrainer, speech
from laser_hf.training.callbacks import outlive_signals

# One line of the log is a mean over updates 2 to 4, with the stop between them.
LOGGED = ("--logging_steps", "4", "--save_steps", "8", "--save_total_limit", "3")


def signalled(number: int, step: int, rank: str = "0"):
    """`training_step` that sends this process a signal in update `step + 1`."""
    original = LaserTrainer.training_step

    def training_step(self, *given, **named):
        if self.state.global_step == step and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), number)
        return original(self, *given, **named)

    return training_step


def lines(folder) -> list[dict]:
    """The log without times."""
    timed = ("runtime", "per_second", "total_flos", "train_loss")
    return [{key: value for key, value in line.items() if not any(t in key for t in timed)} for line in history(folder)]


@pytest.fixture(scope="module")
def whole(tiny_encoder, small_tree, tmp_path_factory):
    """An undisturbed run: record, log and weights."""
    output = tmp_path_factory.mktemp("whole")
    record, _, weights = start(tiny_encoder, small_tree, output, *LOGGED)
    return record, lines(output), weights


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_update_and_the_run_goes_on(number, whole, tiny_encoder, small_tree, tmp_path, monkeypatch):
    before = signal.getsignal(number)
    expected, log, weights = whole
    with monkeypatch.context() as patched:
        patched.setattr(LaserTrainer, "training_step", signalled(number, 2))
        with pytest.raises(Stopped, match=f"stopped after update 3 by {number.name}"):
            start(tiny_encoder, small_tree, tmp_path / "out", *LOGGED)
    assert signal.getsignal(number) is before
    assert find_fault(tmp_path / "out" / "checkpoint-3") is None
    assert not (tmp_path / "out" / TRAINING_RECORD).exists()
    record, _, found = start(tiny_encoder, small_tree, tmp_path / "out", *LOGGED)
    assert_same_weights(found, weights)
    assert lines(tmp_path / "out") == log
    for name in ("updates", "processed_hours", "data", "recipe"):
        assert record[name] == expected[name]


def test_a_signal_in_the_last_update_changes_nothing(tiny_encoder, small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(LaserTrainer, "training_step", signalled(signal.SIGTERM, 3))
    record, _, _ = start(tiny_encoder, small_tree, tmp_path, *LOGGED)
    assert record["updates"] == 4


def stopped_at_3(argv):
    LaserTrainer.training_step = signalled(signal.SIGUSR1, 2, rank="1")  # in a fork of its own
    try:
        train(argv)
    except Stopped as stop:
        raise LaserError(str(stop)) from stop


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(tiny_encoder, small_tree, tmp_path):
    """Three pairs of gloo processes."""
    undisturbed, out = (arguments(tiny_encoder, small_tree, tmp_path / name, *LOGGED) for name in ("whole", "out"))
    assert fork_two(undisturbed) == ["", ""]
    stopped = [f"stopped after update 3 by {who}" for who in ("another process", "SIGUSR1")]
    assert fork_two(out, main=stopped_at_3) == stopped
    assert fork_two(out) == ["", ""]
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole")]
    assert_same_weights(*weights)


def test_data_workers_outlive_a_signal_to_the_whole_job():
    loader = torch.utils.data.DataLoader(list(range(50)), num_workers=1, worker_init_fn=outlive_signals)
    found = iter(loader)
    assert next(found) == 0
    (worker,) = found._workers
    for name in ("TERM", "USR1", "TERM"):  # from a scheduler, which is another process than the worker's parent
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert [int(one) for one in found] == list(range(1, 50))


def test_a_data_worker_ends_when_its_parent_says_so():
    """A process that ends with an error waits for its workers, whose end it asks for."""
    loader = torch.utils.data.DataLoader(list(range(50)), num_workers=1, worker_init_fn=outlive_signals)
    found = iter(loader)
    next(found)
    (worker,) = found._workers
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


# ---- what the processes and workers have in common ----


@pytest.mark.slow
def test_the_readers_of_a_stream_belong_to_its_recipe(tiny_encoder, small_tree, tmp_path, monkeypatch):
    stream = ("--streaming", "true", "--shuffle_buffer", "10")
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path, *stream)
    monkeypatch.undo()
    with pytest.raises(LaserError, match=r"another recipe .--dataloader_num_workers 1 -> 2"):
        start(tiny_encoder, small_tree, tmp_path, *stream, "--dataloader_num_workers", "2")
    record, _, _ = start(tiny_encoder, small_tree, tmp_path, *stream, "--dataloader_num_workers", "1")  # as without
    assert record["recipe"]["stream"] == {"dataloader_num_workers": 1, "num_processes": 1}


def test_all_machines_have_the_same_speech(small_tree, monkeypatch):
    train = PairDataset(load_speech(small_tree), PairTransform(SpeedPitch()))
    monkeypatch.setattr(SpeedPitch, "content", lambda self: {"noise_dir": "a digest"})
    options = SimpleNamespace(data=None, training=SimpleNamespace(local_process_index=0))
    own = {"train_data": train.fingerprint(), "noise_dir": "a digest"}
    for others, wrong in (
        ([{}], None),
        ([{}, own], None),
        ([{}, own | {"train_data": "other"}, {}], "train_data"),
        ([{}, own | {"noise_dir": "other"}], "noise_dir"),
    ):
        monkeypatch.setattr(speech, "from_all_processes", lambda first, others=others: [first, *others])
        if wrong is None:
            assert speech.same_speech(options, train) == {"content": own}
        else:
            with pytest.raises(LaserError, match=f"--{wrong} holds other files for process 2 than for the first"):
                speech.same_speech(options, train)
