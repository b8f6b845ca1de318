"""Facts files: complete for every kind of card, refused where they know nothing, true to what the run did."""

from __future__ import annotations

import pytest

from laser_hf.publishing.facts import CardError, find_facts, published_values

from .conftest import CARDS, make_record


def test_published_values_are_of_this_base_and_method():
    rows = published_values("HuBERT base", "laser")
    assert {row["model"] for row in rows} == {"HuBERT base", "HuBERT base with LASER"}
    assert all(row["source"].startswith("[") for row in rows)
    assert published_values("the small HuBERT that laser_hf ships for its demo", "laser") == []
    assert "HuBERT base with SCORE" in {row["model"] for row in published_values("HuBERT base", "score")}


def test_unknown_base_models_and_methods_are_refused():
    record = make_record()
    record["base_model"]["name"] = "someone/hubert-base-ls960"
    with pytest.raises(CardError, match=r"someone/hubert-base-ls960.*licence.*--facts"):
        find_facts(record, CARDS)
    given = {"base_title": "Some HuBERT", "base_training_data": "speech", "licence": "mit", "licence_text": "MIT."}
    facts = find_facts(record, CARDS, given)
    assert (facts["title"], facts["licence"]) == ("Some HuBERT, fine-tuned with LASER", "mit")
    with pytest.raises(CardError, match=r"nothing is known here about the method 'other'"):
        find_facts({**make_record(), "method": "other"}, CARDS)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["speed_pitch"], "once in another speed and pitch, and learned"),
        (["noise"], "once with noise added, and learned"),
        (["voice", "equalizer"], "once in a changed voice and with other strengths of low and high tones, and learned"),
        (["speed_pitch", "noise", "echo"], "once in another speed and pitch, with noise added and changed by `echo`, "),
        ([], "once unchanged, and learned"),
    ],
)
def test_the_summary_says_how_speech_was_perturbed(names, said):
    record = make_record()
    record["recipe"]["data"]["perturbations"] = names
    assert said in find_facts(record, CARDS)["summary"]


def test_records_from_before_there_was_a_choice_are_of_speed_and_pitch():
    record = make_record()
    del record["recipe"]["data"]["perturbations"]
    assert "once in another speed and pitch" in find_facts(record, CARDS)["summary"]
    record["recipe"]["data"]["perturbation"] = ["noise"]
    assert "once with noise added" in find_facts(record, CARDS)["summary"]


@pytest.mark.parametrize("base", ["hubert", "wavlm"])
@pytest.mark.parametrize("method", ["laser", "soft_dtw", "score", "spin"])
def test_every_method_has_facts_on_every_base_model(method, base):
    facts = find_facts({**make_record(base), "method": method}, CARDS)
    assert facts["method_title"] in facts["title"]
    assert "{" not in facts["summary"] + facts["recipe"]
    # What is said of the demo's encoder alone is said of no other.
    assert facts["note"] is None
    assert "demo" not in facts["tags"]


def test_the_demo_says_that_it_is_one():
    record = make_record()
    record["base_model"].update(name="encoder", local=True)
    record["recipe"]["model"]["model_name_or_path"] = "{laser_hf}/demo/encoder"
    facts = find_facts(record, CARDS)
    assert "demonstration" in facts["note"]
    assert "demo" in facts["tags"]
