"""Whole runs on a shadow of a GPU: nothing mixes devices, and the program waits for the device once an update."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from conftest import make_waveform
from shadow_device import shadow_device
from training_runs import arguments
from transformers import TrainerCallback

from laser_hf.training import LaserTrainer, parse_options, run_training

SPIN = ("--seconds_per_update", "3", "--per_device_train_seconds", "1.5", "--codes", "8")
OBJECTIVES = {
    "laser": (),
    "soft_dtw": (),
    "score": (),
    "spin": (*SPIN, "--perturbations", "noise", "equalizer"),
    "mse_idm": ("--perturbations", "noise", "equalizer"),
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("where", ["worker", "device"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_update_waits_once(monkeypatch, tmp_path, tiny_encoder, small_tree, noise, objective, where, precision):
    extra = (
        "--objective", objective, *OBJECTIVES[objective], "--perturb_on", where, "--bf16", str(precision == "bf16"),
        "--pairs_per_update", "4", "--per_device_train_batch_size", "2", "--eval_data", str(small_tree),
        "--max_eval_samples", "3", "--eval_steps", "4", "--save_steps", "4", "--logging_steps", "4",
    )  # fmt: skip
    if "noise" in extra:
        extra += ("--noise_dir", str(noise))
    try:
        with shadow_device(monkeypatch) as device:
            record, waits = run(monkeypatch, device, arguments(tiny_encoder, small_tree, tmp_path, *extra))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert record["updates"] == 4
    assert record["precision"] == precision
    print("WAITS", json.dumps({str(k): v for k, v in waits.items()}))
    assert sum(waits[3].values()) <= 1, waits[3]
