"""An objective and a perturbation from a module of one's own: trained, recorded, resumed."""

from __future__ import annotations

import sys

import pytest
from safetensors.torch import load_file
from training_runs import kill_in_step_4, start

MODULE = '''
import torch
from torch import nn

from laser_hf.data import Perturbation
from laser_hf.objectives import Objective
from laser_hf.plugins import Option


class Pull(Objective):
    """Mean frames of both views meet, through weights of its own."""

    name, title, summary = "pull", "Pull", "Pulls mean frames together."
    options = (Option("weight", 1.0, "of the distance", above=0),)
    term_labels = {"total": "total loss", "gap": "distance of mean frames"}

    @classmethod
    def build(cls, dim, **values):
        objective = cls(**cls.checked(values))
        objective.scale = nn.Linear(dim, dim, bias=False)
        return objective

    def terms(self, x, m, y, n):
        mean_x, mean_y = (
            (v * (torch.arange(v.shape[1]) < k.unsqueeze(1)).unsqueeze(2)).sum(1) / k.unsqueeze(1)
            for v, k in ((x, m), (y, n))
        )
        gap = self.scale(mean_x - mean_y).square().sum(1)
        return {"total": self.weight * gap, "gap": gap}


class Gain(Perturbation):
    """Louder or softer."""

    name, title, summary = "gain", "Gain", "Plays the utterance louder or softer."
    options = (Option("decibels", [-6.0, 6.0], "gains, one drawn per pair", many=True),)
    keeps_duration, changes, batched = True, ("loudness",), True

    def __init__(self, decibels=(-6.0, 6.0)):
        self.decibels = tuple(decibels)

    def draw(self, rng):
        return {"gain": self.decibels[int(rng.integers(len(self.decibels)))]}

    def apply(self, waveform, *, gain):
        return waveform * 10 ** (gain / 20)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Options that name the classes of a module in a folder on the path."""
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "my_methods.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "module")
    yield (
        "--objective", "my_methods:Pull", "--objective_options", "weight=2", "--perturbations", "speed_pitch",
        "my_methods:Gain", "--perturbation_options", "decibels=-3,3", "--perturb_on", "device",
    )  # fmt: skip
    sys.modules.pop("my_methods", None)


@pytest.mark.slow
def test_own_objective_and_perturbation_train_and_are_recorded(own, tiny_encoder, small_tree, tmp_path, monkeypatch):
    record, by_step, weights = start(tiny_encoder, small_tree, tmp_path / "straight", *own)
    assert record["method"] == "my_methods:Pull"
    assert record["recipe"]["objective"] == {"name": "my_methods:Pull", "weight": 2.0}
    perturbations = record["recipe"]["perturbations"]
    assert perturbations["name"] == ["speed_pitch", "my_methods:Gain"]
    assert perturbations["decibels"] == [-3.0, 3.0]
    assert record["last"]["loss"]["value"] == pytest.approx(2 * record["last"]["gap"]["value"], rel=1e-5)
    # Its own weights are trained and kept in checkpoints.
    saved = [load_file(tmp_path / "straight" / f"checkpoint-{n}" / "model.safetensors") for n in (2, 4)]
    assert (saved[0]["objective.scale.weight"] != saved[1]["objective.scale.weight"]).any()
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path / "killed", *own)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path / "module")
    _, resumed, resumed_weights = start(tiny_encoder, small_tree, tmp_path / "killed", *own)
    assert resumed == by_step
    assert all((resumed_weights[name] == weights[name]).all() for name in weights)
