"""push_to_hub.py against a Hub on 127.0.0.1, with the real client, and everything that it must refuse."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_model
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from laser_hf.publishing import push
from laser_hf.publishing.push import PushError, without_private

from .conftest import CARDS, make_record, make_result

REPO = "org/hubert-laser"
UPLOADED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "laser_config.json",
    "training_log.json",
    "plots/loss_terms.png",
    "results/qbe.json",
}


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def start(hub: HubServer, home: Path, *program: str) -> subprocess.CompletedProcess:
    """Run Python in a process whose Hub is `hub`."""
    return subprocess.run(
        [sys.executable, *program],
        env={**os.environ, **hub.environment(home)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Several command lines in one process, because importing torch takes most of the time. The reload has its own tests.
_DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
from laser_hf.publishing import push
push.reload_in_new_process = lambda folder: None
runs = []
for step in json.loads(sys.argv[1]):
    if "do" in step:
        exec(step["do"])
        continue
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = push.main(step["argv"], cards_dir=Path(step["cards"]))
    runs.append([status, out.getvalue(), err.getvalue()])
Path(sys.argv[2]).write_text(json.dumps(runs))
"""


def drive(hub: HubServer, tmp_path: Path, steps: list[list[str] | str]) -> list[list]:
    """Exit status, output and errors of every command line; strings among them are Python run in between."""
    script = [{"do": s} if isinstance(s, str) else {"argv": s, "cards": str(CARDS)} for s in steps]
    answer = tmp_path / "answer.json"
    done = start(hub, tmp_path / "home", "-c", _DRIVER, json.dumps(script), str(answer))
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text())


def test_pushed_model_loads_by_its_id_without_laser_hf(hub, make_run, tmp_path):
    run = make_run()
    home = tmp_path / "home"
    done = start(hub, home, str(REPOSITORY / "push_to_hub.py"), str(run), "--repo_id", REPO, "--yes", "--private")
    assert done.returncode == 0, done.stderr
    files = hub.files(REPO)
    assert set(files) == UPLOADED | {".gitattributes"}
    repository = hub.repositories[REPO]
    assert repository.private
    assert [c.message for c in repository.branches["main"][1:]] == [
        "LASER: 3600 updates on facebook/hubert-base-ls960, 100.3 hours of speech"
    ]
    assert repository.at("main").oid in done.stdout
    assert "not checked: facebook/hubert-base-ls960 is not in the cache" in done.stdout
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    # Neither paths of the machine nor the token that train.py was given.
    record = files["laser_config.json"].decode()
    assert "--output_dir one --hub_token ***" in record
    everything = b"".join(files.values())
    assert b"/home/" not in everything
    assert str(tmp_path).encode() not in everything
    assert b"hf_aaaa" not in everything

    wave = torch.sin(torch.arange(8000) / 7) / 5
    torch.save(wave, tmp_path / "wave.pt")
    program = f"""
import sys, torch
from transformers import AutoFeatureExtractor, AutoModel
model, extractor = AutoModel.from_pretrained("{REPO}"), AutoFeatureExtractor.from_pretrained("{REPO}")
wave = torch.load({str(tmp_path / "wave.pt")!r})
with torch.no_grad():
    frames = model(**extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")).last_hidden_state
torch.save(frames, {str(tmp_path / "frames.pt")!r})
assert not any(name.startswith("laser_hf") for name in sys.modules)
assert (model.config.apply_spec_augment, model.config.layerdrop) == (True, 0.05)
"""
    done = start(hub, home, "-c", program)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = AutoModel.from_pretrained(run).eval()(wave[None]).last_hidden_state
    torch.testing.assert_close(torch.load(tmp_path / "frames.pt"), expected, rtol=1e-5, atol=1e-5)


def test_pushing_again_dry_runs_and_what_the_hub_refuses(hub, make_run, tmp_path):
    run = str(make_run())
    unevaluated = str(make_run(evaluated=False, name="unevaluated"))
    hub.create("org/other", {"pytorch_model.bin": b"something"})
    hub.create("org/empty", {"README.md": b"# soon"})
    hub.failures = [("POST .*/branch/busy$", 429), ("create$", 503), ("preupload/forbidden$", 403)]
    again = f"(Path({run!r}) / 'results' / 'qbe.json').rename(Path({run!r}) / 'results' / 'new.json')"
    steps = [
        [run, "--repo_id", REPO],
        [run, "--repo_id", "org/new", "--yes"],
        [run, "--repo_id", "org/empty", "--yes", "--commit_message", "first"],
        [run, "--repo_id", "org/empty", "--yes", "--commit_message", "same"],
        again,
        [run, "--repo_id", "org/empty", "--yes", "--commit_message", "second"],
        [run, "--repo_id", "org/empty", "--yes", "--revision", "a/b"],
        [run, "--repo_id", "org/empty", "--yes", "--private"],
        [run, "--repo_id", "org/empty", "--yes", "--revision", "busy"],
        [run, "--repo_id", "org/other", "--yes"],
        [run, "--repo_id", "org/other"],
        [run, "--repo_id", "org/empty", "--yes", "--revision", "forbidden"],
        [run, "--repo_id", "org/new", "--yes", "--token", "hf_wrong"],
        [unevaluated, "--repo_id", "org/empty", "--yes", "--allow_unevaluated", "--revision", "unevaluated"],
    ]
    results = iter(drive(hub, tmp_path, steps))

    status, out, _ = next(results)  # a dry run
    assert status == 0
    assert "(will be created)" in out
    assert all(name in out for name in UPLOADED)
    assert "Nothing was uploaded. Add --yes to publish." in out
    assert REPO not in hub.repositories

    status, _, err = next(results)
    assert status == 1
    assert "HTTP 503" in err
    assert "try again" in err

    repository = hub.repositories["org/empty"]
    assert next(results)[0] == 0
    status, out, _ = next(results)  # the same once more: nothing changes
    assert status == 0
    assert "(exists)" in out
    assert next(results)[0] == 0
    assert [c.message for c in repository.branches["main"]] == ["initial commit", "first", "second"]
    assert set(repository.branches["main"][1].files) == UPLOADED | {".gitattributes"}
    assert repository.branches["main"][1].files["README.md"] != b"# soon"
    # A result that is gone from the run goes from the repository as well.
    moved = (UPLOADED | {".gitattributes", "results/new.json"}) - {"results/qbe.json"}
    assert set(repository.branches["main"][2].files) == moved

    assert next(results)[0] == 0
    assert set(repository.branches["a/b"][-1].files) == moved

    status, _, err = next(results)
    assert (status, "is public" in err) == (1, True)
    status, _, err = next(results)
    assert (status, "HTTP 429" in err) == (1, True)
    for _ in range(2):  # with --yes and without
        status, _, err = next(results)
        assert (status, "no LASER export (pytorch_model.bin)" in err) == (1, True)
    assert set(hub.files("org/other")) == {".gitattributes", "pytorch_model.bin"}
    for code in (403, 401):
        status, _, err = next(results)
        assert status == 1
        assert f"HTTP {code}" in err
        assert "hf auth login" in err
    assert "org/new" not in hub.repositories

    assert next(results)[0] == 0
    card = repository.at("unevaluated").files["README.md"].decode()
    assert "> **Not evaluated.**" in card
    assert not any(name.startswith("results/") for name in repository.at("unevaluated").files)


def test_unreachable_hub(make_run, tmp_path):
    with HubServer() as hub:
        pass
    run = str(make_run())
    dry, real = drive(hub, tmp_path, [[run, "--repo_id", REPO], [run, "--repo_id", REPO, "--yes"]])
    assert dry[0] == 0
    assert "not checked" in dry[1]
    assert real[0] == 1
    assert "cannot be reached" in real[2]


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Runs the tool on a folder in this process and returns what it says on refusing."""

    def run(folder: Path, *options: str, reload: bool = False) -> str:
        if not reload:
            monkeypatch.setattr(push, "reload_in_new_process", lambda folder: None)
        assert push.main([str(folder), "--repo_id", REPO, *options], cards_dir=CARDS) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run


def test_folders_that_are_no_finished_run(make_run, refuse, tmp_path):
    assert "is no folder" in refuse(tmp_path / "nothing")
    run = make_run()
    (run / "config.json").unlink()
    (run / "preprocessor_config.json").unlink()
    assert "lacks config.json, preprocessor_config.json" in refuse(run)
    (run / "laser_config.json").write_text("{")
    assert "cannot be read" in refuse(run)
    (run / "laser_config.json").unlink()
    assert "has not finished" in refuse(run)


def test_names_that_the_hub_would_not_take(make_run, capsys):
    assert push.main([str(make_run()), "--repo_id", "a/b/c"], cards_dir=CARDS) == 1
    assert "--repo_id a/b/c" in capsys.readouterr().err


def test_unevaluated_models(make_run, refuse):
    run = make_run(evaluated=False)
    assert "--allow_unevaluated" in refuse(run)
    (run / "results.json").write_text(json.dumps(make_result("facebook/hubert-base-ls960")))
    assert "there are some of hubert-base-ls960" in refuse(run)
    (run / "results.json").write_text(json.dumps({**make_result(str(run)), "value": None}))
    assert "no downstream result of this model" in refuse(run)


def test_results_older_than_the_weights(make_run, refuse):
    run = make_run(written="2026-12-01T00:00:00+00:00")
    assert "results/qbe.json was written (2026-11-21T07:00:00+00:00) before the run was finished" in refuse(run)


def test_results_from_elsewhere(make_run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(push, "reload_in_new_process", lambda folder: None)
    run = make_run(evaluated=False)
    for task in ("asr", "pr"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "results.json").write_text(json.dumps(make_result(str(run))))
    files = [str(tmp_path / task / "results.json") for task in ("asr", "pr")]
    assert push.main([str(run), "--repo_id", REPO, "--show_card", "--results", *files], cards_dir=CARDS) == 0
    out = capsys.readouterr().out
    assert "| qbe (quick) | this model | mean average precision, layer 3 | 0.4322 fraction | `results/pr.json` |" in out
    assert "results/asr.json" in out
    # This process is offline by the tests' settings.
    assert "the target repository was not checked: HF_HUB_OFFLINE is set" in out


def test_weights_that_are_not_finite_or_damaged(make_run, refuse):
    run = make_run()
    weights = load_file(run / "model.safetensors")
    weights["encoder.layers.0.attention.k_proj.bias"][3] = float("nan")
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    assert "not finite: encoder.layers.0.attention.k_proj.bias" in refuse(run)
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    assert "is damaged" in refuse(run)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_of_the_base_model(form, make_run, refuse, tmp_path):
    record = make_record()
    base = tmp_path / "laser_hf" / "demo" / "encoder"
    record["base_model"].update(name="encoder", local=True, revision=None)
    record["recipe"]["model"]["model_name_or_path"] = str(base)
    run = make_run(base_model=record["base_model"], recipe=record["recipe"])
    assert push.check_weights(run / "model.safetensors", record) == (
        f"that the weights differ from the base model's was not checked: its folder {base} is not here"
    )
    base.mkdir(parents=True)

    def write_base(state: dict) -> None:
        # As in a checkpoint with a head.
        state = {f"hubert.{name}": tensor for name, tensor in state.items()}
        if form == "bin":
            torch.save(state, base / "pytorch_model.bin")
        else:
            save_file(state, base / "model.safetensors")

    write_base(load_file(run / "model.safetensors"))
    assert "still those of the base model" in refuse(run)
    write_base(make_model().state_dict())
    assert push.check_weights(run / "model.safetensors", record) is None


def test_weights_of_a_base_model_in_the_cache(make_run, monkeypatch):
    run, asked = make_run(), []

    def cached(*arguments, **options):
        asked.append((*arguments, options["revision"]))
        return str(run / "model.safetensors")

    monkeypatch.setattr(push, "try_to_load_from_cache", cached)
    with pytest.raises(PushError, match="still those of the base model"):
        push.check_weights(run / "model.safetensors", make_record())
    name, revision = "facebook/hubert-base-ls960", make_record()["base_model"]["revision"]
    assert asked == [(name, file, revision) for file in ("model.safetensors", "pytorch_model.bin")]


def test_cards_with_gaps(make_run, refuse, tmp_path):
    facts = json.loads((CARDS / "hubert-laser.json").read_text())
    (tmp_path / "facts.json").write_text(json.dumps({**facts, "licence_text": "TODO"}))
    assert "the model card has gaps: line" in refuse(make_run(), "--facts", str(tmp_path / "facts.json"))
    del facts["base_authors"]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    assert "base_authors" in refuse(make_run(name="two"), "--facts", str(tmp_path / "facts.json"))


def test_base_models_of_unknown_licence(make_run, refuse):
    base = {**make_record()["base_model"], "name": "someone/hubert"}
    assert "someone/hubert" in refuse(make_run(base_model=base))


def test_pickles_in_disguise_and_remote_code(make_run, refuse):
    run = make_run()
    (run / "plots" / "alignment.png").write_bytes(pickle.dumps({"a": 1}))
    assert "plots/alignment.png is not what its name says" in refuse(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    assert "auto_map" in refuse(run)


def test_encoders_that_plain_transformers_cannot_load(make_run, refuse):
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    assert "does not work with plain AutoModel" in refuse(run, reload=True)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/me/speech/train-clean-5", "train-clean-5"),
        ("/home/me/", "me"),
        ("train.py --data /data/x --output_dir=~/out/y --seed 1", "train.py --data x --output_dir=y --seed 1"),
        (r"C:\Users\me\run", "run"),
        ("https://huggingface.co/org/name", "https://huggingface.co/org/name"),
        ("facebook/hubert-base-ls960, 3 km/h, 1 / 2", "facebook/hubert-base-ls960, 3 km/h, 1 / 2"),
        ("--hub_token abc --token=def", "--hub_token *** --token=***"),
        ("token hf_" + "x" * 34, "token ***"),
        ("hf_hubert_custom and secret-1", "hf_hubert_custom and ***"),
    ],
)  # fmt: skip
def test_what_is_private_stays(text, published):
    assert without_private({"k": [text, 1, None]}, ["secret-1"]) == {"k": [published, 1, None]}


def test_help_and_reasons_are_for_people(capsys):
    with pytest.raises(SystemExit):
        push.main(["--help"], cards_dir=CARDS)
    out = capsys.readouterr().out
    assert all(word in out for word in ("RUN_DIR", "--yes", "--allow_unevaluated", "hf auth login"))
    assert issubclass(PushError, RuntimeError)
