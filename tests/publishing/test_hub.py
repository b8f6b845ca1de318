"""Publishing to a Hub on 127.0.0.1 with the real client: what arrives, and what a second push does."""

from __future__ import annotations

import json

import pytest
import yaml
from hub_server import Fault
from huggingface_hub import ModelCard, parse_eval_result_entries

from laser_hf.errors import LaserError
from laser_hf.publishing.upload import EVALUATION_SCRIPTS

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


def test_what_a_repository_holds(hub, make_run, publish, tmp_path):
    run = make_run(hub=hub)
    run.add_result("asr", run.digest, task="asr")
    run.add_result("asr_base", run.base_digest, "facebook/hubert-base-ls960", task="asr")
    printed = publish(run, "--yes", "--private")
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
    assert f"Published as commit {commits[-1].oid}, tag v1.0" in printed
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


def test_nothing_is_sent_without_yes(hub, make_run, publish):
    run = make_run(hub=hub)
    printed = publish(run)
    assert "(will be created)" in printed
    assert all(name in printed for name in UPLOADED)
    assert "Nothing was uploaded. Add --yes to publish." in printed
    assert hub.writes() == []


def test_a_second_push_replaces_the_first(hub, make_run, publish):
    run = make_run(hub=hub)
    repository = hub.create(REPO, {"README.md": b"# soon"})
    publish(run, "--yes", "--commit_message", "first")
    main = repository.branches["main"]
    assert "(exists)" in publish(run)
    same = publish(run, "--yes", "--commit_message", "same")
    assert f"Nothing has changed since commit {main[1].oid}, tag v1.0" in same
    assert set(main[1].files) == UPLOADED | {".gitattributes"}
    assert main[1].files["README.md"] != b"# soon"
    # A result that is gone from the run goes from the repository as well.
    (run / "results" / "qbe.json").rename(run / "results" / "new.json")
    assert "results/qbe.json" in publish(run).split("removed")[0].splitlines()[-1]
    second = publish(run, "--yes", "--commit_message", "second")
    assert [c.message for c in main] == ["initial commit", "first", "second"]
    assert set(main[2].files) == (UPLOADED | {".gitattributes", "results/new.json"}) - {"results/qbe.json"}
    assert f"commit {main[2].oid}, tag v1.1" in second
    assert {name: c.oid for name, c in repository.tags.items()} == {"v1.0": main[1].oid, "v1.1": main[2].oid}
    with pytest.raises(LaserError, match=r"already has a tag v1\.0"):
        publish(run, "--yes", "--tag", "v1.0")
    with pytest.raises(LaserError, match="is public"):
        publish(run, "--yes", "--private")
    assert len(main) == 3


def test_branches_and_pull_requests(hub, make_run, publish):
    run = make_run(hub=hub, evaluated=False)
    repository = hub.create(REPO)
    first = repository.branches["main"][-1]
    assert ", tag" not in publish(run, "--yes", "--allow_unevaluated", "--revision", "a/b")
    assert set(repository.branches["a/b"][-1].files) == UPLOADED - {"results/qbe.json"} | {".gitattributes"}
    request = publish(run, "--yes", "--allow_unevaluated", "--create_pr")
    assert f"{hub.endpoint}/{REPO}/discussions/1" in request
    (before, proposed) = repository.branches["refs/pr/1"]
    assert before.oid == first.oid
    assert "> **Not evaluated.**" in proposed.files["README.md"].decode()
    assert not any(name.startswith("results/") for name in proposed.files)
    publish(run, "--yes", "--allow_unevaluated", "--revision", "x", "--tag", "v0.9")
    tagged = repository.branches["x"][-1].oid
    assert {name: c.oid for name, c in repository.tags.items()} == {"v0.9": tagged}
    assert repository.branches["main"] == [first]


def test_a_pull_request_is_found_again(hub, make_run, publish):
    run = make_run(hub=hub, evaluated=False)
    repository = hub.create(REPO)
    foreign = repository.branches["refs/pr/1"] = [*repository.branches["main"]]
    repository.add("refs/pr/1", "somebody else's", {**foreign[0].files, "notes.txt": b"a"})
    words = ("--yes", "--allow_unevaluated", "--create_pr")
    hub.failures = [Fault("POST .*/commit/main", 0, times=1, after=True)]
    with pytest.raises(LaserError, match="give the same command again"):
        publish(run, *words)
    assert len(repository.branches["refs/pr/2"]) == 2
    said = publish(run, *words)
    assert f"Nothing has changed since commit {repository.branches['refs/pr/2'][-1].oid}" in said
    assert f"{hub.endpoint}/{REPO}/discussions/2" in said
    assert "refs/pr/3" not in repository.branches
    run.add_result("asr", run.digest, task="asr")  # other content is another pull request
    assert "Published as" in publish(run, *words)
    assert "results/asr.json" in repository.branches["refs/pr/3"][-1].files


def test_other_peoples_repositories_are_left_alone(hub, make_run, publish):
    run = make_run(hub=hub)
    record = {**run.record(), "base_model": {**run.record()["base_model"], "name": "microsoft/wavlm-base"}}
    hub.create("org/other", {"pytorch_model.bin": b"something"})
    hub.create("org/wavlm", {"laser_config.json": json.dumps(record).encode()})
    before = hub.writes()
    for repo_id, options, reason in (
        ("org/other", ["--yes"], r"no LASER export \(pytorch_model.bin\)"),
        ("org/other", [], "no LASER export"),
        ("org/wavlm", ["--yes"], "org/wavlm holds a model made from microsoft/wavlm-base, not from"),
        ("org/new", ["--yes", "--create_pr"], "there is no org/new to open a pull request"),
    ):
        with pytest.raises(LaserError, match=reason):
            publish(run, *options, repo_id=repo_id)
    assert hub.writes() == before
