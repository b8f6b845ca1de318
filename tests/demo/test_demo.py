"""`make demo`, shortened."""

from __future__ import annotations

import json

import pytest

from laser_hf.demo import __main__ as demo


@pytest.mark.slow
def test_the_demo_ends_with_its_table(tmp_path, capsys):
    output = tmp_path / "demo"
    demo.main(["--output_dir", str(output), "--max_steps", "2", "--eval_on_start", "false", "--max_eval_samples", "4"])
    printed = capsys.readouterr().out
    assert "same / different" in printed
    assert f"from_pretrained({str(output)!r})" in printed
    words = json.loads((output / "results" / "words.json").read_text())
    assert words["before"]["same_pairs"] == words["after"]["same_pairs"] > 100
    assert words["before"]["average_precision"] > 5 * words["before"]["chance"]
    assert words["before"]["same_distance"] != words["after"]["same_distance"]
    assert (output / "plots" / "alignment.png").is_file()
    # Run again: the demo starts over.
    demo.main(["--output_dir", str(output), "--max_steps", "1", "--eval_data", "", "--plots", "false"])
    assert json.loads((output / "laser_config.json").read_text())["updates"] == 1
