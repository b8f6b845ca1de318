"""`laser-hf train --push_to_hub`, the push that its error names, and the published model.

`test_interoperability.py` loads what is published by its id where there is no laser_hf.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import make_model
from hub_server import Fault
from transformers import AutoFeatureExtractor, AutoModel

from laser_hf import cli
from laser_hf.errors import LaserError
from laser_hf.publishing import export, push, sample_features
from laser_hf.publishing.export import difference, load_frames
from laser_hf.training import parse_options, run_training

REPO = "org/demo-laser"


def refused_before_training(folder: Path, *options: str) -> str:
    """What `laser-hf train` says of a publication that would fail; nothing may have been trained."""
    argv = [
        "--preset",
        "demo",
        "--output_dir",
        str(folder),
        "--use_cpu",
        "--push_to_hub",
        "--hub_model_id",
        REPO,
        *options,
    ]
    with pytest.raises(LaserError) as caught:
        run_training(parse_options(argv))
    assert [path.name for path in folder.iterdir()] == [".lock"]
    said = str(caught.value)
    assert said.startswith("nothing was trained, because --push_to_hub could not publish it: ")
    return said


def test_what_a_publication_lacks_is_said_before_the_first_update(hub, tmp_path):
    base, out = tmp_path / "mine", tmp_path / "out"
    make_model().save_pretrained(base)
    said = refused_before_training(out, "--model_name_or_path", str(base))
    assert "nothing is known about the base model 'mine', above all its licence" in said
    command, file = re.search(r"say it: (echo .* > (\w+\.json)), then", said).groups()
    # The command that it names answers.
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert "--hub_facts facts.json" in said
    hub.create(REPO, {"pytorch_model.bin": b"other"})
    answered = ["--model_name_or_path", str(base), "--hub_facts", str(tmp_path / file)]
    assert "no export of laser_hf" in refused_before_training(out, *answered)
    hub.role = "read"
    assert "the Hub token may only read" in refused_before_training(out, *answered)
    assert "the Hub refused the token" in refused_before_training(out, "--hub_token", "hf_other")
    assert hub.writes() == []


@pytest.mark.slow
def test_train_publishes_and_its_model_loads_by_id(hub, tmp_path, monkeypatch):
    out = tmp_path / "run"
    argv = ["--preset", "demo", "--output_dir", str(out), "--use_cpu", "--max_steps", "1", "--warmup_steps", "0"]
    argv += ["--pairs_per_update", "2", "--eval_data", "", "--eval_on_start", "false", "--plots", "false"]
    argv += ["--max_train_samples", "8", "--dataloader_num_workers", "0", "--report_to", "none"]
    argv += [
        "--push_to_hub",
        "--hub_model_id",
        REPO,
        "--hub_private_repo",
        "--hub_token",
        "hf_test",
        "--save_steps",
        "1",
    ]
    options = parse_options(argv)
    hub.failures = [Fault("POST /api/repos/create", 403, times=1)]
    # This push reloads the encoder in a fresh process.
    with pytest.raises(LaserError) as caught:
        run_training(options)
    later = f"{out} --repo_id {REPO} --private --allow_unevaluated --yes"
    said = str(caught.value)
    assert f"the run is complete in {out}, but it was not published: the Hub refused the token" in said
    assert f"To publish it later: {cli.program()} push {later}" in said
    assert (out / "checkpoint-1" / "training_args.bin").is_file()
    assert not any(b"hf_test" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    monkeypatch.setattr(export, "load_in_fresh_process", load_frames)
    push.main(shlex.split(later))
    files = hub.files(REPO)
    assert hub.repositories[REPO].private
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "eval_ctc.py"} <= set(files)
    assert "> **Not evaluated.**" in files["README.md"].decode()
    assert not any(name.startswith("checkpoint") for name in files)

    wave = torch.sin(torch.arange(8000) / 7) / 5
    cache = {"cache_dir": tmp_path / "cache"}
    loaded, model = AutoModel.from_pretrained(REPO, **cache).eval(), AutoModel.from_pretrained(out).eval()
    extractor = AutoFeatureExtractor.from_pretrained(REPO, revision="v1.0", **cache)
    # The record describes the encoder at the end of training; the push compares a reload with it.
    record = json.loads((out / "laser_config.json").read_text())
    assert difference(record["sample_features"], sample_features(model)) is None
    with torch.no_grad():
        found = loaded(**extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")).last_hidden_state
        expected = model(wave[None]).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
