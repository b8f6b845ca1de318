"""push_to_hub.py on folders that must not be published: every refusal, and its reason."""

from __future__ import annotations

import json
import pickle

import hypothesis
import pytest
import torch
from conftest import make_model
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from laser_hf.encoders import load_encoder
from laser_hf.errors import LaserError
from laser_hf.publishing import push, sample_features
from laser_hf.publishing.export import difference, load_checkpoint, load_in_fresh_process
from laser_hf.publishing.repository import without_private
from laser_hf.records import tensors_digest

from .conftest import Run, make_record, make_result

REPO = "org/hubert-laser"


@pytest.fixture
def refuse(publish, capsys, base_at_hand):
    """Runs the tool on a folder and returns what it says on refusing."""

    def run(folder, *options: str, **values) -> str:
        if isinstance(folder, Run):
            base_at_hand(folder)
        with pytest.raises(LaserError) as caught:
            publish(folder, *options, **values)
        assert capsys.readouterr().out == ""
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture
def show(publish, base_at_hand):
    """Runs the tool without --yes on a folder that it must accept, and returns what it shows, with the card."""

    def run(folder: Run, *options: str) -> str:
        base_at_hand(folder)
        return publish(folder, "--show_card", *options)

    return run


def test_folders_that_are_no_finished_run(make_run, refuse, tmp_path):
    assert "is no folder" in refuse(tmp_path / "nothing")
    run = make_run()
    (run / "config.json").unlink()
    (run / "preprocessor_config.json").unlink()
    assert "lacks config.json, preprocessor_config.json" in refuse(run)
    (run / "laser_config.json").unlink()
    assert "has not finished" in refuse(run)


def test_records_that_cannot_be_read(make_run, refuse):
    run = make_run()
    run.change(base_model=None)
    assert "does not say which base model" in refuse(run)
    run.change(schema_version=1)
    assert "has schema version 1" in refuse(run)
    (run / "laser_config.json").write_text("{")
    assert "cannot read" in refuse(run)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--repo_id", "a/b/c"], "--repo_id a/b/c"),
        (["--tag", "a b"], "is no tag name"),
        (["--create_pr", "--revision", "dev"], "leave --revision out"),
        (["--create_pr", "--tag", "v1.0"], "tag it after merging"),
    ],
)
def test_what_no_hub_would_take(options, reason, make_run, refuse):
    assert reason in refuse(make_run(), *options)


def test_unevaluated_models(make_run, refuse):
    run = make_run(evaluated=False)
    assert "--allow_unevaluated" in refuse(run)
    run.add_result("base", run.base_digest)
    assert "there are some of facebook/hubert-base-ls960" in refuse(run)
    run.add_result("own", run.digest, metrics=[{"metric": "wer", "value": None, "unit": "percent", "split": "test"}])
    assert "no downstream result of this model" in refuse(run)


def test_results_of_other_weights_under_this_name(make_run, refuse):
    run = make_run()
    run.add_result("old", "0" * 64, model=str(run))
    assert f"results/old.json names this model ({run}) but was made with other weights (000000000000…, not" in refuse(
        run
    )
    run.add_result("old", None, model=REPO)
    assert f"names this model ({REPO}) but has no digest" in refuse(run)


def test_what_was_measured_of_the_base_model_in_the_same_record(make_run, refuse, show):
    run = make_run(evaluated=False)
    ratio = {"metric": "ratio", "unit": "", "split": "heldout"}
    base = {"model": "encoder", "weights_sha256": run.base_digest, "metrics": [{**ratio, "value": 0.75}]}
    words = {"task": "discrimination", "metrics": [{**ratio, "value": 0.5}], "base": base}
    run.add_result("words", run.digest, **words)
    task = "word and phone discrimination (quick, not a SUPERB number)"
    measure = "mean distance, same word / different words (lower is better), heldout"
    assert f"| {task} | {measure} | 0.5 | 0.75 | " in show(run)
    run.add_result("words", "0" * 64, model=str(run), **words)
    assert "was made with other weights" in refuse(run)


def test_results_from_elsewhere(make_run, show, tmp_path):
    run = make_run(evaluated=False)
    files = [str(make_result(tmp_path / task, "wherever", run.digest, task=task)) for task in ("asr", "pr")]
    out = show(run, "--results", *files)
    assert (
        "| speech recognition (SUPERB) | word error rate (lower is better), test-clean | 6.184 % | not measured |"
        in out
    )
    assert "results/asr.json" in out
    # This process is offline by the tests' settings.
    assert "the target repository was not checked: HF_HUB_OFFLINE is set" in out


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2", "data2vec-audio"])
def test_digest_is_that_of_evaluation_records(kind, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    # Half precision on the disk is float32 in an evaluation.
    model.half().save_pretrained(tmp_path / "half")
    for folder in (tmp_path, tmp_path / "half"):
        evaluated = tensors_digest(load_encoder(folder).model.state_dict())
        exported = load_checkpoint(folder / "model.safetensors")
        assert tensors_digest({name: tensor.float() for name, tensor in exported.items()}) == evaluated


def test_weights_that_are_not_finite_or_damaged(make_run, refuse):
    run = make_run()
    state = load_file(run / "model.safetensors")
    state["encoder.layers.0.attention.k_proj.bias"][3] = float("nan")
    save_file(state, run / "model.safetensors", metadata={"format": "pt"})
    assert "not finite: encoder.layers.0.attention.k_proj.bias" in refuse(run)
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    assert "it is damaged or cut off" in refuse(run)


@pytest.mark.parametrize(
    "name", ["encoder.layers.0.attention.k_proj.bias", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"]
)
def test_frozen_weights_that_changed(name, make_run, refuse):
    run = make_run()
    state = load_file(run / "model.safetensors")
    state[name].view(-1)[0] += 1e-6
    save_file(state, run / "model.safetensors", metadata={"format": "pt"})
    said = refuse(run)
    assert "1 frozen weights differ from the base model's" in said
    assert name in said


def test_records_that_do_not_say_what_was_trained(make_run, refuse):
    run = make_run()
    run.change(trained_parameters=[])
    assert "does not say which parameters were trained" in refuse(run)
    run.change(trained_parameters=["encoder.layers.7.attention.k_proj.weight"])
    assert "lacks: encoder.layers.7.attention.k_proj.weight" in refuse(run)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_still_the_base_model(form, make_run, refuse, show, tmp_path):
    record = make_record()
    base = tmp_path / "laser_hf" / "demo" / "encoder"
    record["base_model"].update(name="encoder", local=True, revision=None)
    record["recipe"]["model"]["model_name_or_path"] = str(base)
    run = make_run(base_model=record["base_model"], recipe=record["recipe"])
    assert f"cannot load the encoder '{base}'" in refuse(run)
    assert "Note: that only the trained layers changed was not checked" in show(run, "--skip_base_check")
    base.mkdir(parents=True)
    (base / "config.json").write_bytes((run / "config.json").read_bytes())
    trained = load_file(run / "model.safetensors")
    for state, reason in (
        (trained, "still those of the base model"),
        (
            {n: t for n, t in trained.items() if n != "encoder.layer_norm.bias"},
            "1 weights that its config.json describes are missing: encoder.layer_norm.bias",
        ),
    ):
        save_file(state, base / form) if form.endswith("safetensors") else torch.save(state, base / form)
        assert reason in refuse(run)
    (base / form).write_bytes(b"no weights")
    assert "whether only the trained layers changed cannot be checked" in refuse(run)


@pytest.mark.parametrize(
    "changes", [{"recipe": {}}, {"sample_features": 3}, {"trained_parameters": 3}, {"base_model": "x"}]
)
def test_records_that_lack_what_they_should_hold(changes, make_run, refuse):
    assert "it was damaged or changed" in refuse(make_run(**changes))


def test_a_damaged_trained_weight_that_no_frame_shows(make_run, refuse):
    run = make_run()
    run.change(weights_sha256=run.digest)
    state = load_file(run / "model.safetensors")
    state["encoder.layers.2.attention.k_proj.weight"].view(-1)[0] += 1e-7
    save_file(state, run / "model.safetensors", metadata={"format": "pt"})
    assert "model.safetensors was changed or damaged after training ended" in refuse(run)


def test_a_pickle_among_the_results(make_run, refuse, tmp_path):
    (tmp_path / "results.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert "cannot read" in refuse(make_run(), "--results", str(tmp_path / "results.pkl"))


def test_base_models_that_cannot_be_had(make_run, publish):
    # This process is offline by the tests' settings, and nothing is in its cache.
    with pytest.raises(LaserError, match="cannot load the encoder 'facebook/hubert-base-ls960'"):
        publish(make_run())


def test_cards_with_gaps(make_run, refuse, tmp_path):
    facts = tmp_path / "facts.json"
    run = make_run()
    for given, reason in (
        ({"licence_text": "TODO"}, "the model card has gaps: line"),
        ({"licence": ""}, "above all its licence"),
        ({"summary": "{{ summary }}"}, "the model card has gaps: line"),
    ):
        facts.write_text(json.dumps(given))
        assert reason in refuse(run, "--facts", str(facts))


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


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"num_hidden_layers": 4}, "does not work with plain AutoModel"),
        ("preprocessor_config.json", {"do_normalize": True}, "frames that differ"),
    ],
)
def test_encoders_that_reload_as_something_else(file, changes, reason, make_run, refuse):
    run = make_run()
    content = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps({**content, **changes}))
    assert reason in refuse(run)


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-2}, {"num_hidden_layers": 2}])
def test_features_tell_encoders_apart(changes):
    model = make_model()
    expected = sample_features(model)
    assert difference(expected, sample_features(model)) is None
    assert difference(expected, sample_features(model, do_normalize=True))
    other = make_model(**changes)
    other.load_state_dict(model.state_dict(), strict=False)
    assert difference(expected, sample_features(other))
    assert not other.training


def test_records_without_features_to_compare_with(make_run, refuse):
    assert "has no sample_features" in refuse(make_run(sample_features=None))


@hypothesis.given(st.lists(st.text("/ab. =~\\:,hf_", max_size=12), max_size=6).map(" ".join))
def test_what_is_published_has_no_absolute_path(text):
    published = without_private(text)
    assert without_private(published) == published
    assert not any(word.startswith(("/a", "/b", "~/a", "~/b")) for word in published.split())


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/me/speech/train-clean-5", "train-clean-5"),
        ("/home/me/", "me"),
        ("train.py --data /data/x --output_dir=~/out/y --seed 1", "train.py --data x --output_dir=y --seed 1"),
        (r"C:\Users\me\run", "run"),
        ("{laser_hf}/demo/encoder", "{laser_hf}/demo/encoder"),
        ("https://huggingface.co/org/name", "https://huggingface.co/org/name"),
        ("facebook/hubert-base-ls960, 3 km/h, 1 / 2", "facebook/hubert-base-ls960, 3 km/h, 1 / 2"),
        ("--hub_token abc --token=def", "--hub_token *** --token=***"),
        ("token hf_" + "x" * 34, "token ***"),
        ("hf_hubert_custom and secret-1", "hf_hubert_custom and ***"),
    ],
)  # fmt: skip
def test_what_is_private_stays(text, published):
    assert without_private({"k": [text, 1, None]}, ["secret-1"]) == {"k": [published, 1, None]}


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit):
        push.main(["--help"])
    out = capsys.readouterr().out
    assert all(word in out for word in ("RUN_DIR", "--yes", "--allow_unevaluated", "hf auth login", "--create_pr"))


@pytest.mark.slow
def test_a_failed_reload_in_a_fresh_process(make_run, refuse):
    """A reload that succeeds in a process of its own is in test_train_and_publish."""
    run = make_run()
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**content, "num_hidden_layers": 4}))
    said = refuse(run, load=load_in_fresh_process)
    assert "does not work with plain AutoModel and AutoFeatureExtractor" in said
    assert "weights and config.json do not fit" in said
