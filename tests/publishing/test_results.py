"""Evaluation records: whose they are, and what of them counts as a benchmark's result."""

from __future__ import annotations

import json

from huggingface_hub import ModelCard

from laser_hf.publishing.facts import BASE, OTHER, OWN, hub_entries, model_index

from .conftest import BASE_DIGEST, DIGEST, make_record, make_result, read, render


def test_results_belong_to_the_weights_whose_digest_they_carry(tmp_path):
    results, _ = read(
        tmp_path,
        make_result(tmp_path / "own", "some/where", DIGEST),
        make_result(tmp_path / "base", "some/where", BASE_DIGEST),
        make_result(tmp_path / "other", "some/where", "c" * 64),
    )
    assert [result.whose for result in results] == [OWN, BASE, OTHER]
    assert "**Not evaluated.**" in render(make_record(), results[1:])


def test_files_that_are_no_evaluation_records(tmp_path):
    for name, content in (("other", {"accuracy": 1}), ("list", [1]), ("training", make_record())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    results, unread = read(tmp_path, *(tmp_path / name / "results.json" for name in ("other", "list", "training")))
    assert results == []
    assert unread == ["results/other.json", "results/list.json", "results/training.json"]


def test_quick_results_are_no_benchmark(tmp_path):
    both = [
        make_result(tmp_path / protocol, "x", DIGEST, task="asr", protocol=protocol) for protocol in ("superb", "quick")
    ]
    for paths, count in ((both[:1], 1), (both[1:], 0), (both, 1)):
        results, _ = read(tmp_path, *paths)
        assert len(model_index(results)) == len(hub_entries(results, "https://example.org")) == count
        assert ("model-index" in render(make_record(), results)) is bool(count)
    card = render(make_record(), results)
    assert "| speech recognition (SUPERB) |" in card
    assert "| speech recognition (quick, not a SUPERB number) |" in card


def test_benchmark_results_of_other_models_stay_out_of_the_metadata(tmp_path):
    results, _ = read(tmp_path, make_result(tmp_path / "asr", "x", BASE_DIGEST, task="asr"))
    assert model_index(results) == hub_entries(results, "https://example.org") == []


def test_metadata_of_all_benchmark_tasks(tmp_path):
    mtwv = {"metrics": [{"metric": "mtwv", "value": 0.0736, "unit": "fraction", "split": "eval", "layer": 12}]}
    results, _ = read(
        tmp_path,
        *(make_result(tmp_path / task, "x", DIGEST, task=task) for task in ("asr", "pr")),
        make_result(tmp_path / "qbe", "x", DIGEST, protocol="superb", **mtwv),
    )
    (index,) = ModelCard(render(make_record(), results)).data.to_dict()["model-index"]
    assert index["name"] == "hubert-laser"
    found = [
        (r["task"]["type"], r["dataset"].get("config"), r["dataset"]["split"], r["metrics"][0]["value"])
        for r in index["results"]
    ]
    assert found == [
        ("automatic-speech-recognition", "clean", "test", 6.1839),
        ("phoneme-recognition", "clean", "test", 4.9688),
        ("query-by-example", None, "eval", 0.0736),
    ]
    # The Hub's own file knows no metric, so that only word error rates are in it.
    assert [entry.value for entry in hub_entries(results, "https://example.org")] == [6.1839]
