"""Transcribing files with the probe that a run left."""

from __future__ import annotations

import argparse

import pytest
import soundfile
import torch
from conftest import make_model

from laser_hf.superb.recognition import transcribe


def test_transcribing(finished_asr, finished_pr, tiny_encoder, corpus, tmp_path, capsys):
    audio = corpus / "test" / "14" / "1" / "14-1-0000.flac"
    expected = (finished_pr[0] / "test" / "hyp.txt").read_text().splitlines()[0].rpartition(" (")[0]
    assert (
        transcribe.Transcriber(finished_pr[0])(torch.from_numpy(soundfile.read(audio, dtype="float32")[0])) == expected
    )
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"")
    parser = argparse.ArgumentParser()
    transcribe.add_arguments(parser)
    with pytest.raises(SystemExit) as status:
        transcribe.run(parser.parse_args(["--probe", str(finished_pr[0]), "--device", "cpu", str(bad), str(audio)]))
    assert status.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == f"{audio}\t{expected}\n"
    assert "bad.wav: not transcribed, empty" in captured.err
    words = ["--probe", str(finished_asr[0]), "--device", "cpu", str(audio)]
    assert set(transcribe.run(parser.parse_args(words))) == {str(audio)}


def test_transcribing_with_the_wrong_encoder(finished_pr, tmp_path):
    make_model(seed=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="are not those that the probe"):
        transcribe.Transcriber(finished_pr[0], model=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no finished probe"):
        transcribe.Transcriber(tmp_path)
