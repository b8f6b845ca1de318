"""The Space that `push_to_hub.py --space` makes, at a Hub on 127.0.0.1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import laser_hf
from laser_hf.errors import LaserError
from laser_hf.publishing.upload import space_files

REPO, SPACE = "org/hubert-laser", "spaces/org/hubert-laser"


def test_a_space_beside_the_model(hub, make_run, publish):
    printed = publish(make_run(hub=hub), "--yes", "--space")
    assert f"The page: {hub.endpoint}/spaces/{REPO}" in printed
    assert "laser_config.json" in hub.files(REPO)
    assert "app.py" not in hub.files(REPO)
    files = hub.files(SPACE)
    _, front, text = files["README.md"].decode().split("---\n", 2)
    settings = yaml.safe_load(front)
    assert (settings["sdk"], settings["app_file"]) == ("gradio", "app.py")
    assert settings["models"] == ["facebook/hubert-base-ls960", REPO]
    assert REPO in text
    needed = files["requirements.txt"].decode().splitlines()
    assert f"gradio=={settings['sdk_version']}" in needed
    assert {re.match(r"[\w-]+", one).group() for one in needed} >= {"torch", "transformers", "datasets", "numba"}
    assert not any("extra" in one for one in needed)
    # The package goes along whole, but for the training voices.
    package = Path(laser_hf.__file__).parent
    for path in package.rglob("*.py"):
        name = path.relative_to(package.parent).as_posix()
        assert files[name] == path.read_bytes(), name
    assert "laser_hf/demo/encoder/model.safetensors" in files
    assert any(name.startswith("laser_hf/demo/speech/heldout/") for name in files)
    assert not any("speech/train/" in name or "__pycache__" in name for name in files)


@pytest.mark.parametrize(
    ("name", "local", "models"),
    [
        ("facebook/hubert-base-ls960", False, ["facebook/hubert-base-ls960", REPO]),
        ("{laser_hf}/demo/encoder", True, ["{laser_hf}/demo/encoder", REPO]),
        ("/home/someone/models/mine", True, [REPO]),
    ],
)
def test_its_encoders(make_run, monkeypatch, name, local, models):
    record = make_run().record()
    record["base_model"] |= {"name": name.rsplit("/")[-1] if local else name, "local": local}
    record["recipe"]["model"]["model_name_or_path"] = name
    files = space_files(REPO, record)
    assert b"/home/" not in files["app.py"] + files["README.md"]
    called = []
    monkeypatch.setattr("laser_hf.cli.run", lambda main, argv: called.extend([main.__module__, *argv]))
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    exec(compile(files["app.py"], "app.py", "exec"), {})
    expected = [one.replace("{laser_hf}", str(Path(laser_hf.__file__).parent)) for one in models]
    assert called == ["laser_hf.app", "--model", *expected, "--host", "127.0.0.1"]


def test_nothing_is_sent_without_yes(hub, make_run, publish):
    assert "the page and laser_hf itself" in publish(make_run(hub=hub), "--space")
    assert hub.writes() == []


def test_a_second_push_replaces_it(hub, make_run, publish):
    run = make_run(hub=hub)
    publish(run, "--yes", "--space", "--private")
    repository = hub.repositories[SPACE]
    assert repository.private
    repository.add("main", "older", {**hub.files(SPACE), "laser_hf/gone.py": b"", "notes.md": b"mine"})
    printed = publish(run, "--yes", "--space", "--private")
    assert "secret HF_TOKEN" in printed
    assert "laser_hf/gone.py" not in hub.files(SPACE)
    assert hub.files(SPACE)["notes.md"] == b"mine"


def test_a_space_of_somebody_else_stays(hub, make_run, publish):
    hub.create(SPACE, {"README.md": b"# mine", "app.py": b"print()"})
    with pytest.raises(LaserError, match=r"the Space org/hubert-laser holds something else \(app\.py\)"):
        publish(make_run(hub=hub), "--yes", "--space")
    assert hub.files(SPACE)["app.py"] == b"print()"


@pytest.mark.parametrize("options", [("--revision", "other"), ("--create_pr",)])
def test_only_of_the_main_branch(make_run, publish, options):
    with pytest.raises(LaserError, match="--space shows the model of the main branch"):
        publish(make_run(), "--space", *options)
