"""Publishing to a Hub on 127.0.0.1 with the real client: what arrives, and what a second push does."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from hub_server import Fault
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from laser_hf.errors import LaserError
from laser_hf.publishing.convert import main as convert
from laser_hf.publishing.upload import EVALUATION_SCRIPTS

from .conftest import DIGEST, make_result
from .test_convert import fairseq_names

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
        ("org/other", ["--yes"], r"no export of laser_hf \(pytorch_model.bin\)"),
        ("org/other", [], "no export of laser_hf"),
        ("org/wavlm", ["--yes"], "org/wavlm holds a model made from microsoft/wavlm-base, not from"),
        ("org/new", ["--yes", "--create_pr"], "there is no org/new to open a pull request"),
    ):
        with pytest.raises(LaserError, match=reason):
            publish(run, *options, repo_id=repo_id)
    assert hub.writes() == before


def test_results_are_added_without_the_run_folder(hub, make_run, publish, tmp_path):
    run = make_run(hub=hub)
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"speech": {"title": "Our interviews", "languages": "de"}}))
    publish(run, "--yes", "--facts", str(facts))
    before = hub.files(REPO)
    hub.repositories.pop("facebook/hubert-base-ls960")  # what was compared once need not be had again
    wer = {"metrics": [{"metric": "wer", "value": 6.2, "unit": "percent", "split": "test-clean"}]}
    result = str(make_result(tmp_path / "asr", REPO, run.digest, task="asr", **wer))
    assert "Nothing was uploaded" in publish("--results", result)
    said = publish("--results", result, "--yes")
    assert "tag v1.1" in said
    after = hub.files(REPO)
    assert set(after) == {*before, "results/asr.json", ".eval_results/librispeech_asr.yaml"}
    card = ModelCard(after["README.md"].decode())
    assert "test-clean | 6.2 % |" in card.text
    assert "mean average precision" in card.text
    assert card.data.language == ["de"]  # the facts of the first push stay
    same = {"laser_config.json", "model.safetensors", "results/qbe.json", "facts.json", "plots/loss_terms.png"}
    assert all(after[name] == before[name] for name in same)
    # A new number for the same task takes the place of the old one.
    result = str(make_result(tmp_path / "new" / "asr", REPO, run.digest, task="asr"))
    publish("--results", result, "--yes")
    assert "6.184 %" in hub.files(REPO)["README.md"].decode()
    assert hub.files(REPO)["model.safetensors"] == before["model.safetensors"]


def test_results_for_what_is_not_there(hub, publish, tmp_path):
    result = str(make_result(tmp_path / "asr", "x", DIGEST, task="asr"))
    for options, reason in (
        ((), "give the RUN_DIR to publish, or --results FILE"),
        (("--results", result), f"there is no {REPO} at main to add results to"),
        (("--results", result, "--space"), "without --space"),
    ):
        with pytest.raises(LaserError, match=reason):
            publish(*options)
    hub.create(REPO, {"pytorch_model.bin": b"other"})
    with pytest.raises(LaserError, match=r"has neither laser_config\.json nor conversion\.json"):
        publish("--results", result)


def test_results_of_other_weights_are_not_added(hub, make_run, publish, tmp_path):
    publish(make_run(hub=hub), "--yes")
    result = str(make_result(tmp_path / "asr", REPO, DIGEST, task="asr"))
    with pytest.raises(LaserError, match="was made with other weights"):
        publish("--results", result, "--yes")


def test_runs_with_other_seeds(hub, make_run, publish):
    run, other = make_run(hub=hub), make_run(name="second", evaluated=False)
    other.add_result("qbe", "d" * 64)
    recipe = run.record()["recipe"]
    second = {**recipe, "training": {**recipe["training"], "seed": 2}}
    other.change(recipe=second, seed=2)
    publish(run, "--yes", "--seeds", str(other))
    card = hub.files(REPO)["README.md"].decode()
    assert "results/seed-2/qbe.json" in hub.files(REPO)
    assert "| seed 1337 (this model) | seed 2 | mean ± standard deviation |" in card
    assert "0.4322 ± 0 (2 seeds)" in card
    for changed, reason in (
        ({**second, "objective": {**recipe["objective"], "alpha": 1.0}}, "--alpha 0.4 -> 1.0"),
        (recipe, "its seed"),
    ):
        other.change(recipe=changed)
        with pytest.raises(LaserError, match=f"is not this recipe with another seed: {reason}"):
            publish(run, "--seeds", str(other))


def test_a_family_in_a_collection(hub, make_run, publish):
    run = make_run(hub=hub)
    said = publish(run, "--yes", "--collection", "LASER encoders", "--private")
    ((slug, made),) = hub.collections.items()
    assert f"{hub.endpoint}/collections/{slug}" in said
    assert (made["title"], made["private"]) == ("LASER encoders", True)
    publish(run, "--yes", "--collection", "LASER encoders", repo_id="org/second")
    publish(run, "--yes", "--collection", "LASER encoders", repo_id="org/second")  # it is there already
    assert [item["id"] for item in hub.collections[slug]["items"]] == [REPO, "org/second"]
    assert len(hub.collections) == 1


def test_a_converted_checkpoint(hub, make_run, publish, tmp_path):
    run = make_run(hub=hub)
    torch.save({"model": fairseq_names(AutoModel.from_pretrained(run.folder))}, tmp_path / "authors.pt")
    convert(
        ["--base", "facebook/hubert-base-ls960", "--output_dir", str(tmp_path / "out"), str(tmp_path / "authors.pt")]
    )
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"method": "laser", "title": "The authors' LASER on HuBERT base"}))
    publish(tmp_path / "out", "--yes", "--allow_unevaluated", "--facts", str(facts))
    files = hub.files(REPO)
    assert {"conversion.json", "facts.json", "model.safetensors", "README.md"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "facebook/hubert-base-ls960"
    assert "# The authors' LASER on HuBERT base" in card.text
    assert "`authors.pt`" in card.text
    assert str(tmp_path).encode() not in b"".join(files.values())
    # Results find the weights, and a changed file is refused.
    result = make_result(tmp_path / "qbe", REPO, json.loads(files["conversion.json"])["weights_sha256"])
    publish("--results", str(result), "--yes")
    assert "0.4322" in hub.files(REPO)["README.md"].decode()
    model = tmp_path / "out" / "model.safetensors"
    state = load_file(model)
    state["encoder.layer_norm.bias"][0] += 1
    save_file(state, model, metadata={"format": "pt"})
    with pytest.raises(LaserError, match="was changed or damaged after conversion ended"):
        publish(tmp_path / "out", "--allow_unevaluated")


@pytest.mark.filterwarnings("ignore")
def test_the_programs_of_a_card_run(hub, make_run, publish, tmp_path, monkeypatch):
    """Every Python block of a published card, one after the other, with `pipeline` as it works."""
    publish(make_run(hub=hub), "--yes")
    (tmp_path / "my-vocabulary").mkdir()
    (tmp_path / "my-vocabulary" / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", hub.files(REPO)["README.md"].decode(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    assert torch.equal(names["frames"], names["outputs"].last_hidden_state)  # of the pipeline, and of the model
    assert names["padded"].shape[0] == 2
    assert names["features"].shape == names["frames"].shape
    assert names["model"].lm_head.out_features == 4
    with pytest.raises((OSError, ValueError, TypeError)):  # as the card says: an encoder has no tokenizer
        AutoProcessor.from_pretrained(REPO)
