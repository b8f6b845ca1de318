"""The card says what the records say, and nothing else."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import pytest
from conftest import make_model
from huggingface_hub import ModelCard

from laser_hf.publishing.card import CardError, find_facts, find_speech, placeholders, read_results, render_card

from .conftest import CARDS, make_record, make_result

GOLDEN = Path(__file__).parent / "golden_card.md"
CONFIG = {**make_model().config.to_dict()}
PREPROCESSOR = {"do_normalize": False, "sampling_rate": 16000}


def render(record: dict, results=(), **values) -> str:
    return render_card(
        record,
        find_facts(record, CARDS),
        CARDS / "model_card.md.jinja",
        repo_id="org/hubert-laser",
        config=CONFIG,
        preprocessor=PREPROCESSOR,
        speech=find_speech(record, CARDS),
        results=results,
        **values,
    )


def parse(card: str) -> ModelCard:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ModelCard(card)


def test_whole_card_against_the_golden_text(tmp_path):
    (tmp_path / "qbe.json").write_text(json.dumps(make_result(str(tmp_path))))
    words = {
        "task": "word discrimination",
        "before": {"ratio": 0.75, "words": 9},
        "after": {"ratio": 0.6875, "words": 9},
    }
    (tmp_path / "words.json").write_text(json.dumps(words))
    files = {f"results/{name}.json": tmp_path / f"{name}.json" for name in ("qbe", "words")}
    rows, own, unread = read_results(files, [str(tmp_path)])
    assert (own, unread) == (list(files), [])
    card = render(make_record(), rows, plots=["plots/alignment.png", "plots/loss_terms.png"])
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(card)
    assert card == GOLDEN.read_text()
    assert placeholders(card) == []


def test_front_matter():
    data = parse(render(make_record())).data.to_dict()
    assert data == {
        "language": ["en"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["laser", "speech", "self-supervised", "hubert"],
        "base_model": "facebook/hubert-base-ls960",
        "datasets": ["openslr/librispeech_asr"],
    }


def test_an_unevaluated_model_says_so_first():
    assert parse(render(make_record())).text.strip().startswith("> **Not evaluated.**")


def test_results_of_other_models_alone_leave_a_model_unevaluated(tmp_path):
    (tmp_path / "base.json").write_text(json.dumps(make_result("facebook/hubert-base-ls960")))
    rows, own, _ = read_results({"results/base.json": tmp_path / "base.json"}, [str(tmp_path), "org/hubert-laser"])
    assert [row["model"] for row in rows] == ["hubert-base-ls960"]
    assert own == []
    assert "**Not evaluated.**" in render(make_record(), rows, evaluated=False)


def test_summaries_and_unknown_layouts(tmp_path):
    summary = {"mfcc": make_result("mfcc"), "org/hubert-laser": make_result("org/hubert-laser")}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "other.json").write_text('{"accuracy": 1}')
    files = {name: tmp_path / name for name in ("summary.json", "other.json")}
    rows, own, unread = read_results(files, ["org/hubert-laser"])
    assert [row["model"] for row in rows] == ["mfcc", "this model"]
    assert rows[1]["value"] == "0.4322 fraction"
    assert (own, unread) == (["summary.json"], ["other.json"])


def test_wavlm_carries_its_own_licence():
    card = render(make_record("wavlm"))
    assert parse(card).data.license == "cc-by-sa-3.0"
    assert "WavLM base" in card
    assert "microsoft/wavlm-base" in card


def test_collapse_is_reported_at_the_top():
    record = make_record()
    record["collapse"]["fired_at"] = 1200
    assert "collapse was reported in training**, at update 1200" in parse(render(record)).text[:600]


def test_unknown_speech_is_said_to_be_unknown():
    record = make_record()
    record["data"].update(source="/data/recordings", name=None, split=None)
    card = render(record)
    assert "origin and licence of the fine-tuning speech (the local folder `recordings`) are not recorded" in card
    assert "LibriSpeech](https://www.openslr.org" not in card
    assert parse(card).data.datasets is None
    assert "/data" not in card


def test_the_demo_encoder_and_speech_are_known():
    record = make_record()
    folder = "/anywhere/site-packages/laser_hf/demo"
    record["base_model"].update(name="encoder", local=True, revision=None)
    record["recipe"]["model"]["model_name_or_path"] = f"{folder}/encoder"
    record["data"]["source"] = f"{folder}/speech/train"
    card = render(record)
    assert "The laser_hf demo encoder" in card
    assert "synthetic" in card
    assert parse(card).data.base_model is None


def test_no_held_out_speech():
    record = make_record()
    for when in ("first", "last"):
        record[when] = {key: value for key, value in record[when].items() if not key.startswith("eval_")}
    assert "No held-out speech was used in training." in render(record)


def test_unknown_base_model_is_refused():
    record = make_record()
    record["base_model"]["name"] = "someone/hubert-base-ls960"
    with pytest.raises(CardError, match=r"someone/hubert-base-ls960.*licence.*--facts"):
        find_facts(record, CARDS)


def test_incomplete_records_are_refused():
    record = make_record()
    del record["recipe"]["objective"]["gamma"]
    with pytest.raises(CardError, match="gamma"):
        render(record)


@pytest.mark.parametrize("gap", ["{{ name }}", "TODO", "[More Information Needed]", "None", "{% if %}", "nan"])
def test_gaps_are_found(gap):
    assert placeholders(f"# Title\n\nWER: {gap} %\n")[0].startswith("line 3: ")


def test_words_that_only_look_like_gaps():
    assert placeholders("Finance, none of them, nano, todos, undefinable {a}") == []


def test_facts_files_are_complete():
    keys = set(json.loads((CARDS / "hubert-laser.json").read_text()))
    for path in CARDS.glob("*.json"):
        facts = json.loads(path.read_text())
        if path.name == "speech.json":
            assert all(set(entry) == {"match", "title", "attribution", "limits"} for entry in facts["sources"])
            continue
        assert set(facts) == keys, path
        assert re.fullmatch(r"[a-z0-9.-]+", facts["licence"])
