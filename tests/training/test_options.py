"""Presets carry the paper's values, arguments override them, and what is unknown is refused."""

from __future__ import annotations

import json

import pytest

from laser_hf.training import PresetError, load_preset, parse_options, preset_names
from laser_hf.training.options import option_names


def parse(*argv, output):
    return parse_options([*argv, "--output_dir", str(output), "--report_to", "none", "--use_cpu"])


# Meghanani & Hain 2024, Sec. 3, and the released code's config.
PAPER = {
    "hubert-base": ("facebook/hubert-base-ls960", 0.4, 1.1, [0.9, 1.0, 1.1]),
    "wavlm-base": ("microsoft/wavlm-base", 0.15, 1.0, [0.8, 0.85, 0.9, 1.0, 1.1, 1.15, 1.2]),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets(name, tmp_path):
    options = parse("--preset", name, output=tmp_path)
    model, alpha, margin, speeds = PAPER[name]
    assert options.model.model_name_or_path == model
    assert (options.model.trainable_layers, options.model.projection_dim) == (2, 256)
    assert (options.model.train_encoder_layer_norm, options.model.do_normalize) == (False, False)
    assert options.model.dropouts() == {
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.1,
    }
    objective = options.objective
    assert (objective.gamma, objective.alpha, objective.sigma, objective.margin) == (0.1, alpha, 1, margin)
    assert objective.distance == "euclidean"
    data = options.data
    assert (data.train_data, data.train_name, data.train_split) == (
        "openslr/librispeech_asr",
        "clean",
        "train.100",
    )
    assert (data.speed_factors, data.pitch_steps, data.max_seconds) == (speeds, [-2.0, 2.0], None)
    args = options.training
    assert (args.pairs_per_update, args.max_steps, args.warmup_steps) == (8, 3600, 1000)
    assert (args.learning_rate, args.adam_epsilon, args.weight_decay, args.max_grad_norm) == (
        2e-5,
        1e-7,
        0.0,
        1.0,
    )
    assert args.lr_scheduler_type == "linear"


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_the_family(name, tmp_path):
    """Facts of the SCORE, Spin and noise recipes; what is not said there is as in LASER."""
    laser, alone, score, noise, spin = (
        parse("--preset", preset, output=tmp_path)
        for preset in (name, *(f"{name}-{method}" for method in ("soft-dtw", "score", "noise", "spin")))
    )

    def differing(other):
        ours, theirs = laser.recipe(), other.recipe()
        return {
            option: value
            for group in ("model", "data", "training")
            for option, value in theirs[group].items()
            if ours[group].get(option) != value
        }

    assert alone.recipe()["objective"] == {"name": "soft_dtw", "gamma": 0.1}
    assert differing(alone) == {}
    assert score.recipe()["objective"] == {"name": "score", "gamma": 0.1, "twin_dropout": True}
    # WavLM: another head, other speeds.
    wavlm = {"projection_layers": 2, "speed_factors": [0.85, 0.9, 1.0, 1.1, 1.15]}
    assert differing(score) == ({} if name == "hubert-base" else wavlm)
    assert noise.recipe()["objective"] == laser.recipe()["objective"]
    assert {"perturbations": ["noise"]}.items() <= differing(noise).items()
    assert noise.data.noise_snrs == [20.0, 10.0, 5.0]
    assert spin.recipe()["objective"] == {
        "name": "spin", "codes": 256, "temperature": 0.1, "epsilon": 0.02, "iterations": 3,
    }  # fmt: skip
    assert differing(spin) == {
        "perturbations": ["voice", "equalizer"],
        "streaming": False,
        "min_seconds": 40_000 / 16_000,
        "crop_seconds": 272_000 / 16_000,
        "seconds_per_update": 4_096_000 / 16_000,
        "max_steps": 5000,
        "warmup_steps": 2500,
        "learning_rate": 1e-4,
        "min_learning_rate": 1e-6,
        "coupled_weight_decay": True,
        "weight_decay": 1e-6,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 10.0,
        "seed": 7122,
    } | ({} if name == "hubert-base" else {"speed_factors": [0.9, 1.0, 1.1]})
    for options in (alone, score, noise, spin):
        assert options.model.model_name_or_path == laser.model.model_name_or_path
        assert (options.model.trainable_layers, options.model.train_encoder_layer_norm) == (2, False)


def test_without_arguments_it_is_the_hubert_recipe(tmp_path):
    assert parse(output=tmp_path).recipe() == parse("--preset", "hubert-base", output=tmp_path).recipe()


def test_arguments_override_the_preset(tmp_path):
    options = parse(
        "--preset", "hubert-base", "--alpha", "0", "--speed_factors", "0.8", "1.2", "--max_steps", "7",
        "--train_encoder_layer_norm", "true", output=tmp_path,
    )  # fmt: skip
    assert options.objective.alpha == 0
    assert options.data.speed_factors == [0.8, 1.2]
    assert options.training.max_steps == 7
    assert options.model.train_encoder_layer_norm is True
    assert options.objective.margin == 1.1


def test_a_preset_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"alpha": 0.7, "train_data": "{laser_hf}/demo"}))
    options = parse("--preset", str(path), output=tmp_path)
    assert options.objective.alpha == 0.7
    assert options.data.train_data.endswith("laser_hf/demo")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "hubert-huge"], "demo, demo-score, demo-spin, hubert-base, hubert-base-noise"),
        (["--no_such_option", "3"], "no_such_option"),
        (["--distance", "cosine"], "invalid choice"),
        (["--gradient_accumulation_steps", "8"], "pairs_per_update"),
        (["--alpha", "lots"], "invalid float"),
        (["--push_to_hub"], "push_to_hub.py"),
        (["--objective", "contentvec"], "invalid choice"),
        (["--min_learning_rate", "1"], "below --learning_rate"),
        (["--min_learning_rate", "1e-6", "--lr_scheduler_type", "cosine"], "not for"),
        (["--seconds_per_update", "0"], "--seconds_per_update must be positive"),
        (["--per_device_train_seconds", "9"], "goes with --seconds_per_update"),
    ],
)
def test_refused(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*argv, output=tmp_path)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_preset_keys_are_refused(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"alpha": 0.7, "marginn": 1.0}))
    with pytest.raises(PresetError, match="marginn"):
        load_preset(str(path), option_names())
    with pytest.raises(SystemExit):
        parse("--preset", str(path), output=tmp_path)
    assert "marginn" in capsys.readouterr().err
    path.write_text("{")
    with pytest.raises(PresetError, match="not valid JSON"):
        load_preset(str(path), option_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_sets_known_options_only(name):
    assert load_preset(name, option_names())


def test_help_shows_ours_and_help_all_shows_everything(capsys):
    for flag, inherited in (("--help", False), ("--help_all", True)):
        with pytest.raises(SystemExit) as stopped:
            parse_options([flag])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert "--preset" in text
        assert "--pairs_per_update" in text
        assert "accelerate launch train.py" in text
        assert ("--neftune_noise_alpha" in text) == inherited


def test_a_cpu_launch_that_lost_its_processes_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SystemExit):
        parse(output=tmp_path)
    assert "--multi_gpu --num_processes 2" in capsys.readouterr().err
