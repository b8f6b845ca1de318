"""A CTC head on the shipped encoder learns twenty real utterances by heart: the whole chain works."""

from __future__ import annotations

from pathlib import Path

import pytest

import laser_hf
from laser_hf.superb.__main__ import main

ENCODER = Path(laser_hf.__file__).parent / "demo" / "encoder"


@pytest.mark.slow
def test_twenty_real_utterances_by_heart(shared_speech, tmp_path):
    files = [p for p in (shared_speech / "train-clean-5").rglob("*-*-*.*") if p.suffix in (".flac", ".ogg", ".opus")]
    for path in sorted(files, key=lambda path: (path.stat().st_size, path.name))[:20]:
        chapter = tmp_path / "speech" / "few" / path.parent.parent.name / path.parent.name
        chapter.mkdir(parents=True, exist_ok=True)
        (chapter / path.name).symlink_to(path)
        transcripts = next(path.parent.glob("*.trans.txt"))
        if not (chapter / transcripts.name).exists():
            (chapter / transcripts.name).symlink_to(transcripts)
    words = f"""asr --model {ENCODER} --data {tmp_path / "speech"} --output_dir {tmp_path / "out"} --protocol quick
        --train_split few --dev_split few --test_split few --max_steps 120 --eval_steps 40 --learning_rate 1e-2
        --batch_size 10 --halve_above_samples 1000000 --lstm_layers 1 --lstm_size 64 --projection_size 64 --dropout 0
        --feature_masks 0 --time_masks 0 --device cpu --disable_tqdm --report_to none"""
    record = main(words.split())
    assert record["data"]["train"]["utterances"] == 20
    errors = {metric["metric"]: metric["value"] for metric in record["metrics"] if metric["split"] == "few"}
    assert errors["wer"] < 5
    assert errors["cer"] < 2
