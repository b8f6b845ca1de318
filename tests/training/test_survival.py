"""What a run resumes, what it refuses, and what it never calls a success."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_waveform
from safetensors.torch import load_file, save_file
from torch.utils.data import IterableDataset
from training_runs import arguments, assert_same_weights, fork_two, history, kill_in_step_4, start

from laser_hf.data import PairDataset, PairTransform, SpeedPitch, load_speech
from laser_hf.encoders import load_encoder
from laser_hf.errors import LaserError
from laser_hf.records import TRAINING_RECORD
from laser_hf.training import AlignmentModel, LaserTrainer, LaserTrainingArguments, NonFiniteLossError


@pytest.fixture(scope="module")
def run(tiny_encoder, small_tree, tmp_path_factory):
    """A finished run at a constant rate: folder, record, losses, weights."""
    output = tmp_path_factory.mktemp("run")
    return output, *start(tiny_encoder, small_tree, output, "--lr_scheduler_type", "constant_with_warmup")


def interrupted(run, folder):
    """A copy of the run as if it had been killed in its third update."""
    shutil.copytree(run[0], folder)
    shutil.rmtree(folder / "checkpoint-4")
    (folder / TRAINING_RECORD).unlink()
    return folder


CONSTANT = ("--lr_scheduler_type", "constant_with_warmup")


@pytest.mark.slow
def test_killed_before_the_record_trains_no_update_more(run, tiny_encoder, small_tree, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    (folder / TRAINING_RECORD).unlink()
    record, by_step, weights = start(tiny_encoder, small_tree, folder, *CONSTANT)
    assert record["updates"] == 4
    assert by_step == run[2]
    assert_same_weights(weights, run[3])
    for name in ("processed_hours", "collapse", "data"):
        assert record[name] == run[1][name]


@pytest.mark.slow
def test_going_on_from_a_checkpoint_applies_the_new_rate_and_says_so(run, tiny_encoder, small_tree, tmp_path):
    source = str(run[0] / "checkpoint-2")
    go_on = (*CONSTANT, "--resume_from_checkpoint", source)
    record, by_step, weights = start(tiny_encoder, small_tree, tmp_path / "a", *go_on, "--learning_rate", "1e-5")
    assert record["continued_from"] == source
    assert record["updates"] == 4
    rates = {entry["step"]: entry["learning_rate"] for entry in history(tmp_path / "a") if "learning_rate" in entry}
    assert [rates[step] for step in (2, 3, 4)] == pytest.approx([1e-3, 1e-5, 1e-5])
    assert by_step[3] == run[2][3]  # the state is that of the checkpoint
    base = load_file(run[0] / "checkpoint-2" / "model.safetensors")
    moved = [(weights[name] - base[f"encoder.model.{name}"]).abs().max() for name in record["trained_parameters"]]
    assert 0 < max(moved) < 4e-5  # two steps of Adam
    _, same, same_weights = start(tiny_encoder, small_tree, tmp_path / "b", *go_on)
    assert same == run[2]
    assert_same_weights(same_weights, run[3])
    for more, message in ((("--alpha", "0.9"), "--alpha 0.15 -> 0.9"), (("--max_steps", "9"), "--max_steps 4 -> 9")):
        with pytest.raises(LaserError, match=rf"another recipe \({message}\); going on from it, only"):
            start(tiny_encoder, small_tree, tmp_path / "c", *go_on, *more)
    assert not list((tmp_path / "c").glob("*"))[1:]  # the lock alone


def test_speech_and_base_model_are_known_by_content(run, tiny_encoder, small_tree, tmp_path):
    speech, base = tmp_path / "mount", tmp_path / "base"
    shutil.copytree(small_tree, speech)
    shutil.copytree(tiny_encoder, base)
    _, by_step, weights = start(base, speech, interrupted(run, tmp_path / "moved"), *CONSTANT)
    assert by_step == run[2]
    assert_same_weights(weights, run[3])
    changed = load_file(base / "model.safetensors")
    changed["encoder.layers.0.attention.k_proj.bias"][0] += 1e-3
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    folder = interrupted(run, tmp_path / "changed")
    with pytest.raises(LaserError, match="the content of --model_name_or_path is another"):
        start(base, speech, folder, *CONSTANT)
    next(iter(sorted(speech.rglob("*.flac")))).unlink()
    with pytest.raises(LaserError, match="the content of --train_data is another"):
        start(tiny_encoder, speech, folder, *CONSTANT)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["noise_dir", "train_data"])
def test_noise_and_streams_are_known_by_content(tiny_encoder, small_tree, tmp_path, monkeypatch, changed):
    speech, noise = tmp_path / "speech", tmp_path / "noise"
    shutil.copytree(small_tree, speech)
    noise.mkdir()
    soundfile.write(noise / "hum.wav", make_waveform(1.0, seed=3), 16000)
    how = ("--streaming", "true", "--perturbations", "noise", "--noise_dir", str(noise))
    with monkeypatch.context() as patch:
        kill_in_step_4(patch)
        with pytest.raises(KeyboardInterrupt):
            start(tiny_encoder, speech, tmp_path / "run", *how)
    file = noise / "hum.wav" if changed == "noise_dir" else next(iter(sorted(speech.rglob("*.flac"))))
    whole = file.read_bytes()
    soundfile.write(file, make_waveform(1.0, seed=4), 16000)
    with pytest.raises(LaserError, match=f"the content of --{changed} is another"):
        start(tiny_encoder, speech, tmp_path / "run", *how)
    file.write_bytes(whole)
    speech.rename(tmp_path / "mount")
    noise.rename(tmp_path / "hums")
    how = ("--streaming", "true", "--perturbations", "noise", "--noise_dir", str(tmp_path / "hums"))
    assert start(tiny_encoder, tmp_path / "mount", tmp_path / "run", *how)[0]["updates"] == 4


def test_a_base_model_is_never_the_output(tiny_encoder, small_tree, tmp_path):
    base = tmp_path / "models" / "base"
    shutil.copytree(tiny_encoder, base)
    for output in (base, base.parent):
        with pytest.raises(LaserError, match="which this run reads"):
            start(base, small_tree, output, "--overwrite_output_dir")
    assert {path.name for path in base.iterdir()} == {path.name for path in tiny_encoder.iterdir()}


@pytest.mark.slow
def test_a_resumed_stream_decodes_nothing_that_it_skips(tiny_encoder, small_tree, tmp_path, monkeypatch):
    stream = ("--streaming", "true", "--shuffle_buffer", "10")
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path, *stream)
    monkeypatch.undo()
    made, original = [], PairTransform.pair

    def count(self, *given, **named):
        made.append(given[0])
        return original(self, *given, **named)

    monkeypatch.setattr(PairTransform, "pair", count)
    start(tiny_encoder, small_tree, tmp_path, *stream)  # from update 2 to 4, 8 pairs each
    assert len(made) == 16


@pytest.mark.slow
def test_only_weights_are_nothing_to_resume(tiny_encoder, small_tree, tmp_path, monkeypatch, caplog):
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path, "--save_only_model")
    monkeypatch.undo()
    _, by_step, _ = start(tiny_encoder, small_tree, tmp_path, "--save_only_model")
    assert "nothing to resume" in caplog.text
    assert sorted(by_step) == [1, 2, 3, 4]
    assert not list(tmp_path.glob("broken-*"))


def test_only_finite_states_are_saved(tiny_encoder, small_tree, tmp_path):
    how = ("--optim", "sgd", "--learning_rate", "3e38", "--max_grad_norm", "0", "--save_steps", "1")
    with pytest.raises(NonFiniteLossError) as stopped:
        start(tiny_encoder, small_tree, tmp_path / "run", *how)
    assert "the weights are not finite after update 2; the last finite state is" in str(stopped.value)
    assert f"--resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-1'}" in str(stopped.value)
    saved = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    assert json.loads((tmp_path / "run" / "non_finite.json").read_text()) == {"step": 2, "what": "weights"}


def test_the_optimiser_rests_on_an_update_without_a_pair(tiny_encoder, tmp_path):
    """Momentum and weight decay would move weights without any gradient."""
    speech = tmp_path / "speech"
    speech.mkdir()
    soundfile.write(speech / "good.flac", make_waveform(0.6), 16_000)
    soundfile.write(speech / "silent.flac", np.zeros(9000), 16_000)
    _, by_step, _ = start(
        tiny_encoder, speech, tmp_path / "out", "--pairs_per_update", "1", "--max_steps", "8", "--weight_decay", "0.1",
        "--save_steps", "1", "--save_total_limit", "8", "--lr_scheduler_type", "constant",
    )  # fmt: skip
    assert len(by_step) == 4
    weights = {step: load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 9)}
    for step in range(2, 9):
        same = all(torch.equal(weights[step][name], weights[step - 1][name]) for name in weights[step])
        assert same == (step not in by_step), step


@pytest.mark.slow
def test_nothing_done_is_an_error(tiny_encoder, tmp_path):
    speech = tmp_path / "speech"
    speech.mkdir()
    for index in range(3):
        (speech / f"{index}.flac").write_bytes(b"not audio")
    for more in ((), ("--streaming", "true")):
        with pytest.raises(LaserError, match=r"none of the 3 utterances .* can be used \({'undecodable': 3}\)"):
            start(tiny_encoder, speech, tmp_path / "out", *more, "--overwrite_output_dir")
        assert not (tmp_path / "out" / "model.safetensors").exists()


class Again(IterableDataset):
    """Pairs that come again with each pass."""

    num_shards = 1

    def __init__(self, pairs):
        self.pairs = pairs

    def __iter__(self):
        return iter(self.pairs)


class Once(Again):
    """Pairs that come once."""

    def __init__(self, pairs):
        self.pairs = iter(pairs)


@pytest.mark.slow
def test_fewer_updates_than_asked_are_an_error(tiny_encoder, small_tree, tmp_path):
    pairs = [*PairDataset(load_speech(small_tree), PairTransform(SpeedPitch([1.0], [0.0])))][:6]
    args = LaserTrainingArguments(
        str(tmp_path), max_steps=5, pairs_per_update=2, use_cpu=True, report_to="none", dataloader_num_workers=0
    )
    trainer = LaserTrainer(AlignmentModel(load_encoder(str(tiny_encoder)), 8), args, Once(pairs))
    with pytest.raises(LaserError, match="the training data ended after 3 of --max_steps 5"):
        trainer.train()
    # A pass of three updates is too short to skip the four that were made.
    args.save_steps = 4
    trainer = LaserTrainer(AlignmentModel(load_encoder(str(tiny_encoder)), 8), args, Again(pairs))
    assert trainer.train().global_step == 5
    with pytest.raises(LaserError, match="the training data ended after 4 of --max_steps 5"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.slow
def test_skipped_held_out_utterances_are_counted_through_a_resume(tiny_encoder, small_tree, tmp_path):
    speech = tmp_path / "speech"
    shutil.copytree(small_tree, speech)
    (speech / "train" / "1" / "10" / "1-10-0100.flac").write_bytes(b"not audio")
    how = ("--eval_data", str(speech), "--eval_steps", "4")
    record, _, _ = start(tiny_encoder, small_tree, tmp_path / "out", *how)
    assert record["data"]["held_out_skipped"]["utterances"] == 1
    (tmp_path / "out" / TRAINING_RECORD).unlink()
    again, _, _ = start(tiny_encoder, small_tree, tmp_path / "out", *how)
    assert again["data"] == record["data"]
    assert again["collapse"] == record["collapse"]


@pytest.mark.slow
def test_the_first_process_decides_what_is_resumed(run, tiny_encoder, small_tree, tmp_path):
    """Two folders, as on two machines: where one of them lacks the checkpoint, both stop; else both go on."""
    first, second = interrupted(run, tmp_path / "first"), tmp_path / "second"
    both = [arguments(tiny_encoder, small_tree, folder, *CONSTANT) for folder in (first, second)]
    assert fork_two(both[0], second=both[1]) == ["process 1 does not have checkpoint-2" + REST] * 2
    assert fork_two(both[0]) == ["", ""]
    assert json.loads((first / TRAINING_RECORD).read_text())["updates"] == 4
    assert all("finished run" in error for error in fork_two(both[0]))


REST = (
    ", which the first one resumes; give all of them one --output_dir on a shared file system, or copy it "
    "(--save_on_each_node keeps it on every node)"
)
