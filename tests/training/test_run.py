"""Whole runs of a tiny encoder: updates, resumes, processes, records and what goes wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_waveform
from safetensors.torch import load_file
from training_runs import (
    NO_DROPOUT,
    arguments,
    assert_same_weights,
    history,
    kill_in_step_4,
    launch_two,
    losses,
    start,
)

from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES, LaserLoss
from laser_hf.records import TRAINING_RECORD, read_record
from laser_hf.runs import RunFolder, seal_checkpoint
from laser_hf.training import LaserTrainer, NonFiniteLossError, parse_options
from laser_hf.training.__main__ import main
from laser_hf.training.run import _OWNED, find_start


@pytest.fixture(scope="module")
def straight(tiny_encoder, small_tree, tmp_path_factory):
    """An uninterrupted run with dropout."""
    output = tmp_path_factory.mktemp("straight")
    return output, *start(tiny_encoder, small_tree, output)


def test_what_a_run_leaves(straight, small_tree):
    output, record, by_step, _ = straight
    assert {p.name for p in output.iterdir()} == {
        ".lock", "checkpoint-2", "checkpoint-4", "config.json", "model.safetensors", "preprocessor_config.json",
        TRAINING_RECORD, "training_log.json", "recipe.json",
    }  # fmt: skip
    assert json.loads((output / TRAINING_RECORD).read_text())["updates"] == 4
    assert sorted(by_step) == [1, 2, 3, 4]
    # The paper's unit: source speech of every pair of every update. 18 utterances make updates of 8, 8 and 2 pairs.
    files = sorted(small_tree.rglob("*.flac"))
    epochs = [np.random.default_rng(np.random.SeedSequence([1337, epoch])).permutation(18) for epoch in range(2)]
    drawn = [*epochs[0], *epochs[1][:8]]
    seconds = sum(soundfile.info(files[i]).frames for i in drawn) / 16_000
    assert record["processed_hours"] == pytest.approx(seconds / 3600, rel=1e-9)
    assert record["data"]["utterances"] == 18
    assert record["data"]["skipped"]["utterances"] == 0
    assert record["recipe"]["objective"]["alpha"] == 0.15
    assert record["versions"]["transformers"]
    assert record["hardware"]["cores"]
    for term in ("loss", "soft_dtw", "idm", "grad_norm", "frame_cosine", "effective_rank", "processed_hours"):
        assert np.isfinite(record["last"][term]["value"])
    assert record["first"]["loss"]["step"] == 1
    assert read_record(output / TRAINING_RECORD)["task"] == "training"
    entry = next(e for e in history(output) if e["step"] == 3)
    assert entry["loss"] == pytest.approx(entry["soft_dtw"] + 0.15 * entry["idm"], rel=1e-5)


def test_frozen_weights_are_the_base_models_bit_for_bit(straight, tiny_encoder):
    _, record, _, weights = straight
    base = load_file(tiny_encoder / "model.safetensors")
    trained = set(record["trained_parameters"])
    assert {name.split(".")[2] for name in trained} == {"1", "2"}
    for name, tensor in base.items():
        assert torch.equal(weights[name], tensor) == (name not in trained), name


@pytest.mark.slow
def test_resumed_equals_uninterrupted(straight, tiny_encoder, small_tree, tmp_path, monkeypatch):
    _, record, by_step, weights = straight
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path)
    assert not (tmp_path / TRAINING_RECORD).exists()
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever happened in between
    resumed, resumed_losses, resumed_weights = start(tiny_encoder, small_tree, tmp_path)
    assert resumed_losses == by_step
    assert_same_weights(resumed_weights, weights)
    assert resumed["processed_hours"] == pytest.approx(record["processed_hours"], rel=1e-9)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_when_streaming(tiny_encoder, small_tree, tmp_path, monkeypatch):
    stream = ("--streaming", "true", "--shuffle_buffer", "10")
    _, by_step, weights = start(tiny_encoder, small_tree, tmp_path / "straight", *stream)
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path / "killed", *stream)
    monkeypatch.undo()
    _, resumed_losses, resumed_weights = start(tiny_encoder, small_tree, tmp_path / "killed", *stream)
    assert resumed_losses == by_step
    assert_same_weights(resumed_weights, weights)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_perturbing_on_the_device_is_the_same_run(tiny_encoder, small_tree, tmp_path, monkeypatch, streaming):
    """Held-out pairs included; interrupted and resumed on the way."""
    how = ("--per_device_train_batch_size", "3" if not streaming else "4", "--eval_data", str(small_tree))
    how += ("--eval_steps", "2", "--max_eval_samples", "5", "--streaming", str(streaming), "--shuffle_buffer", "10")
    _, by_step, weights = start(tiny_encoder, small_tree, tmp_path / "worker", *how)
    # The order of a stream depends on the number of workers, that of a map-style set does not.
    how += ("--perturb_on", "device", "--dataloader_num_workers", "0" if streaming else "2")
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path / "device", *how)
    monkeypatch.undo()
    # It goes on under the other one, too: the place is no part of the recipe.
    how += ("--perturb_on", "worker") if streaming else ()
    record, on_device, device_weights = start(tiny_encoder, small_tree, tmp_path / "device", *how, "--plots", "true")
    assert record["perturbed_on"] == ("worker" if streaming else "device")
    assert on_device == by_step
    assert_same_weights(device_weights, weights)
    logs = [history(tmp_path / run) for run in ("worker", "device")]
    held_out = [[entry["eval_loss"] for entry in log if "eval_loss" in entry] for log in logs]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 2
    assert (tmp_path / "device" / "plots" / "alignment.png").stat().st_size > 10_000


@pytest.mark.slow
def test_decoding_once_changes_nothing(straight, tiny_encoder, small_tree, tmp_path, monkeypatch):
    _, _, by_step, weights = straight
    extra = ("--cache_decoded", str(tmp_path / "kept"))
    _, losses_first, _ = start(tiny_encoder, small_tree, tmp_path / "first", *extra)
    for file in small_tree.rglob("*.flac"):
        assert file.is_file()
    record, losses_second, weights_second = start(tiny_encoder, small_tree, tmp_path / "second", *extra)
    assert losses_first == losses_second == by_step
    assert_same_weights(weights_second, weights)
    assert "cache_decoded" not in record["recipe"]["data"]
    with pytest.raises(LaserError, match="a stream is not"):
        start(tiny_encoder, small_tree, tmp_path / "stream", *extra, "--streaming", "true")


@pytest.mark.slow
def test_profile_of_updates(tiny_encoder, small_tree, tmp_path, caplog):
    extra = ("--profile_updates", "2", "--per_device_train_batch_size", "3", "--perturb_on", "device")
    extra += ("--eval_data", str(small_tree), "--eval_steps", "3")  # not counted as training
    with caplog.at_level("INFO", logger="laser_hf"):
        start(tiny_encoder, small_tree, tmp_path, *extra)
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["updates"] == 2
    assert all(seconds > 0 for seconds in profile["seconds"].values())
    assert sum(profile["seconds"].values()) <= profile["seconds_per_update"]
    assert (tmp_path / "profile_trace.json.gz").stat().st_size > 1000
    assert "2 updates of" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
def test_compiled_layers_train_resume_and_leave_clean_names(straight, tiny_encoder, small_tree, tmp_path, monkeypatch):
    """Dynamo's own tracing, without the long compilation behind it: the arithmetic is that of the plain run."""
    _, _, by_step, weights = straight
    compiled = ("--torch_compile_backend", "eager", "--eval_data", str(small_tree), "--eval_steps", "4")
    torch._dynamo.reset()
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path, *compiled)
    monkeypatch.undo()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 6  # a few variants for all layers and lengths
    _, resumed, resumed_weights = start(tiny_encoder, small_tree, tmp_path, *compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= graphs
    assert resumed == pytest.approx(by_step, rel=1e-5)
    assert_same_weights(resumed_weights, weights, rtol=1e-4, atol=1e-6)
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert not [name for name in (*saved, *resumed_weights) if "_orig_mod" in name]


@pytest.mark.slow
def test_micro_batches_do_not_change_the_update(tiny_encoder, small_tree, tmp_path):
    _, whole, whole_weights = start(
        tiny_encoder, small_tree, tmp_path / "8", *NO_DROPOUT, "--per_device_train_batch_size", "8"
    )
    _, cut, cut_weights = start(
        tiny_encoder, small_tree, tmp_path / "3", *NO_DROPOUT, "--per_device_train_batch_size", "3"
    )
    for step, loss in whole.items():
        assert cut[step] == pytest.approx(loss, rel=1e-4)
    assert_same_weights(cut_weights, whole_weights, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_equal_twice_the_accumulation(tiny_encoder, small_tree, tmp_path):
    """Through `accelerate launch`, with gloo; updates of 8, 8 and 2 pairs, then a new epoch."""
    options = (*NO_DROPOUT, "--per_device_train_batch_size", "4")
    _, alone, alone_weights = start(tiny_encoder, small_tree, tmp_path / "one", *options)
    launch_two(arguments(tiny_encoder, small_tree, tmp_path / "two", *options), tmp_path)
    together = losses(tmp_path / "two")
    record = json.loads((tmp_path / "two" / TRAINING_RECORD).read_text())
    assert record["processes"] == 2
    assert together.keys() == alone.keys()
    for step, loss in alone.items():
        assert together[step] == pytest.approx(loss, rel=1e-4)
    assert_same_weights(load_file(tmp_path / "two" / "model.safetensors"), alone_weights, rtol=1e-3, atol=1e-5)
    alone_record = json.loads((tmp_path / "one" / TRAINING_RECORD).read_text())
    assert record["processed_hours"] == pytest.approx(alone_record["processed_hours"])


@pytest.mark.slow
def test_bad_utterances_are_skipped_and_counted(tiny_encoder, small_tree, tmp_path, caplog):
    speech = tmp_path / "speech"
    shutil.copytree(small_tree, speech)
    chapter = speech / "train" / "1" / "10"
    soundfile.write(chapter / "1-10-0100.flac", np.zeros(9000), 16_000)
    soundfile.write(chapter / "1-10-0101.wav", np.full(9000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(chapter / "1-10-0102.flac", make_waveform(0.02), 16_000)
    (chapter / "1-10-0103.flac").write_bytes(b"not audio")
    record, by_step, _ = start(
        tiny_encoder, speech, tmp_path / "out", "--max_steps", "6", "--pairs_per_update", "4",
        "--eval_data", str(speech),
    )  # fmt: skip
    assert len(by_step) == 6
    assert all(np.isfinite(loss) for loss in by_step.values())
    assert record["data"]["utterances"] == 22
    assert record["data"]["skipped"]["utterances"] == 4
    assert record["data"]["skipped"]["by_kind"] == {"nan": 1, "silent": 1, "too_short": 1, "undecodable": 1}
    assert record["data"]["held_out_utterances"] == 22
    assert record["data"]["held_out_skipped"]["utterances"] == 4
    assert np.isfinite(record["last"]["eval_loss"]["value"])
    for name in ("1-10-0100", "1-10-0101", "1-10-0102", "1-10-0103"):
        assert name in caplog.text


@pytest.mark.slow
def test_utterances_that_are_too_long_leave_updates_full(tiny_encoder, small_tree, tmp_path):
    """A run with --max_seconds is the run on a tree that never had the longer ones."""
    held_out = ("--max_eval_samples", "4", "--eval_steps", "4")
    limited = start(
        tiny_encoder, small_tree, tmp_path / "a", "--max_seconds", "0.7", "--eval_data", str(small_tree), *held_out
    )
    short = tmp_path / "short"
    longer = 0
    for path in sorted(small_tree.rglob("*.flac")):
        if soundfile.info(path).duration <= 0.7:
            link = short / path.relative_to(small_tree)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        else:
            longer += 1
    linked = start(tiny_encoder, short, tmp_path / "b", "--eval_data", str(short), *held_out)
    assert 0 < longer < 10  # at least one full update is left
    assert limited[0]["data"]["left_out"] == {"too_short": 0, "too_long": longer}
    assert limited[0]["data"]["skipped"]["utterances"] == limited[0]["data"]["held_out_skipped"]["utterances"] == 0
    assert limited[0]["processed_hours"] == linked[0]["processed_hours"]
    assert limited[0]["last"]["eval_loss"] == linked[0]["last"]["eval_loss"]
    assert limited[1] == linked[1]
    assert_same_weights(limited[2], linked[2])
    with pytest.raises(LaserError, match=r"no utterance .* at most max_seconds 0.2 .*'too_long': 18"):
        start(tiny_encoder, small_tree, tmp_path / "c", "--max_seconds", "0.2")


def test_updates_without_a_usable_pair_change_no_loss(tiny_encoder, tmp_path):
    speech = tmp_path / "speech"
    speech.mkdir()
    soundfile.write(speech / "good.flac", make_waveform(0.6), 16_000)
    for index in range(3):
        soundfile.write(speech / f"silent{index}.flac", np.zeros(9000), 16_000)
    record, _, _ = start(tiny_encoder, speech, tmp_path / "out", "--pairs_per_update", "1", "--max_steps", "8")
    assert record["data"]["skipped"]["utterances"] == 3
    assert np.isfinite(record["last"]["soft_dtw"]["value"])


class _OneBad(LaserLoss):
    """The loss of one pair of the second update is infinite."""

    calls = 0

    def forward(self, *frames):
        terms = super().forward(*frames)
        type(self).calls += 1
        if type(self).calls == 5:  # micro-batches of 3, 3 and 2 pairs
            terms["total"] = terms["total"] + torch.tensor([0.0, float("inf"), 0.0])
        return terms


class _BadGradient(LaserLoss):
    """The loss is fine, its gradient is not: the root of 0."""

    def forward(self, x, *others):
        terms = super().forward(x, *others)
        return terms | {"total": terms["total"] + (0.0 * x).sum(dim=(1, 2)).sqrt()}


@pytest.mark.slow
def test_the_pair_with_the_bad_loss_is_named_and_a_bad_gradient_too(tiny_encoder, small_tree, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "laser", _OneBad)
    with pytest.raises(NonFiniteLossError, match=r"non-finite loss at step 2 on the utterances \d-10-\d{4} \("):
        start(tiny_encoder, small_tree, tmp_path / "a", "--per_device_train_batch_size", "3")
    assert (tmp_path / "a" / "checkpoint-1" / "trainer_state.json").is_file()
    stopped = json.loads((tmp_path / "a" / "non_finite.json").read_text())
    assert list(stopped["losses"].values()) == ["inf"]
    monkeypatch.setitem(OBJECTIVES, "laser", _BadGradient)
    for clipping in ("1", "0"):
        with pytest.raises(NonFiniteLossError, match="non-finite gradient at step 1"):
            start(tiny_encoder, small_tree, tmp_path / clipping, "--max_grad_norm", clipping)
        assert len(json.loads((tmp_path / clipping / "non_finite.json").read_text())["utterances"]) == 8


class _Exploding(LaserLoss):
    calls = 0

    def forward(self, *frames):
        terms = super().forward(*frames)
        type(self).calls += 1
        if type(self).calls == 4:
            terms["total"] = terms["total"] * float("nan")
        return terms


@pytest.mark.slow
def test_a_non_finite_loss_stops_with_ids_and_a_saved_state(tiny_encoder, small_tree, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "laser", _Exploding)
    with pytest.raises(NonFiniteLossError, match=r"step 4 on the utterances \d-10-\d{4}, "):
        start(tiny_encoder, small_tree, tmp_path)
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").is_file()
    assert len(json.loads((tmp_path / "non_finite.json").read_text())["utterances"]) == 8
    # Everything up to there is kept: the next run ends the training.
    _, by_step, _ = start(tiny_encoder, small_tree, tmp_path)
    assert sorted(by_step) == [1, 2, 3, 4]


@pytest.mark.slow
def test_every_epoch_draws_anew_and_every_run_alike(tiny_encoder, small_tree, tmp_path, monkeypatch):
    seen = []
    original = LaserTrainer.compute_loss

    def spy(self, model, inputs, **kwargs):
        seen.append(dict(zip(inputs["ids"], (tuple(d.values()) for d in inputs["drawn"]), strict=True)))
        return original(self, model, inputs, **kwargs)

    monkeypatch.setattr(LaserTrainer, "compute_loss", spy)
    start(tiny_encoder, small_tree, tmp_path / "a", "--max_steps", "6")
    epochs = [{}, {}]
    for index, batch in enumerate(seen):
        epochs[index // 3].update(batch)
    assert len(epochs[0]) == len(epochs[1]) == 18
    assert epochs[0] != epochs[1]
    first = list(seen)
    seen.clear()
    start(tiny_encoder, small_tree, tmp_path / "b", "--max_steps", "6", "--dataloader_num_workers", "2")
    assert seen == first


@pytest.mark.slow
def test_looking_at_held_out_pairs_changes_nothing(straight, tiny_encoder, small_tree, tmp_path):
    _, _, by_step, weights = straight
    watched = ("--eval_data", str(small_tree), "--eval_steps", "1", "--max_eval_samples", "6")
    record, watched_losses, watched_weights = start(tiny_encoder, small_tree, tmp_path, *watched)
    assert np.isfinite(record["last"]["eval_loss"]["value"])
    assert watched_losses == by_step
    assert_same_weights(watched_weights, weights)


@pytest.mark.slow
def test_held_out_terms_do_not_depend_on_the_batch(tiny_encoder, small_tree, tmp_path):
    found = []
    for size in ("1", "5"):
        output = tmp_path / size
        extra = ("--eval_data", str(small_tree), "--eval_steps", "2", "--per_device_eval_batch_size", size)
        record, _, _ = start(tiny_encoder, small_tree, output, *NO_DROPOUT, *extra)
        found.append([entry for entry in history(output) if "eval_loss" in entry])
        assert [entry["step"] for entry in found[-1]] == [2, 4]
        assert record["collapse"]["start"]["step"] == 2
    for one, five in zip(*found, strict=True):
        for name in ("eval_loss", "eval_soft_dtw", "eval_idm"):
            assert one[name] == pytest.approx(five[name], rel=1e-4)


@pytest.mark.slow
def test_bf16_and_layer_norm_and_plots(tiny_encoder, small_tree, tmp_path, monkeypatch):
    seen = set()

    class Watched(LaserLoss):
        def forward(self, *frames):
            terms = super().forward(*frames)
            seen.update(value.dtype for value in (frames[0], frames[2], *terms.values()))
            return terms

    half = set()
    original = torch.nn.Linear.forward

    def linear(self, values):
        result = original(self, values)
        half.add(result.dtype)
        return result

    monkeypatch.setitem(OBJECTIVES, "laser", Watched)
    monkeypatch.setattr(torch.nn.Linear, "forward", linear)
    record, by_step, _ = start(
        tiny_encoder, small_tree, tmp_path, "--bf16", "true", "--train_encoder_layer_norm", "true", "--plots", "true",
        "--eval_data", str(small_tree), "--report_to", "tensorboard",
    )  # fmt: skip
    assert all(np.isfinite(loss) for loss in by_step.values())
    assert "encoder.layer_norm.weight" in record["trained_parameters"]
    assert record["precision"] == "bf16"
    assert seen == {torch.float32}  # the loss, while
    assert torch.bfloat16 in half  # the encoder
    for name in ("loss_terms.png", "alignment.png"):
        assert (tmp_path / "plots" / name).stat().st_size > 10_000
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))


def folder_of(options):
    return RunFolder(options.training.output_dir, TRAINING_RECORD, owned=_OWNED)


def begin(encoder, speech, output, *extra):
    options = parse_options(arguments(encoder, speech, output, *extra))
    found = find_start(folder_of(options), options, {})[1]
    return found and str(output / found)


def test_a_finished_run_is_not_overwritten_by_accident(straight, tiny_encoder, small_tree):
    with pytest.raises(LaserError, match="--overwrite_output_dir"):
        begin(tiny_encoder, small_tree, straight[0])


def test_overwriting_deletes_our_files_only(straight, tiny_encoder, small_tree, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(straight[0], output)
    (output / "notes.txt").write_text("mine")
    assert begin(tiny_encoder, small_tree, output, "--overwrite_output_dir") is None
    assert {p.name for p in output.iterdir()} == {".lock", "notes.txt", "recipe.json"}


def test_an_unfinished_run_of_another_recipe_is_not_resumed(straight, tiny_encoder, small_tree, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(straight[0], output)
    (output / TRAINING_RECORD).unlink()
    assert begin(tiny_encoder, small_tree, output) == str(output / "checkpoint-4")
    with pytest.raises(LaserError, match=r"--alpha 0.15 -> 0.9"):
        begin(tiny_encoder, small_tree, output, "--alpha", "0.9")


def test_which_checkpoint_is_resumed(straight, tiny_encoder, small_tree, tmp_path):
    """Sealed ones only; by name, too."""
    output = tmp_path / "copy"
    shutil.copytree(straight[0], output)
    (output / TRAINING_RECORD).unlink()
    asked = ("--resume_from_checkpoint", str(output / "checkpoint-2"))
    assert begin(tiny_encoder, small_tree, output, *asked) == asked[1]
    (output / "checkpoint-2" / "laser_state.json").write_text("{}")
    with pytest.raises(LaserError, match=r"checkpoint-2 cannot be resumed: laser_state.json has 2 bytes"):
        begin(tiny_encoder, small_tree, output, *asked)
    (output / "checkpoint-4" / "files.json").unlink()
    assert begin(tiny_encoder, small_tree, output) is None
    assert {p.name for p in output.glob("broken-*")} == {"broken-checkpoint-2", "broken-checkpoint-4"}
    with pytest.raises(LaserError, match="there is no such folder"):
        begin(tiny_encoder, small_tree, output, *asked)
    with pytest.raises(LaserError, match="nothing to resume"):
        begin(tiny_encoder, small_tree, output, "--resume_from_checkpoint", "true")


@pytest.mark.slow
def test_an_older_checkpoint_goes_only_after_the_new_one_is_sealed(tiny_encoder, small_tree, tmp_path, monkeypatch):
    original = seal_checkpoint

    def interrupted(folder, final):
        assert not (folder / "files.json").exists()
        assert (folder / "laser_state.json").is_file()
        assert not final.exists()
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt
        original(folder, final)

    monkeypatch.setattr("laser_hf.training.trainer.seal_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path, "--save_total_limit", "1")
    assert {p.name for p in tmp_path.rglob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    monkeypatch.undo()
    start(tiny_encoder, small_tree, tmp_path, "--save_total_limit", "1")
    assert {p.name for p in tmp_path.rglob("checkpoint-*")} == {"checkpoint-4"}


def test_a_folder_that_cannot_be_written(tiny_encoder, small_tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaserError, match="cannot write"):
        begin(tiny_encoder, small_tree, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--model_name_or_path", "someone/no-such-model"), "laser_hf/demo/encoder"),
        (("--train_data", "no/such/place/here"), "no folder"),
        (("--train_data", "openslr/librispeech_asr", "--train_split", "train.100"), "laser_hf/demo/speech"),
        (("--trainable_layers", "9"), "between 1 and 3"),
        (("--speed_factors", "-1"), "speed"),
    ],
)
def test_clear_errors_end_train_py(extra, message, tiny_encoder, small_tree, tmp_path, capsys):
    """As an error for `cli.run`, or by argparse."""
    with pytest.raises((LaserError, SystemExit)) as stopped:
        main(arguments(tiny_encoder, small_tree, tmp_path, *extra))
    assert message in f"{stopped.value} {capsys.readouterr().err}"


@pytest.mark.slow
def test_real_speech(tiny_encoder, shared_speech, tmp_path):
    record, by_step, _ = start(
        tiny_encoder, shared_speech / "heldout-clean-5", tmp_path, "--max_train_samples", "8", "--max_steps", "1",
        "--pairs_per_update", "2",
    )  # fmt: skip
    assert np.isfinite(by_step[1])
    assert record["processed_hours"] > 0
