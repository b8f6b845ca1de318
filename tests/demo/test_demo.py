"""`make demo`, shortened."""

from __future__ import annotations

import pytest

from laser_hf.demo import __main__ as demo
from laser_hf.records import TRAINING_RECORD, read_record


@pytest.mark.slow
def test_the_demo_ends_with_its_table(tmp_path, capsys):
    output = tmp_path / "demo"
    demo.main(["--output_dir", str(output), "--max_steps", "2", "--eval_on_start", "false", "--max_eval_samples", "4"])
    printed = capsys.readouterr().out
    assert "same / different" in printed
    assert f"Encoder {output} (AutoModel.from_pretrained loads it)" in printed
    assert "Held-out speech was not measured twice" in printed
    record = read_record(output / "results" / "words.json")
    assert (record["task"], record["protocol"], record["metric"]) == ("discrimination", "quick", "word_ap_across")
    (before,), (after,) = record["base"]["metrics"], record["metrics"]
    assert before["same_pairs"] == after["same_pairs"] > 100
    assert before["value"] == pytest.approx(0.896, abs=5e-4)
    assert before["ratio"] == pytest.approx(0.373, abs=5e-4)
    assert before["same_distance"] != after["same_distance"]
    assert record["value"] == after["value"]
    assert record["weights_sha256"] != record["base"]["weights_sha256"]
    assert record["base"]["model"] == "{laser_hf}/demo/encoder"
    assert (output / "plots" / "alignment.png").is_file()
    # Run again: the demo starts over.
    demo.main(["--output_dir", str(output), "--max_steps", "1", "--eval_data", "", "--plots", "false"])
    assert read_record(output / TRAINING_RECORD)["updates"] == 1
