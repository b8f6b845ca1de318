"""Whole runs on a shadow of a GPU: nothing mixes devices, and the program waits for the device once an update.

Each in a fork: after one of them, transformers draws other numbers for weights that it does not load.
"""

from __future__ import annotations

from collections import Counter

import pytest
import soundfile
from accelerate.state import AcceleratorState
from conftest import make_waveform
from shadow_device import shadow_device
from training_runs import NO_DROPOUT, arguments, in_a_fork, losses, start
from transformers import TrainerCallback
from transformers.models.hubert.modeling_hubert import HubertFeedForward

from laser_hf.training import LaserTrainer, parse_options, run_training

SPIN = ("--seconds_per_update", "3", "--per_device_train_seconds", "1.5", "--codes", "8")
OBJECTIVES = {
    "laser": ("--objective", "laser"),
    "released": ("--objective", "laser", "--released", "true"),
    "soft_dtw": ("--objective", "soft_dtw"),
    "score": ("--objective", "score"),
    "spin": (*SPIN, "--objective", "spin", "--perturbations", "noise", "equalizer"),
    "mse_idm": ("--objective", "mse_idm", "--perturbations", "noise", "equalizer"),
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", make_waveform(0.4, seed=90 + index), 16_000)
    return folder


class WaitsOfUpdates(TrainerCallback):
    """What the program waits for, from the end of an update to the end of the next one."""

    def __init__(self, device):
        self.device, self.found = device, {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.found[state.global_step] = Counter(self.device.waits)
        self.device.waits.clear()

    def on_log(self, args, state, control, **kwargs):
        self.found[f"log {state.global_step}"] = Counter(self.device.waits)
        self.device.waits.clear()

    def on_save(self, args, state, control, **kwargs):
        self.device.waits.clear()

    on_evaluate = on_save


def run(monkeypatch, device, argv):
    """Run on the shadow device; returns the record and the waits of each update."""
    AcceleratorState._reset_state(reset_partial_state=True)
    counted = WaitsOfUpdates(device)
    started = LaserTrainer.train

    def train(self, *args, **kwargs):
        self.add_callback(counted)
        return started(self, *args, **kwargs)

    monkeypatch.setattr(LaserTrainer, "train", train)
    argv = [word for word in argv if word != "--use_cpu"]
    return run_training(parse_options(argv)), counted.found


def short_run(monkeypatch, folder, encoder, speech, noise, objective, *extra):
    """Three updates of two micro-batches, an evaluation and a checkpoint."""
    argv = (
        *OBJECTIVES[objective], "--pairs_per_update", "4", "--max_steps", "3",
        "--per_device_train_batch_size", "2", "--eval_data", str(speech), "--max_eval_samples", "3",
        "--eval_steps", "3", "--save_steps", "3", "--logging_steps", "3", *extra,
    )  # fmt: skip
    if "noise" in argv:
        argv += ("--noise_dir", str(noise))
    try:
        with shadow_device(monkeypatch) as device:
            return *run(monkeypatch, device, arguments(encoder, speech, folder, *argv)), device
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def check_waits(waits):
    # The views of the first update are waited for; from then on they are made while the update before is computed.
    for step in (2, 3):
        assert sum(waits[step].values()) == 1, waits[step]
        assert "updates.py" in next(iter(waits[step]))
    assert sum(waits["log 1"].values()) <= 4, waits["log 1"]


# Every objective at every place and in every precision, and every place in every precision.
CASES = [
    (objective, where, precision)
    for number, objective in enumerate(OBJECTIVES)
    for where, precision in zip(("worker", "device"), ("fp32", "bf16") if number % 2 else ("bf16", "fp32"), strict=True)
]


@pytest.mark.slow  # a run each
@pytest.mark.parametrize(("objective", "where", "precision"), CASES)
@in_a_fork
def test_an_update_waits_once(monkeypatch, tmp_path, tiny_encoder, small_tree, noise, objective, where, precision):
    extra = ("--perturb_on", where, "--bf16", str(precision == "bf16"))
    record, waits, _ = short_run(monkeypatch, tmp_path, tiny_encoder, small_tree, noise, objective, *extra)
    assert (record["updates"], record["precision"], record["perturbed_on"]) == (3, precision, where)
    check_waits(waits)


@pytest.mark.slow
@in_a_fork
def test_on_a_gpu_views_are_made_there_and_the_run_is_that_of_the_cpu(
    monkeypatch, tmp_path, tiny_encoder, small_tree, noise
):
    """Without dropout, whose random numbers differ: the same losses, by the same arithmetic."""
    common = ("laser", *NO_DROPOUT)
    record, waits, device = short_run(monkeypatch, tmp_path / "gpu", tiny_encoder, small_tree, noise, *common)
    assert record["perturbed_on"] == "device"
    check_waits(waits)
    assert {name for name, _ in device.launches} == {"skew", "sweep", "collect"}
    monkeypatch.undo()
    argv = ("--max_steps", "3", "--pairs_per_update", "4", "--per_device_train_batch_size", "2", "--logging_steps", "3")
    record, by_step, _ = start(tiny_encoder, small_tree, tmp_path / "cpu", *NO_DROPOUT, *argv)
    assert record["perturbed_on"] == "worker"
    assert losses(tmp_path / "gpu") == pytest.approx(by_step, rel=1e-4)


@pytest.mark.slow
@in_a_fork
def test_with_activation_checkpointing_trained_layers_are_computed_twice(
    monkeypatch, tmp_path, tiny_encoder, small_tree, noise
):
    """By the option, through the Trainer: the same losses, and still one wait an update."""
    forward, computed = HubertFeedForward.forward, []
    for checkpointing in ("false", "true"):
        extra = (*NO_DROPOUT, "--eval_data", "", "--gradient_checkpointing", checkpointing)
        with monkeypatch.context() as patch:
            calls = []
            patch.setattr(HubertFeedForward, "forward", lambda *given, calls=calls: calls.append(1) or forward(*given))
            _, waits, _ = short_run(patch, tmp_path / checkpointing, tiny_encoder, small_tree, noise, "laser", *extra)
        check_waits(waits)
        computed.append(len(calls))
    assert computed[1] - computed[0] == 3 * 2 * 2  # updates, micro-batches, trained layers
    assert losses(tmp_path / "true") == losses(tmp_path / "false")


@pytest.mark.slow
@in_a_fork
def test_voice_stays_in_the_worker(monkeypatch, tmp_path, tiny_encoder, small_tree, noise):
    pytest.importorskip("parselmouth")
    extra = ("--perturbations", "voice", "noise", "--max_steps", "1", "--eval_data", "")
    record, *_ = short_run(monkeypatch, tmp_path, tiny_encoder, small_tree, noise, "mse_idm", *extra)
    assert record["perturbed_on"] == "worker"
