"""Whole `asr` and `pr` commands on made-up speech: what they leave, what must not change it, bad input."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from training_runs import fork_two

from laser_hf.errors import LaserError
from laser_hf.records import read_json
from laser_hf.superb.__main__ import main
from laser_hf.superb.ctc.training import CtcTrainer
from laser_hf.superb.features import EncoderFeatures

from .conftest import command, run, write_chapter


@pytest.mark.slow
def test_what_an_asr_run_leaves(finished_asr):
    folder, record = finished_asr
    assert json.loads((folder / "results.json").read_text())["value"] == record["value"]
    assert (record["task"], record["metric"], record["unit"], record["split"]) == ("asr", "cer", "percent", "test")
    assert record["protocol"] == "quick"
    named = [(metric["metric"], metric["split"]) for metric in record["metrics"]]
    assert named == [(metric, split) for split in ("test", "dev") for metric in ("cer", "wer", "uer")]
    assert sum(record["layer_weights"]) == pytest.approx(1)
    assert len(record["layer_weights"]) == 4
    assert record["recipe"]["lstm_size"] == 6
    assert record["recipe"]["cached_features"]
    assert record["changed_from_superb"]["max_steps"] == {"superb": 200_000, "here": 8}
    assert record["training"]["updates"] == 8
    assert record["seed"] == 1337
    assert len(record["weights_sha256"]) == 64
    for name in ("command", "commit", "hardware", "versions", "wall_seconds"):
        assert name in record
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()}
    assert names == {
        *("results.json", "recipe.json", "training_log.json", "ctc_head.safetensors"),
        *("plots/layer_weights.png", "plots/training.png"),
        *(f"{split}/{name}.txt" for split in ("dev", "test") for name in ("hyp", "ref", "worst")),
    }
    assert (folder / "test" / "ref.txt").read_text().splitlines()[0] == "HELLO WORLD (14-1-0000)"
    assert len((folder / "test" / "hyp.txt").read_text().splitlines()) == 4
    assert "REF: HELLO WORLD" in (folder / "test" / "worst.txt").read_text()


@pytest.mark.slow
def test_what_was_skipped_is_counted_and_named(finished_asr, finished_pr):
    train = finished_asr[1]["data"]["train"]
    assert train["utterances"] == 8
    assert train["skipped"]["by_kind"] == {"empty": 1, "missing_transcript": 1}
    assert train["skipped"]["listed"]["12-1-0000"].startswith("empty")
    assert train["skipped"]["listed"]["11-1-0008"].startswith("missing_transcript")
    train = finished_pr[1]["data"]["train"]
    assert train["utterances"] == 7
    assert train["skipped"]["by_kind"] == {"empty": 1, "missing_transcript": 1, "unknown_word": 1}
    assert train["skipped"]["unknown_words_listed"] == {"XYZZYQ": 1}


def test_what_a_pr_run_leaves(finished_pr):
    folder, record = finished_pr
    assert (record["task"], record["metric"], record["unit"], record["split"]) == ("pr", "per", "percent", "test")
    assert record["recipe"]["lexicon"]["files"][0]["name"] == "words.txt"
    assert record["recipe"]["oov"] == "skip"
    assert record["changed_from_superb"]["lexicon"]["here"]["words"] == 20
    assert (folder / "test" / "ref.txt").read_text().splitlines()[0] == "HH AH0 L OW1 W ER1 L D (14-1-0000)"


def test_the_best_head_on_dev_is_tested(finished_pr):
    folder, record = finished_pr
    looks = [entry for entry in read_json(folder / "training_log.json")["log"] if "eval_per" in entry]
    assert [entry["step"] for entry in looks] == [2, 4, 6, 8]
    best = min(looks, key=lambda entry: (entry["eval_per"], entry["step"]))  # the first of equals: strictly below
    assert record["selected"]["step"] == best["step"]
    dev = next(m["value"] for m in record["metrics"] if m["split"] == "dev")
    assert dev == pytest.approx(best["eval_per"])


@pytest.mark.slow
def test_without_a_dev_rate_below_100_the_last_update_is_tested(tiny_encoder, corpus, tmp_path):
    """S3PRL keeps no head of ASR whose WER is not below 100; `quick` chooses by CER and has no such limit."""
    record = run("asr", tiny_encoder, corpus, tmp_path, "--lstm_layers", "1", protocol="superb")
    rates = [e["eval_wer"] for e in read_json(tmp_path / "training_log.json")["log"] if "eval_wer" in e]
    assert min(rates) >= 100  # eight updates teach nothing
    assert record["selected"]["step"] is None
    assert "last update" in record["selected"]["rule"]


@pytest.mark.slow
def test_neither_cache_nor_micro_batches_change_the_result(finished_pr, tiny_encoder, corpus, lexicon, tmp_path):
    words = ["--lexicon", str(lexicon), "--cache_features", "no", "--micro_batch_size", "1", "--eval_batch_size", "3"]
    run("pr", tiny_encoder, corpus, tmp_path, *words)
    for name, value in load_file(finished_pr[0] / "ctc_head.safetensors").items():
        # Adam turns rounding errors of tiny gradients into steps; the learning rate is 5e-3.
        torch.testing.assert_close(load_file(tmp_path / "ctc_head.safetensors")[name], value, atol=2e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_changed_superb_recipe_is_not_called_superb(tiny_encoder, corpus, lexicon, tmp_path, caplog):
    record = run("pr", tiny_encoder, corpus, tmp_path, "--lexicon", str(lexicon), protocol="superb")
    assert record["protocol"] == "quick"
    assert set(record["changed_from_superb"]) == {
        *("max_steps", "eval_steps", "batch_size", "projection_size", "utterances", "lexicon"),
    }
    assert record["recipe"]["learning_rate"] == 5e-4
    assert not record["recipe"]["cached_features"]
    assert "recorded as protocol quick" in caplog.text


def test_an_update_with_a_gradient_that_is_not_finite_is_left_out(tiny_encoder, corpus, lexicon, tmp_path, monkeypatch):
    real = CtcTrainer.compute_loss
    seen = []

    def broken(self, model, *arguments, **keywords):
        loss = real(self, model, *arguments, **keywords)
        if self.state.global_step == 2:
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return loss * float("nan")
        if self.state.global_step == 3:
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return loss

    monkeypatch.setattr(CtcTrainer, "compute_loss", broken)
    record = run("pr", tiny_encoder, corpus, tmp_path, "--lexicon", str(lexicon), "--max_steps", "4")
    assert record["training"]["updates_left_out"] == 1
    assert all(torch.equal(seen[0][name], seen[-1][name]) for name in seen[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_split", "nowhere"], "there is no split 'nowhere'"),
        (["--model", "no/such-encoder"], "cannot load the encoder"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--revision", "main"], "--revision is for the Hub; --model .* is not there"),
        (["--ddp_backend", "gloo"], "--ddp_backend is for several processes"),
        (["--output_dir", ""], "--output_dir is empty"),
    ],
)
def test_clear_errors(words, message, tiny_encoder, corpus, tmp_path):
    with pytest.raises(LaserError, match=message):
        run("asr", tiny_encoder, corpus, tmp_path, *words)


def test_speech_without_transcripts(tiny_encoder, tmp_path):
    write_chapter(tmp_path / "data" / "train", "11", [None, None], 0)
    with pytest.raises(LaserError, match="no transcripts"):
        run("asr", tiny_encoder, tmp_path / "data", tmp_path / "out")


def test_a_run_does_not_go_into_the_folder_of_its_encoder(tiny_encoder, corpus):
    for folder in (tiny_encoder, tiny_encoder.parent):
        with pytest.raises(LaserError, match="holds --model"):
            run("asr", tiny_encoder, corpus, folder, "--overwrite_output_dir")
    assert (tiny_encoder / "model.safetensors").exists()


@pytest.mark.parametrize("words", [[], ["--cache_features", "no"]])
def test_an_encoder_that_gives_nan_is_no_success(words, tiny_encoder, corpus, lexicon, tmp_path, monkeypatch):
    real = EncoderFeatures.states

    def states(self, *arguments, **keywords):
        states, frames = real(self, *arguments, **keywords)
        return states * float("nan"), frames

    monkeypatch.setattr(EncoderFeatures, "states", states)
    with pytest.raises(LaserError, match="finite"):
        run("pr", tiny_encoder, corpus, tmp_path, "--lexicon", str(lexicon), *words)
    assert not (tmp_path / "results.json").exists()


def test_targets_that_fit_into_no_frames(tiny_encoder, corpus, lexicon, tmp_path):
    write_chapter(tmp_path / "data" / "train", "11", ["HELLO WORLD " * 20] * 3, 0)
    for split in ("dev", "test"):
        (tmp_path / "data" / split).symlink_to(corpus / split)
    with pytest.raises(LaserError, match="split train: every target is longer than the frames"):
        run("pr", tiny_encoder, tmp_path / "data", tmp_path / "out", "--lexicon", str(lexicon))


def test_words_that_must_be_known(tiny_encoder, corpus, lexicon, tmp_path):
    with pytest.raises(LaserError, match="no pronunciation of XYZZYQ"):
        run("pr", tiny_encoder, corpus, tmp_path, "--lexicon", str(lexicon), "--oov", "error")


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(finished_pr, tiny_encoder, corpus, lexicon, tmp_path):
    """With gloo: shares of updates and of decoding add up."""
    errors = fork_two(
        command("pr", tiny_encoder, corpus, tmp_path / "out", "--lexicon", str(lexicon)),
        main=lambda argv: main(["pr", *argv]),
    )
    assert errors == ["", ""]
    record = read_json(tmp_path / "out" / "results.json")
    assert record["training"]["processes"] == 2
    for name, value in load_file(finished_pr[0] / "ctc_head.safetensors").items():
        torch.testing.assert_close(
            load_file(tmp_path / "out" / "ctc_head.safetensors")[name], value, atol=2e-3, rtol=1e-3
        )
    assert (tmp_path / "out" / "test" / "ref.txt").read_text() == (finished_pr[0] / "test" / "ref.txt").read_text()
