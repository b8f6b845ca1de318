"""Records are valid JSON, written whole, and say where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import laser_hf
from laser_hf.records import located, portable, provenance, read_json, write_json


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
