"""What the demo does to its folder; `tests/test_package.py` runs all of it."""

from __future__ import annotations

from laser_hf.demo import __main__ as demo
from laser_hf.records import TRAINING_RECORD, read_record
from laser_hf.superb.discrimination import WordReport


def test_a_second_demo_starts_over(tmp_path, monkeypatch, capsys):
    """With little to train and nothing to measure."""
    report = WordReport(**dict.fromkeys(WordReport.__dataclass_fields__, 1))
    monkeypatch.setattr(demo, "find_audio_files", lambda folder: [])
    monkeypatch.setattr(demo, "encode", lambda *given: ({},))
    monkeypatch.setattr(demo, "word_discrimination", lambda *given: report)
    few = ["--eval_data", "", "--plots", "false", "--pairs_per_update", "2", "--dataloader_num_workers", "0"]
    for updates in (2, 1):
        demo.main(["--output_dir", str(tmp_path / "demo"), "--max_steps", str(updates), *few])
        assert read_record(tmp_path / "demo" / TRAINING_RECORD)["updates"] == updates
    assert "same / different" in capsys.readouterr().out
