"""Interrupted, repeated and finished `asr` and `pr` runs: resumed, refused, kept or overwritten."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from laser_hf.errors import LaserError
from laser_hf.superb.ctc import data
from laser_hf.superb.features import EncoderFeatures

from .conftest import Interrupted, interrupt_at, run


@pytest.mark.slow
@pytest.mark.parametrize("task", ["asr", "pr"])
def test_resumed_equals_uninterrupted(task, request, tiny_encoder, corpus, lexicon, tmp_path, monkeypatch):
    folder, record = request.getfixturevalue(f"finished_{task}")
    words = ["--lexicon", str(lexicon)] if task == "pr" else []
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            run(task, tiny_encoder, corpus, tmp_path, *words)
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not (tmp_path / "results.json").exists()
    resumed = run(task, tiny_encoder, corpus, tmp_path, *words)
    for name, value in load_file(folder / "ctc_head.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "ctc_head.safetensors")[name]), name
    assert resumed["metrics"] == record["metrics"]
    assert resumed["selected"] == record["selected"]
    for name in ("hyp.txt", "worst.txt"):
        assert (tmp_path / "test" / name).read_text() == (folder / "test" / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("after", ["moved", "newest_incomplete"])
def test_a_run_goes_on_after(after, finished_pr, tiny_encoder, corpus, lexicon, tmp_path, monkeypatch):
    """A folder that was moved, and a checkpoint whose writing was interrupted: the end is the same."""
    words = ["--lexicon", str(lexicon)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            run("pr", tiny_encoder, corpus, tmp_path / "a", *words)
    folder = (tmp_path / "a").rename(tmp_path / "b") if after == "moved" else tmp_path / "a"
    if after == "newest_incomplete":
        (folder / "checkpoint-4" / "files.json").unlink()
    record = run("pr", tiny_encoder, corpus, folder, *words)
    assert record["metrics"] == finished_pr[1]["metrics"]
    assert record["selected"] == finished_pr[1]["selected"]
    weights = load_file(folder / "ctc_head.safetensors")
    assert all(torch.equal(v, weights[n]) for n, v in load_file(finished_pr[0] / "ctc_head.safetensors").items())
    assert (folder / "broken-checkpoint-4").is_dir() == (after == "newest_incomplete")
    assert not list(folder.glob("checkpoint-*"))


@pytest.mark.slow
def test_a_feature_cache_goes_on(tiny_encoder, corpus, lexicon, tmp_path, monkeypatch, finished_pr):
    """What was encoded before an interruption is not encoded again, and what was read is not decoded again."""
    calls = {"encoded": 0, "decoded": 0}

    def counting(place, name, what):
        real = getattr(place, name)

        def count(*arguments, **keywords):
            calls[what] += 1
            if interrupted and calls["encoded"] == 2:
                raise Interrupted
            return real(*arguments, **keywords)

        monkeypatch.setattr(place, name, count)

    counting(EncoderFeatures, "states", "encoded")
    counting(data, "decode_audio", "decoded")
    words = ["--lexicon", str(lexicon)]
    interrupted = True
    with pytest.raises(Interrupted):
        run("pr", tiny_encoder, corpus, tmp_path, *words)
    assert len(list(tmp_path.glob("features/*/batch-*"))) == 1
    calls.update(encoded=0, decoded=0)
    interrupted = False
    record = run("pr", tiny_encoder, corpus, tmp_path, *words)
    assert calls == {"encoded": 2, "decoded": 8}  # dev and test, four utterances each
    assert record["metrics"] == finished_pr[1]["metrics"]


def test_an_unfinished_run_of_another_recipe_is_not_resumed(tiny_encoder, corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted):
            run("asr", tiny_encoder, corpus, tmp_path)
    with pytest.raises(LaserError, match=r"--dropout 0.3 -> 0.5"):
        run("asr", tiny_encoder, corpus, tmp_path, "--dropout", "0.5")


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten_by_accident(finished_asr, tiny_encoder, corpus, tmp_path):
    with pytest.raises(LaserError, match="holds a finished run"):
        run("asr", tiny_encoder, corpus, finished_asr[0])
    copy = tmp_path / "copy"
    shutil.copytree(finished_asr[0], copy)
    (copy / "mine.txt").write_text("kept")
    record = run("asr", tiny_encoder, corpus, copy, "--overwrite_output_dir")
    assert (copy / "mine.txt").exists()
    assert record["metrics"] == finished_asr[1]["metrics"]


@pytest.mark.slow
def test_several_runs_are_resumed(finished_pr, tiny_encoder, corpus, lexicon, tmp_path, monkeypatch):
    words = ["--lexicon", str(lexicon), "--runs", "2"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            run("pr", tiny_encoder, corpus, tmp_path, *words)
    record = run("pr", tiny_encoder, corpus, tmp_path, *words)
    values = [each["metrics"][0]["value"] for each in record["runs"]]
    assert [each["seed"] for each in record["runs"]] == [1337, 1338]
    assert values[0] == finished_pr[1]["value"]  # the first of several runs is the single one
    for name, value in load_file(finished_pr[0] / "ctc_head.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "seed-1337" / "ctc_head.safetensors")[name]), name
    assert record["runs"][0]["selected"] == finished_pr[1]["selected"]
    assert record["value"] == pytest.approx(sum(values) / 2)
    assert record["standard_deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert sum(record["layer_weights"]) == pytest.approx(1)
    assert (tmp_path / "plots" / "layer_weights.png").is_file()
    assert (tmp_path / "seed-1338" / "test" / "hyp.txt").is_file()
    assert not (tmp_path / "features").exists()
