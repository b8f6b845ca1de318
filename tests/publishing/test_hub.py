"""Publishing to a Hub on 127.0.0.1 with the real client: what arrives, what a second push does, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY
from hub_server import Fault, HubServer
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import AutoModel

from laser_hf.publishing import sample_features
from laser_hf.publishing.collect import EVALUATION_SCRIPTS
from laser_hf.publishing.probe import difference

from .conftest import CARDS

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
    *EVALUATION_SCRIPTS,
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
import contextlib, io, json, sys, time
from pathlib import Path
from laser_hf.publishing import push
push.check_reload = lambda *_: None
slept, sleep = [], time.sleep
# The short ones are subprocess's, which looks every few milliseconds whether a process has ended.
time.sleep = lambda seconds: slept.append(seconds) if seconds >= 0.5 else sleep(seconds)
runs = []
for step in json.loads(sys.argv[1]):
    if "do" in step:
        exec(step["do"])
        continue
    out, err = io.StringIO(), io.StringIO()
    slept.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = push.main(step["argv"], cards_dir=Path(step["cards"]))
    runs.append([status, out.getvalue(), err.getvalue(), list(slept)])
Path(sys.argv[2]).write_text(json.dumps(runs))
"""


def drive(hub: HubServer, tmp_path: Path, steps: list[list[str] | str]) -> list[list]:
    """Exit status, output, errors and waits of every command line; strings among them are Python run in between."""
    script = [{"do": s} if isinstance(s, str) else {"argv": s, "cards": str(CARDS)} for s in steps]
    answer = tmp_path / "answer.json"
    done = start(hub, tmp_path / "home", "-c", _DRIVER, json.dumps(script), str(answer))
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text())


def test_what_a_repository_holds(hub, make_run, tmp_path):
    run = make_run(hub=hub)
    run.add_result("asr", run.digest, task="asr")
    run.add_result("asr_base", run.base_digest, "facebook/hubert-base-ls960", task="asr")
    home = tmp_path / "home"
    done = start(hub, home, str(REPOSITORY / "push_to_hub.py"), str(run), "--repo_id", REPO, "--yes", "--private")
    assert done.returncode == 0, done.stderr
    files = hub.files(REPO)
    extra = {".gitattributes", ".eval_results/librispeech_asr.yaml", "results/asr.json", "results/asr_base.json"}
    assert set(files) == UPLOADED | extra
    repository = hub.repositories[REPO]
    assert repository.private
    commits = repository.branches["main"]
    assert [c.message for c in commits[1:]] == [
        "LASER: 3600 updates on facebook/hubert-base-ls960, 100.3 hours of speech"
    ]
    assert {name: commit.oid for name, commit in repository.tags.items()} == {"v1.0": commits[-1].oid}
    assert f"Published as commit {commits[-1].oid}, tag v1.0" in done.stdout
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    # Neither paths of the machine nor the token that train.py was given.
    record = files["laser_config.json"].decode()
    assert "--output_dir one --hub_token ***" in record
    everything = b"".join(files.values())
    assert b"/home/" not in everything
    assert str(tmp_path).encode() not in everything
    assert b"hf_aaaa" not in everything
    # Evaluation metadata, both ways; the quick result is in neither.
    card = ModelCard(files["README.md"].decode())
    assert [(e.metric_type, e.metric_value, e.dataset_type) for e in card.data.eval_results] == [
        ("wer", 6.1839, "openslr/librispeech_asr")
    ]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/librispeech_asr.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openslr/librispeech_asr", "clean", 6.1839)
    assert entry.source_url == f"{hub.endpoint}/{REPO}/tree/main/results"
    asr = "| speech recognition (SUPERB) | word error rate (lower is better), test-clean | 6.184 % | 6.184 % |"
    assert asr in card.text


# A run of train.py that may not upload at first, and then the command that its error names.
_TRAIN = """
import json, shlex, sys
from laser_hf.publishing import push
from laser_hf.training import parse_options, run_training
push.check_reload = lambda *_: None
out, repository, later = sys.argv[1:]
options = parse_options(
    ["--preset", "demo", "--output_dir", out, "--use_cpu", "--max_steps", "1", "--warmup_steps", "0"]
    + ["--pairs_per_update", "2", "--eval_data", "", "--eval_on_start", "false", "--plots", "false"]
    + ["--max_train_samples", "8", "--dataloader_num_workers", "0"]
    + ["--push_to_hub", "--hub_model_id", repository, "--hub_private_repo"]
)
try:
    run_training(options)
    sys.exit("published although the Hub said no")
except SystemExit as stopped:
    assert stopped.code == 1, stopped
assert push.main(shlex.split(later)) == 0
"""


def test_train_publishes_and_its_model_loads_by_id_without_laser_hf(hub, tmp_path):
    home, out, repo = tmp_path / "home", tmp_path / "run", "org/demo-laser"
    later = f"{out} --repo_id {repo} --private --allow_unevaluated --yes"
    hub.failures = [Fault("POST /api/repos/create", 403, times=1)]
    done = start(hub, home, "-c", _TRAIN, str(out), repo, later)
    assert done.returncode == 0, done.stderr
    assert f"the run is complete in {out}, but it was not published: the Hub refused the token" in done.stderr
    assert f"To publish it later: python push_to_hub.py {later}" in done.stderr
    files = hub.files(repo)
    assert hub.repositories[repo].private
    assert set(files) == UPLOADED - {"results/qbe.json", "plots/loss_terms.png"} | {".gitattributes"}
    assert "> **Not evaluated.**" in files["README.md"].decode()
    assert not any(name.startswith("checkpoint") for name in files)

    wave = torch.sin(torch.arange(8000) / 7) / 5
    torch.save(wave, tmp_path / "wave.pt")
    program = f"""
import sys, torch
from transformers import AutoFeatureExtractor, AutoModel
model, extractor = AutoModel.from_pretrained({repo!r}), AutoFeatureExtractor.from_pretrained({repo!r}, revision="v1.0")
wave = torch.load({str(tmp_path / "wave.pt")!r})
with torch.no_grad():
    frames = model(**extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")).last_hidden_state
torch.save(frames, {str(tmp_path / "frames.pt")!r})
assert not any(name.startswith("laser_hf") for name in sys.modules)
"""
    done = start(hub, home, "-c", program)
    assert done.returncode == 0, done.stderr
    model = AutoModel.from_pretrained(out).eval()
    # What the record says of the encoder at the end of training, by which the push compares a reload.
    record = json.loads((out / "laser_config.json").read_text())
    assert difference(record["sample_features"], sample_features(model)) is None
    with torch.no_grad():
        expected = model(wave[None]).last_hidden_state
    torch.testing.assert_close(torch.load(tmp_path / "frames.pt"), expected, rtol=1e-5, atol=1e-5)


def test_pushing_again_and_where(hub, make_run, tmp_path):
    run = make_run(hub=hub)
    unevaluated = str(make_run(hub=hub, evaluated=False, name="unevaluated"))
    record = {**run.record(), "base_model": {**run.record()["base_model"], "name": "microsoft/wavlm-base"}}
    hub.create("org/other", {"pytorch_model.bin": b"something"})
    hub.create("org/wavlm", {"laser_config.json": json.dumps(record).encode()})
    hub.create("org/empty", {"README.md": b"# soon"})
    again = f"(Path({str(run)!r}) / 'results' / 'qbe.json').rename(Path({str(run)!r}) / 'results' / 'new.json')"
    run = str(run)
    steps = [
        [run, "--repo_id", REPO],
        [run, "--repo_id", "org/empty", "--yes", "--commit_message", "first"],
        [run, "--repo_id", "org/empty", "--yes", "--commit_message", "same"],
        again,
        [run, "--repo_id", "org/empty", "--yes", "--commit_message", "second"],
        [run, "--repo_id", "org/empty", "--yes", "--revision", "a/b"],
        [unevaluated, "--repo_id", "org/empty", "--yes", "--allow_unevaluated", "--create_pr"],
        [unevaluated, "--repo_id", "org/empty", "--yes", "--allow_unevaluated", "--revision", "x", "--tag", "v0.9"],
        # Refused, in the order of the reasons below.
        [run, "--repo_id", "org/empty", "--yes", "--tag", "v1.0"],
        [run, "--repo_id", "org/empty", "--yes", "--private"],
        [run, "--repo_id", "org/other", "--yes"],
        [run, "--repo_id", "org/other"],
        [run, "--repo_id", "org/wavlm", "--yes"],
        [run, "--repo_id", "org/new", "--yes", "--create_pr"],
    ]
    results = drive(hub, tmp_path, steps)
    dry, _, same, second, branch, request, unevaluated = results[:7]
    assert [status for status, *_ in results] == [0] * 7 + [1] * 6, [err for _, _, err, _ in results]

    assert "(will be created)" in dry[1]
    assert all(name in dry[1] for name in UPLOADED)
    assert "Nothing was uploaded. Add --yes to publish." in dry[1]
    assert REPO not in hub.repositories

    repository = hub.repositories["org/empty"]
    main = repository.branches["main"]
    assert [c.message for c in main] == ["initial commit", "first", "second"]
    assert "(exists)" in same[1]
    assert f"Nothing has changed since commit {main[1].oid}, tag v1.0" in same[1]
    assert set(main[1].files) == UPLOADED | {".gitattributes"}
    assert main[1].files["README.md"] != b"# soon"
    # A result that is gone from the run goes from the repository as well.
    moved = (UPLOADED | {".gitattributes", "results/new.json"}) - {"results/qbe.json"}
    assert set(main[2].files) == moved
    assert f"commit {main[2].oid}, tag v1.1" in second[1]
    assert set(repository.branches["a/b"][-1].files) == moved
    assert ", tag" not in branch[1]

    (before, proposed) = repository.branches["refs/pr/1"]
    assert before.oid == main[2].oid
    assert f"{hub.endpoint}/org/empty/discussions/1" in request[1]
    assert "> **Not evaluated.**" in proposed.files["README.md"].decode()
    assert not any(name.startswith("results/") for name in proposed.files)
    tagged = repository.branches["x"][-1].oid
    assert {name: c.oid for name, c in repository.tags.items()} == {
        "v1.0": main[1].oid, "v1.1": main[2].oid, "v0.9": tagged
    }  # fmt: skip

    reasons = [err for _, _, err, _ in results[7:]]
    for reason, expected in zip(
        reasons,
        ["already has a tag v1.0", "is public", "no LASER export (pytorch_model.bin)", "no LASER export",
         "already holds a model made from microsoft/wavlm-base", "there is no org/new to open a pull request"],
        strict=True,
    ):  # fmt: skip
        assert expected in reason
    assert set(hub.files("org/other")) == {".gitattributes", "pytorch_model.bin"}
    assert len(main) == 3


def complete(hub: HubServer, repo_id: str) -> bool:
    """Whether a repository has its first commit and one that holds everything, with its tag."""
    repository = hub.repositories[repo_id]
    commits = repository.branches["main"]
    return len(commits) == 2 and set(commits[1].files) >= UPLOADED and repository.tags["v1.0"] is commits[1]


def test_faults_that_pass(hub, make_run, tmp_path):
    run = str(make_run(hub=hub))
    hub.create("org/moved")
    hub.failures = [
        # Asked to wait, and waiting so long.
        Fault("POST /api/repos/create", 429, times=1, headers={"Retry-After": "7"}),
        Fault("GET /api/models/org/busy/refs", 503, times=2),
        # Cut in the middle of the large file, and the whole batch of files refused for a while.
        Fault("PUT /lfs/", 0, times=2),
        Fault("POST /org/cut.git/info/lfs/objects/batch", 502, times=1),
        # The commit is made, but its answer is lost.
        Fault("POST /api/models/org/lost/commit/main", 0, times=1, after=True),
        Fault("POST /api/models/org/moved/commit/main", 412, times=1),
        Fault("POST /api/models/org/moved/commit/main", 409, times=1),
        Fault("POST /api/models/org/tagged/tag", 500, times=1),
    ]
    names = ["org/busy", "org/cut", "org/lost", "org/moved", "org/tagged"]
    results = drive(hub, tmp_path, [[run, "--repo_id", name, "--yes"] for name in names])
    assert [status for status, *_ in results] == [0] * len(names), [err for _, _, err, _ in results]
    assert all(complete(hub, name) for name in names)
    busy = results[0]
    assert "HTTP 429; trying again in 7 s (1 of 3)" in busy[2]
    assert 7.0 in busy[3]
    assert "HTTP 503; trying again in 2 s (2 of 3)" in busy[2]
    assert "the upload was interrupted (ReadError); going on" in results[2][2] or "RemoteProtocolError" in results[2][2]
    assert len([r for r in hub.requests if r == "POST /api/models/org/lost/commit/main"]) == 1


def test_faults_that_stay(hub, make_run, tmp_path):
    run = str(make_run(hub=hub))
    hub.create("org/public")
    hub.create("org/raced")
    hub.races["org/raced"] = {"theirs.bin": b"theirs"}
    hub.failures = [
        # The push gives up after four times, so that the third one goes through.
        Fault("PUT /lfs/", 0, times=6),
        Fault("POST /api/models/org/half/commit", 0, times=8),
        ("POST /api/models/org/public/commit/forbidden", 403),
        Fault("GET /api/models/org/late", 429, headers={"Retry-After": "3600"}),
        ("POST .*/branch/busy$", 503),
        ("POST /api/models/org/untagged/tag", 500),
    ]
    steps = [
        # Cut off in the middle until it gave up, twice, and run again: complete.
        [run, "--repo_id", "org/half", "--yes"],
        [run, "--repo_id", "org/half", "--yes"],
        [run, "--repo_id", "org/half", "--yes"],
        [run, "--repo_id", "org/late", "--yes"],
        [run, "--repo_id", "org/public", "--yes", "--revision", "busy"],
        [run, "--repo_id", "org/public", "--yes", "--revision", "forbidden"],
        [run, "--repo_id", "org/new", "--yes", "--token", "hf_wrong"],
        [run, "--repo_id", "org/untagged", "--yes"],
        [run, "--repo_id", "org/raced", "--yes"],
        "from huggingface_hub import HfApi; push.HfApi = lambda token: HfApi('http://127.0.0.1:9', token=token)",
        [run, "--repo_id", REPO],
        [run, "--repo_id", REPO, "--yes"],
    ]
    results = drive(hub, tmp_path, steps)
    assert [status for status, *_ in results] == [1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1], [err for _, _, err, _ in results]
    reasons = [err for _, _, err, _ in results]
    assert "cannot be reached" in reasons[0]
    assert "cannot be reached" in reasons[1]
    assert complete(hub, "org/half")
    assert "HTTP 429" in reasons[3]
    assert results[3][3] == []  # an hour is too long to wait
    assert "HTTP 503" in reasons[4]
    assert "just try again" in reasons[4]
    for code, reason in ((403, reasons[5]), (401, reasons[6])):
        assert f"HTTP {code}" in reason
        assert "hf auth login" in reason
    assert "org/new" not in hub.repositories
    commit = hub.repositories["org/untagged"].branches["main"][1]
    assert f"published as commit {commit.oid}, but not tagged" in reasons[7]
    assert set(hub.files("org/public")) == {".gitattributes"}
    assert "the target repository was not checked: http://127.0.0.1:9 cannot be reached" in results[9][1]
    assert "http://127.0.0.1:9 cannot be reached" in reasons[10]
    # Looked at, it was empty; by the time of the commit it was not, and what came in between stays as it is.
    assert "already holds something that is no LASER export (theirs.bin)" in reasons[8]
    assert set(hub.files("org/raced")) == {".gitattributes", "theirs.bin"}
