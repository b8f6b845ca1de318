"""Facts files: complete for every kind of card, refused where they know nothing, true to what the run did."""

from __future__ import annotations

import importlib.resources
import json
import re

import pytest

from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES
from laser_hf.publishing.facts import card_file, find_facts, published_values

from .conftest import make_record


def test_published_values_are_of_this_base_and_method():
    rows = published_values("HuBERT base", "laser", "LASER")
    assert {row["model"] for row in rows} == {"HuBERT base", "HuBERT base with LASER"}
    assert all(row["source"].startswith("[") for row in rows)
    assert published_values("the small HuBERT that laser_hf ships for its demo", "laser", "LASER") == []
    score = published_values("HuBERT base", "score", "SCORE")
    assert "HuBERT base with SCORE" in {row["model"] for row in score}


def test_unknown_base_models_and_methods_are_refused():
    record = make_record()
    record["base_model"]["name"] = "someone/hubert-base-ls960"
    with pytest.raises(LaserError, match=r"someone/hubert-base-ls960.*licence.*--facts"):
        find_facts(record)
    given = {"base_title": "Some HuBERT", "base_training_data": "speech", "licence": "mit", "licence_text": "MIT."}
    facts = find_facts(record, given)
    assert (facts["title"], facts["licence"]) == ("Some HuBERT, fine-tuned with LASER", "mit")
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
    assert find_facts(record)["changes"] == said


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
    for base in json.loads(card_file("bases.json"))["bases"]:
        assert re.fullmatch(r"[a-z0-9.-]+", base["licence"])
        assert base["licence_text"]
    for entry in json.loads(card_file("texts.json"))["speech"]:
        assert set(entry) == {"match", "title", "attribution", "limits"}


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
