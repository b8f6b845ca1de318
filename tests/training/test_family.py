"""Every objective of the family as a whole run: resumed, shared by processes, exported; and what is special to each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model
from safetensors.torch import load_file
from training_runs import NO_DROPOUT, arguments, assert_same_weights, fork_two, history, kill_in_step_4, losses, start

from laser_hf.encoders import SpeechEncoder
from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES, Objective, SpinLoss
from laser_hf.records import TRAINING_RECORD
from laser_hf.training import AlignmentModel, LaserTrainer, LaserTrainingArguments
from laser_hf.training import model as model_module

SPIN = (
    "--objective", "spin", "--codes", "6", "--perturbations", "equalizer", "--seconds_per_update", "5",
    "--coupled_weight_decay", "true", "--weight_decay", "1e-6", "--lr_scheduler_type", "warmup_stable_decay",
    "--lr_scheduler_kwargs", '{"decay_type": "linear", "min_lr_ratio": 0.01}',
)  # fmt: skip
FAMILY = {
    "soft_dtw": ("--objective", "soft_dtw"),
    "score": ("--objective", "score", "--projection_layers", "2"),
    "spin": SPIN,
    "mse_idm": ("--objective", "mse_idm", "--perturbations", "equalizer"),
}


@pytest.fixture(scope="module", params=FAMILY)
def run(request, tiny_encoder, small_tree, tmp_path_factory):
    """Name, options and results of an uninterrupted run with dropout."""
    output = tmp_path_factory.mktemp(request.param)
    options = FAMILY[request.param]
    return request.param, options, output, *start(tiny_encoder, small_tree, output, *options)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(run, tiny_encoder, small_tree, tmp_path, monkeypatch):
    _, options, _, record, by_step, weights = run
    kill_in_step_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_encoder, small_tree, tmp_path, *options)
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever happened in between
    resumed, resumed_losses, resumed_weights = start(tiny_encoder, small_tree, tmp_path, *options)
    assert resumed_losses == by_step
    assert_same_weights(resumed_weights, weights)
    assert resumed["processed_hours"] == pytest.approx(record["processed_hours"], rel=1e-9)


def test_what_is_saved_and_exported(run, tiny_encoder):
    name, _, output, record, _, weights = run
    base = load_file(tiny_encoder / "model.safetensors")
    assert weights.keys() == base.keys()
    trained = set(record["trained_parameters"])
    for key, tensor in base.items():
        assert torch.equal(weights[key], tensor) == (key not in trained), key
    assert record["method"] == record["recipe"]["objective"]["name"] == name
    # A checkpoint holds the codebook, which goes on training, and no second copy of the encoder.
    checkpoint = load_file(output / "checkpoint-4" / "model.safetensors")
    parts = {key.split(".")[0] for key in checkpoint}
    assert parts == {"encoder", "head"} | ({"objective"} if name == "spin" else set())
    assert sum(key.startswith("encoder.") for key in checkpoint) == len(base)


def test_only_what_an_objective_reads_is_in_its_recipe(run):
    name, _, _, record, _, _ = run
    read = {
        "soft_dtw": {"name", "gamma"},
        "score": {"name", "gamma", "twin_dropout"},
        "spin": {"name", "codes", "temperature", "epsilon", "iterations"},
        "mse_idm": {"name", "alpha", "sigma", "margin", "distance", "reference_frames"},
    }
    assert set(record["recipe"]["objective"]) == read[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["score", "spin"])
def test_two_processes_equal_one(name, tiny_encoder, small_tree, tmp_path):
    """The twin and the sides it hears, the codes that Sinkhorn assigns to the frames of all processes."""
    options = (*FAMILY[name], *NO_DROPOUT, "--per_device_train_batch_size", "8", "--eval_data", str(small_tree))
    options += ("--eval_steps", "4", "--max_eval_samples", "5")
    _, alone, alone_weights = start(tiny_encoder, small_tree, tmp_path / "one", *options)
    assert fork_two(arguments(tiny_encoder, small_tree, tmp_path / "two", *options)) == ["", ""]
    together = losses(tmp_path / "two")
    assert json.loads((tmp_path / "two" / TRAINING_RECORD).read_text())["processes"] == 2
    for step, loss in alone.items():
        assert together[step] == pytest.approx(loss, rel=1e-4)
    assert_same_weights(load_file(tmp_path / "two" / "model.safetensors"), alone_weights, rtol=1e-3, atol=1e-5)
    held_out = [
        {
            key: value
            for key, value in entry.items()
            if key.startswith("eval_") and "rank" not in key and "cos" not in key
        }
        for folder in ("one", "two")
        for entry in history(tmp_path / folder)
        if "eval_loss" in entry
    ]
    assert len(held_out) == 2  # 5 utterances: 3 and 2
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)


@pytest.mark.slow
def test_soft_dtw_is_laser_without_its_regulariser(tiny_encoder, small_tree, tmp_path):
    _, alone, weights = start(tiny_encoder, small_tree, tmp_path / "a", *FAMILY["soft_dtw"])
    _, laser, laser_weights = start(tiny_encoder, small_tree, tmp_path / "b", "--alpha", "0")
    assert alone == pytest.approx(laser, rel=1e-5)
    assert_same_weights(weights, laser_weights, rtol=1e-3, atol=1e-5)


# ---- SCORE's twin ----


def twin_model(**options):
    model = AlignmentModel(SpeechEncoder(make_model(hidden_dropout=0.5, layerdrop=0.0, apply_spec_augment=False)), 8)
    model.add_twin(**options)
    return model


def test_the_twin_encodes_the_second_half_and_belongs_to_nothing_that_is_saved():
    model = twin_model().eval()
    assert not any(p.requires_grad for p in model.twin.parameters())
    assert model.state_dict().keys() == AlignmentModel(model.encoder, 8).state_dict().keys()
    waveforms, lengths = 0.1 * torch.randn(4, 4000), torch.tensor([4000, 3000, 2000, 3500])
    before = model(waveforms, lengths)["projected"]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.1)
    after = model(waveforms, lengths)["projected"]
    assert torch.equal(before[2:], after[2:])
    assert not torch.allclose(before[:2], after[:2], atol=1e-2)
    # Padded together as alone.
    alone = model(torch.stack((waveforms[0], waveforms[3]))[:, :3500], [3500, 3500])["projected"]
    torch.testing.assert_close(after[3, : alone.shape[1]], alone[1], rtol=1e-4, atol=1e-5)
    assert model.double().twin.model.encoder.layers[0].attention.k_proj.weight.dtype == torch.float64


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_of_the_twin(dropout):
    model = twin_model(dropout=dropout).train()
    assert model.twin.training == dropout
    waveforms = 0.1 * torch.randn(2, 4000)
    first, second = (model(waveforms, [4000, 4000])["frames"][1] for _ in range(2))
    assert torch.equal(first, second) == (not dropout)
    assert not model.eval().twin.training


@pytest.mark.slow
def test_each_side_hears_the_perturbed_view_half_the_time(tiny_encoder, small_tree, tmp_path, monkeypatch):
    heard, step = {}, 0
    original, original_step = model_module.stack_views, LaserTrainer.training_step

    def spy(batch, swap):
        waveforms, lengths = original(batch, swap)
        count = len(batch["ids"])
        for row, name in enumerate(batch["ids"]):
            clean = batch["clean"][row, : batch["clean_lengths"][row]]
            found = [waveforms[r, : lengths[r]] for r in (row, count + row)]
            side = [len(one) == len(clean) and torch.equal(one, clean) for one in found]
            assert sum(side) == 1
            heard[step, name] = side[0]
        return waveforms, lengths

    def count_steps(self, *given, **named):
        nonlocal step
        step = self.state.global_step
        return original_step(self, *given, **named)

    monkeypatch.setattr(model_module, "stack_views", spy)
    monkeypatch.setattr(LaserTrainer, "training_step", count_steps)
    start(tiny_encoder, small_tree, tmp_path, *FAMILY["score"], "--max_steps", "9", "--speed_factors", "0.9")
    share = np.mean(list(heard.values()))
    assert len(heard) == 54
    assert 0.3 < share < 0.7
    names = {name for _, name in heard}
    assert any(len({heard[key] for key in heard if key[1] == name}) == 2 for name in names)


# ---- Spin ----


class PerFrame(Objective):
    """A loss that is a plain mean over frames, so that it can be checked under any cut."""

    unit = "frames"

    def terms(self, x, m, y, n):
        valid = torch.arange(x.shape[1], device=x.device) < m.unsqueeze(1)
        return {"total": (x[..., 0] * valid).sum(dim=1)}


@pytest.mark.slow
def test_a_loss_per_frame_is_a_mean_over_the_frames_of_the_update(tiny_encoder, small_tree, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "per_frame", PerFrame)
    found = {}
    for size in ("8", "3"):
        options = (*NO_DROPOUT, "--objective", "per_frame", "--per_device_train_batch_size", size)
        options += ("--eval_data", str(small_tree), "--eval_steps", "4", "--per_device_eval_batch_size", size)
        _, by_step, weights = start(tiny_encoder, small_tree, tmp_path / size, *options)
        held_out = next(entry["eval_loss"] for entry in history(tmp_path / size) if "eval_loss" in entry)
        found[size] = {**by_step, "held_out": held_out}, weights
    assert found["3"][0] == pytest.approx(found["8"][0], rel=1e-4)
    assert all(abs(loss) <= 1 for loss in found["8"][0].values())
    assert_same_weights(found["3"][1], found["8"][1], rtol=1e-3, atol=1e-5)


def test_spin_schedule_and_optimiser(tiny_encoder, small_tree, tmp_path, monkeypatch):
    """Linear from the smallest rate to the peak and back; Adam with L2 on everything that is trained."""
    args = LaserTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=10, warmup_steps=4, learning_rate=1e-4,
        lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"decay_type": "linear", "min_lr_ratio": 0.01},
        coupled_weight_decay=True, weight_decay=1e-6, adam_epsilon=1e-8,
    )  # fmt: skip
    encoder = SpeechEncoder(make_model())
    encoder.freeze_except(1)
    trainer = LaserTrainer(AlignmentModel(encoder, 8), args, objective=SpinLoss(8, codes=4))
    trainer.create_optimizer_and_scheduler(10)
    assert type(trainer.optimizer) is torch.optim.Adam
    (group,) = trainer.optimizer.param_groups
    assert (group["weight_decay"], group["eps"], group["betas"]) == (1e-6, 1e-8, (0.9, 0.999))
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert {id(p) for p in group["params"]} == trained
    assert id(trainer.objective.codebook.weight) in trained
    rates = []
    for _ in range(11):
        rates.append(group["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    up, down = np.linspace(1e-6, 1e-4, 5), np.linspace(1e-4, 1e-6, 7)
    np.testing.assert_allclose(rates, [*up, *down[1:]], rtol=1e-6)


def test_codes_are_unit_vectors_at_every_update(tiny_encoder, small_tree, tmp_path, monkeypatch):
    norms = []
    original = SpinLoss.forward

    def spy(self, *frames):
        norms.append(self.codebook.weight.detach().norm(dim=1))
        return original(self, *frames)

    monkeypatch.setattr(SpinLoss, "forward", spy)
    start(tiny_encoder, small_tree, tmp_path, *SPIN)
    torch.testing.assert_close(torch.stack(norms), torch.ones(len(norms), 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--perturbations", "speed_pitch"), "keep the duration"),
        (("--perturbations", "equalizer", "--streaming", "true"), "does not know"),
        (("--perturbations", "equalizer", "--seconds_per_update", "500"), "do not fill one update"),
    ],
)
def test_what_spin_cannot_do(options, message, tiny_encoder, small_tree, tmp_path):
    with pytest.raises(LaserError, match=message):
        start(tiny_encoder, small_tree, tmp_path, *SPIN, *options)


def test_lengths_decide_before_decoding(tiny_encoder, small_tree, tmp_path):
    """Spin leaves short utterances out and crops long ones."""
    files = sorted(small_tree.rglob("*.flac"))
    seconds = [soundfile.info(file).duration for file in files]
    limits = ("--min_seconds", "0.6", "--crop_seconds", "0.7", "--seconds_per_update", "3")
    record, _, _ = start(tiny_encoder, small_tree, tmp_path, *SPIN, *limits)
    assert record["data"]["left_out"] == {"too_short": sum(s < 0.6 for s in seconds), "too_long": 0}
    assert record["data"]["utterances"] == sum(s >= 0.6 for s in seconds) > 0
    cropped = sorted((min(s, 0.7) for s in seconds if s >= 0.6), reverse=True)
    assert record["processed_hours"] * 3600 == pytest.approx(4 * sum(cropped[:4]), rel=0.1)


# ---- perturbations ----


@pytest.mark.slow
def test_noise_instead_of_speed_and_pitch(tiny_encoder, small_tree, tmp_path):
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "hum.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)
    options = ("--perturbations", "noise", "--noise_snrs", "5", "--noise_dir", str(noise))
    record, by_step, _ = start(tiny_encoder, small_tree, tmp_path / "run", *options, "--plots", "true")
    assert record["recipe"]["perturbations"]["name"] == ["noise"]
    assert all(np.isfinite(loss) for loss in by_step.values())
    assert (tmp_path / "run" / "plots" / "alignment.png").is_file()
    _, both, _ = start(tiny_encoder, small_tree, tmp_path / "both", *options, "--perturbations", "speed_pitch", "noise")
    assert both != by_step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--perturbations", "noise"), "--noise_dir"),
        (("--perturbations", "echo"), "unknown perturbation 'echo'"),
        (("--perturbations", "noise", "--noise_dir", "nowhere"), "nowhere"),
    ],
)
def test_perturbations_that_are_refused(options, message, tiny_encoder, small_tree, tmp_path, capsys):
    with pytest.raises((LaserError, SystemExit)) as stopped:
        start(tiny_encoder, small_tree, tmp_path, *options)
    assert message in f"{stopped.value} {capsys.readouterr().err}"


def test_voices_without_praat(tiny_encoder, small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LaserError, match="pip install praat-parselmouth"):
        start(tiny_encoder, small_tree, tmp_path, "--perturbations", "voice")


@pytest.mark.slow
def test_the_shipped_speech_trains_with_voices(tmp_path, tiny_encoder):
    """Praat in the data workers."""
    pytest.importorskip("parselmouth")
    speech = Path(__file__).parents[2] / "laser_hf" / "demo" / "speech" / "heldout"
    options = (*SPIN, "--perturbations", "voice", "equalizer", "--dataloader_num_workers", "1", "--max_steps", "2")
    _, by_step, _ = start(tiny_encoder, speech, tmp_path, *options)
    assert all(np.isfinite(loss) for loss in by_step.values())
