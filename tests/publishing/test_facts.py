"""Facts files: complete for every kind of card, refused where they know nothing, true to what the run did."""

from __future__ import annotations

import importlib.resources
import json

import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard

from laser_hf.demo import ENCODER_DIR
from laser_hf.encoders import load_pretrained
from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES
from laser_hf.publishing.facts import SPEECH_KEYS, card_file, find_facts, listed, published_values
from laser_hf.records import tensors_digest

from .conftest import make_record


def test_published_values_are_of_this_base_and_method():
    rows = published_values(make_record(), "HuBERT base", "LASER")
    assert {row["model"] for row in rows} == {"HuBERT base", "HuBERT base with LASER"}
    assert all(row["source"].startswith("[") for row in rows)
    assert published_values(make_record(), "a small demo HuBERT", "LASER") == []
    score = {**make_record(), "method": "score", "preset": "hubert-base-score"}
    assert "HuBERT base with SCORE" in {row["model"] for row in published_values(score, "HuBERT base", "SCORE")}


def test_presets_with_published_values_are_shipped_and_of_the_papers_views():
    for name in json.loads(card_file("texts.json"))["published_presets"]:
        preset = json.loads((REPOSITORY / "laser_hf" / "presets" / f"{name}.json").read_text())
        assert "noise" not in preset.get("perturbations", ["speed_pitch"])


def local_record(path: str, digest: str = "0" * 64) -> dict:
    record = make_record()
    record["base_model"].update(name=path.split("/")[-1], local=True, revision=None)
    record["recipe"]["model"]["model_name_or_path"] = path
    record["recipe"]["content"] = {"model_name_or_path": digest}
    return record


def test_base_models_on_the_disk_that_are_known(tmp_path):
    by_path = find_facts(local_record("/models/facebook/hubert-large-ll60k"))
    assert (by_path["base_title"], by_path["base_model"]) == ("HuBERT large", "facebook/hubert-large-ll60k")
    cache = "/home/me/.cache/huggingface/hub/models--microsoft--wavlm-base-plus/snapshots/0123"
    assert find_facts(local_record(cache))["base_model"] == "microsoft/wavlm-base-plus"
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "facebook/wav2vec2-base"}))
    assert find_facts(local_record(str(tmp_path)))["base_model"] == "facebook/wav2vec2-base"
    # A copy of the shipped encoder, wherever it lies.
    digest = tensors_digest(load_pretrained(str(ENCODER_DIR))[0].state_dict())
    copy = find_facts(local_record("/somewhere/mine", digest))
    assert copy["base_title"] == "a small demo HuBERT"
    assert copy["base_model"] is None
    with pytest.raises(LaserError, match="above all its licence"):
        find_facts(local_record("/somewhere/mine"))
    named = find_facts(local_record("/somewhere/mine"), {"base_model": "utter-project/mHuBERT-147"})
    assert (named["licence"], named["base_model"]) == ("cc-by-nc-sa-4.0", "utter-project/mHuBERT-147")
    assert named["title"] == "MHuBERT-147, fine-tuned with LASER" or named["title"].startswith("mHuBERT-147")


def test_the_shipped_encoder_has_one_licence():
    entry = next(b for b in json.loads(card_file("bases.json"))["bases"] if "laser_hf/demo/encoder" in b["match"])
    assert entry["licence"] == ModelCard.load(ENCODER_DIR / "README.md").data.license == "cc-by-4.0"
    assert "CC BY 4.0" in entry["licence_text"]


COMMON = (
    "facebook/hubert-base-ls960 facebook/hubert-large-ll60k facebook/hubert-xlarge-ll60k microsoft/wavlm-base "
    "microsoft/wavlm-base-plus microsoft/wavlm-large facebook/wav2vec2-base facebook/wav2vec2-large "
    "facebook/data2vec-audio-base utter-project/mHuBERT-147 TencentGameMate/chinese-hubert-base "
    "lengyue233/content-vec-best"
)


@pytest.mark.parametrize("name", COMMON.split())
def test_common_base_models_are_known(name):
    record = make_record()
    record["base_model"]["name"] = name
    facts = find_facts(record)
    assert facts["base_model"] == name
    assert facts["licence_text"].endswith(".")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"license": "mit"}, "unknown keys license; known are base_model"),
        ({"speech": "German"}, "speech must be an object with title, licence, languages"),
        ({"speech": {"languages": ["de"]}}, "speech needs a title"),
        ({"speech": {"title": "x", "language": "de"}}, "unknown keys language; known are title"),
    ],
)
def test_facts_that_no_card_has(given, said):
    with pytest.raises(LaserError, match=said):
        find_facts(make_record(), given)


def test_unknown_base_models_and_methods_are_refused():
    record = make_record()
    record["base_model"]["name"] = "someone/hubert-base-ls960"
    with pytest.raises(LaserError, match=r"someone/hubert-base-ls960.*licence.*facts\.json.*--facts"):
        find_facts(record)
    facts = find_facts(record, {"licence": "mit"})
    assert (facts["title"], facts["licence"]) == ("Someone/hubert-base-ls960, fine-tuned with LASER", "mit")
    with pytest.raises(LaserError, match=r"unknown objective 'other'"):
        find_facts({**make_record(), "method": "other"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": ["speed_pitch"]}, "tempo and speaker's pitch"),
        ({"name": ["speed_pitch"], "speed_factors": [1.0]}, "speaker's pitch"),
        ({"name": ["noise"], "noise_dir": "not/here"}, "background noise"),
        ({"name": ["voice", "equalizer"]}, "speaker's voice and channel"),
        ({"name": ["speed_pitch", "noise"]}, "tempo, speaker's pitch and background noise"),
    ],
)
def test_what_the_views_differ_in_comes_from_the_perturbations(values, said):
    record = make_record()
    record["recipe"]["perturbations"] = values
    assert listed(find_facts(record)["changes"]) == said


@pytest.mark.parametrize("base", ["hubert", "wavlm"])
@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_has_facts_on_every_base_model(method, base):
    facts = find_facts({**make_record(base), "method": method})
    assert facts["method_title"] in facts["title"]
    assert facts["summary"].endswith(".")
    assert facts["citation"].startswith("@")
    # What is said of the demo's encoder alone is said of no other.
    assert facts["note"] is None
    assert "demo" not in facts["tags"]


def test_card_files_are_complete():
    texts = json.loads(card_file("texts.json"))
    for base in json.loads(card_file("bases.json"))["bases"]:
        assert base["licence"] in texts["licences"]
        assert base["licence_source"]
    for entry in texts["speech"]:
        assert set(entry) == {"match", *SPEECH_KEYS}


def test_card_files_lie_in_the_installed_package(tmp_path, monkeypatch):
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / "texts.json").write_text("installed")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    assert card_file("texts.json") == "installed"


def test_the_demo_says_that_it_is_one():
    record = make_record()
    record["base_model"].update(name="encoder", local=True)
    record["recipe"]["model"]["model_name_or_path"] = "{laser_hf}/demo/encoder"
    facts = find_facts(record)
    assert "demonstration" in facts["note"]
    assert "demo" in facts["tags"]
