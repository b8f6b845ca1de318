"""Presets carry the paper's values, arguments override them, and what is unknown is refused."""

from __future__ import annotations

import json
import os
import re

import pytest

from laser_hf.data import PERTURBATIONS, Perturbation
from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES, LaserLoss, Objective
from laser_hf.plugins import Option
from laser_hf.training import (
    DataArguments,
    LaserTrainingArguments,
    ModelArguments,
    load_preset,
    parse_options,
    preset_names,
)
from laser_hf.training.arguments import REFUSED, ranged_options
from laser_hf.training.options import build_parser, option_names


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
    assert options.objective.name == "laser"
    values = options.objective.values
    assert (values["gamma"], values["alpha"], values["sigma"], values["margin"]) == (0.1, alpha, 1, margin)
    assert values["distance"] == "euclidean"
    data = options.data
    assert (data.train_data, data.train_name, data.train_split) == (
        "openslr/librispeech_asr",
        "clean",
        "train.100",
    )
    (perturbation,) = options.perturbations
    assert perturbation.name == "speed_pitch"
    assert perturbation.values == {"speed_factors": speeds, "pitch_steps": [-2.0, 2.0]}
    assert data.max_seconds is None
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
            for group in ("model", "perturbations", "data", "training")
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
    assert noise.recipe()["perturbations"]["name"] == ["noise"]
    assert noise.value("noise_snrs") == [20.0, 10.0, 5.0]
    assert spin.recipe()["objective"] == {
        "name": "spin", "codes": 256, "temperature": 0.1, "epsilon": 0.02, "iterations": 3,
    }  # fmt: skip
    assert differing(spin) == {
        "name": ["voice", "equalizer"],
        "streaming": False,
        "min_seconds": 40_000 / 16_000,
        "crop_seconds": 272_000 / 16_000,
        "seconds_per_update": 4_096_000 / 16_000,
        "max_steps": 5000,
        "warmup_steps": 2500,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "warmup_stable_decay",
        # From and to a hundredth of the peak.
        "lr_scheduler_kwargs": {"num_decay_steps": 2500, "decay_type": "linear", "min_lr_ratio": 0.01},
        "coupled_weight_decay": True,
        "weight_decay": 1e-6,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 10.0,
        "seed": 7122,
    }
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
    assert options.value("alpha") == 0
    assert options.value("speed_factors") == [0.8, 1.2]
    assert options.training.max_steps == 7
    assert options.model.train_encoder_layer_norm is True
    assert options.value("margin") == 1.1


def test_a_preset_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"alpha": 0.7, "train_data": "{laser_hf}/demo"}))
    options = parse("--preset", str(path), output=tmp_path)
    assert options.value("alpha") == 0.7
    assert options.data.train_data.endswith("laser_hf/demo")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "hubert-huge"], "demo, demo-score, demo-spin, hubert-base, hubert-base-noise"),
        (["--no_such_option", "3"], "no_such_option"),
        (["--distance", "cosine"], "invalid choice"),
        (["--gradient_accumulation_steps", "8"], "pairs_per_update"),
        (["--alpha", "lots"], "invalid float"),
        (["--push_to_hub"], "laser-hf push"),
        (["--objective", "contentvec"], "unknown objective 'contentvec'"),
        (["--objective", "nowhere:Loss"], "cannot import"),
        (["--perturbations", "echo"], "unknown perturbation 'echo'"),
        (["--gamma", "0"], "gamma must be at least 1e-06"),
        (["--speed_factors", "0.9", "-1"], "speed_factors must be"),
        (["--objective_options", "beta=1"], "has no option beta"),
        (["--objective_options", "alpha"], "expected name=value"),
        (["--seconds_per_update", "0"], "--seconds_per_update must be above 0, got 0"),
        (["--per_device_train_seconds", "9"], "goes with --seconds_per_update"),
        (["--max_steps", "0"], "--max_steps must be at least 1, got 0"),
        (["--projection_dim", "0"], "--projection_dim must be at least 1, got 0"),
        (["--max_train_samples", "-3"], "--max_train_samples must be at least 1, got -3"),
        (["--max_grad_norm", "nan"], "--max_grad_norm must be at least 0, got nan"),
        (["--learning_rate", "inf"], "--learning_rate must be above 0, got inf"),
        (["--num_train_epochs", "1"], "it is not taken: the length of a run is given in updates: --max_steps"),
        (["--dataloader_drop_last"], "it is not taken"),
        (["--fsdp", "full_shard"], "DDP"),
        (["--eval_strategy", "epoch"], "--eval_strategy must be steps or no"),
        (["--fp16"], "fp16 needs a GPU"),
        (["--ddp_backend", "gloo"], "for several processes"),
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
    with pytest.raises(LaserError, match="marginn"):
        load_preset(str(path), option_names())
    with pytest.raises(SystemExit):
        parse("--preset", str(path), output=tmp_path)
    assert "marginn" in capsys.readouterr().err
    path.write_text("{")
    with pytest.raises(LaserError, match="not valid JSON"):
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
        assert "accelerate launch -m laser_hf train" in text
        assert ("--ddp_timeout" in text) == inherited


OWN = (ModelArguments, DataArguments, LaserTrainingArguments)


@pytest.fixture
def helped(monkeypatch) -> dict[str, list[str]]:
    """Title of each group of `--help` at 120 columns -> its options, each with its text in one line."""
    monkeypatch.setenv("COLUMNS", "120")
    found: dict[str, list[str]] = {}
    for line in build_parser().format_help().splitlines():
        if re.fullmatch(r"[a-zA-Z, ]+:", line):
            options = found.setdefault(line[:-1], [])
        elif line.startswith("  --"):
            options.append(line)
        elif line.startswith("   "):
            options[-1] += f" {line.strip()}"
    return found


def test_help_is_grouped_and_short(helped, monkeypatch):
    last = "logging, evaluation, checkpoints"
    assert list(helped) == ["run", "encoder", "loss", "data", "views", "update", last, "Hugging Face", "examples"]
    shown = [line.split()[0] for lines in helped.values() for line in lines]
    assert len(shown) == len(set(shown)) > 70
    text = build_parser().format_help()
    assert len(text.splitlines()) <= 135
    assert max(map(len, text.splitlines())) <= 120
    assert "None" not in text
    assert not re.search(r"--\w+-\w", text.split("examples:")[0])  # the other spelling
    assert {"--alpha", "--gamma", "--codes"} <= {line.split()[0] for line in helped["loss"]}
    assert {"--speed_factors", "--noise_dir"} <= {line.split()[0] for line in helped["views"]}
    (twin,) = [line.split(maxsplit=1) for line in helped[last] if "--no_plots" in line]
    assert twin[1] == "turns --plots off"


def test_every_spelling_is_taken(tmp_path):
    for words in (["--max_steps", "7"], ["--max-steps", "7"], ["--max_steps=7"]):
        assert parse(*words, output=tmp_path).training.max_steps == 7
    assert parse("--no-plots", output=tmp_path).training.plots is False


def test_every_option_is_in_help_all(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    text = build_parser(show_all=True).format_help()
    shown = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    assert shown >= option_names() | {"preset", "device", "no_plots", "no_dataloader_pin_memory"}
    assert not shown & set(REFUSED)
    assert "turns --dataloader_pin_memory off" in text


def outside(option: Option) -> str | None:
    if option.type not in (int, float):
        return None
    low = option.low if option.low is not None else option.above
    return None if low is None and option.high is None else str(option.high + 1 if low is None else low - 1)


def test_the_ranges_that_help_shows_are_those_that_are_refused(helped, tmp_path, capsys):
    shown = {line.split()[0]: line for lines in helped.values() for line in lines}
    ranged = {name: option for kind in OWN for name, option in ranged_options(kind).items() if outside(option)}
    ranged |= {option.dest: option for option in LaserLoss.options if outside(option)}
    seen = 0
    for name, option in ranged.items():
        with pytest.raises(SystemExit):
            parse(f"--{name}={outside(option)}", output=tmp_path)
        assert f"{name} must be {option.range}, got" in capsys.readouterr().err
        if line := shown.get(f"--{name}"):
            seen += 1
            assert re.search(rf"\W{re.escape(option.range)}[;)]", line), line
    assert seen > 25


def test_a_cpu_launch_that_lost_its_processes_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SystemExit):
        parse(output=tmp_path)
    assert "--multi_gpu --num_processes 2" in capsys.readouterr().err


def test_common_names_are_accepted(tmp_path):
    ours = ["--model", "m", "--revision", "r", "--data", "d", "--split", "s"]
    names = ["--model_name_or_path", "m", "--model_revision", "r", "--train_data", "d", "--train_split", "s"]
    options = parse_options([*ours, "--device", "cpu", "--output_dir", str(tmp_path)])
    assert options.training.use_cpu
    assert options.recipe() == parse(*names, output=tmp_path).recipe()


def test_the_decay_follows_the_length_of_the_run(tmp_path):
    options = parse("--preset", "demo-spin", "--max_steps", "50", output=tmp_path)
    assert options.value("lr_scheduler_kwargs") == {
        "num_decay_steps": 30, "decay_type": "linear", "min_lr_ratio": 0.01,
    }  # fmt: skip
    given = parse("--preset", "demo-spin", "--lr_scheduler_kwargs", '{"num_decay_steps": 7}', output=tmp_path)
    assert given.value("lr_scheduler_kwargs") == {"num_decay_steps": 7}


class Stretched(Objective):
    """With an option of another default than LASER's of the same name."""

    name, title, summary = "stretched", "Stretched", "for this test."
    options = (
        Option("alpha", 3.0, "weight of something else", low=0),
        Option("power", 2, "an exponent", flag="stretch_power"),
        Option("shapes", ["a"], "some words", many=True),
    )
    terms = LaserLoss.terms


class Echo(Perturbation):
    name, title, summary = "echo", "Echo", "for this test."
    options = (Option("delay", 0.1, "seconds", above=0, flag="echo_delay"),)

    def draw(self, rng):
        return {}

    def apply(self, waveform):
        return waveform


def test_options_of_shipped_classes_are_flags_and_each_has_its_own_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(OBJECTIVES, "stretched", Stretched)
    monkeypatch.setitem(PERTURBATIONS, "echo", Echo)
    found = parse("--preset", "demo-score", "--objective", "stretched", "--perturbations", "echo", output=tmp_path)
    assert found.objective.values == {"alpha": 3.0, "stretch_power": 2, "shapes": ["a"]}
    assert found.recipe()["objective"] == {"name": "stretched", **found.objective.values}
    assert found.recipe()["perturbations"] == {"name": ["echo"], "echo_delay": 0.1}
    more = ["--stretch_power", "5", "--shapes", "b", "c", "--alpha", "1", "--echo_delay", "2"]
    found = parse("--objective", "stretched", "--perturbations", "echo", "speed_pitch", *more, output=tmp_path)
    assert found.objective.values == {"alpha": 1.0, "stretch_power": 5, "shapes": ["b", "c"]}
    assert found.value("echo_delay") == 2
    assert found.value("speed_factors") == [0.9, 1.0, 1.1]
    with pytest.raises(KeyError):
        found.value("codes")
    text = " ".join(build_parser().format_help().split())
    assert "stretched: weight of something else (at least 0; default: 3.0)" in text
    assert {"stretch_power", "shapes", "echo_delay"} <= option_names()


def test_options_of_own_classes_are_assignments(tmp_path, monkeypatch, capsys):
    own = ["--objective", f"{__name__}:Stretched", "--perturbations", "speed_pitch", f"{__name__}:Echo"]
    values = ["--objective_options", "alpha=0", "shapes=x,y", "--perturbation_options", "echo_delay=0.5"]
    found = parse(*own, *values, output=tmp_path)
    assert found.objective.values == {"alpha": 0.0, "stretch_power": 2, "shapes": ["x", "y"]}
    assert found.perturbations[1].values == {"echo_delay": 0.5}
    assert found.recipe()["objective"]["name"] == f"{__name__}:Stretched"
    with pytest.raises(SystemExit):
        parse(*own, "--objective_options", "alpha=-1", output=tmp_path)
    assert "alpha must be at least 0" in capsys.readouterr().err


def test_what_belongs_to_the_recipe(tmp_path):
    """Everything that decides the result, and nothing that says where it goes or how it is watched."""
    recipe = parse(output=tmp_path).recipe()
    assert set(recipe) == {"model", "objective", "perturbations", "data", "training"}
    assert set(recipe["training"]) == {
        "pairs_per_update", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
        "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "seed", "data_seed",
        "bf16", "fp16", "seconds_per_update", "per_device_train_seconds", "coupled_weight_decay", "released",
    }  # fmt: skip
    assert {"train_data", "streaming", "min_seconds"} <= set(recipe["data"])
    assert not [name for name in recipe["data"] if name.startswith(("eval_", "max_eval", "cache_", "perturb_on"))]


@pytest.mark.parametrize(("cores", "local", "workers"), [(2, 1, 2), (1, 1, 1), (16, 1, 8), (16, 4, 4), (4, 8, 1)])
def test_workers_share_the_cores(tmp_path, monkeypatch, cores, local, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert parse(output=tmp_path).training.dataloader_num_workers == workers
    assert parse("--dataloader_num_workers", "0", output=tmp_path).training.dataloader_num_workers == 0


def test_a_folder_of_ones_own_does_not_get_the_split_of_the_preset(tmp_path):
    own = parse("--train_data", "my_folder", output=tmp_path).data
    assert (own.train_data, own.train_name, own.train_split) == ("my_folder", None, None)
    both = parse("--data=my_folder", "--split", "dev", output=tmp_path).data
    assert (both.train_data, both.train_name, both.train_split) == ("my_folder", None, "dev")
    same = parse("--train_data", "openslr/librispeech_asr", output=tmp_path).data
    assert (same.train_name, same.train_split) == ("clean", "train.100")


def test_values_of_a_preset_have_types_and_ranges(tmp_path, capsys):
    path = tmp_path / "mine.json"
    for values, message in (
        ({"max_steps": None}, "--max_steps must be a whole number, got None"),
        ({"trainable_layers": 1.5}, "--trainable_layers must be a whole number, got 1.5"),
        ({"learning_rate": [1]}, "--learning_rate must be a number"),
        ({"num_train_epochs": 2}, "unknown keys: num_train_epochs"),
        ([1], "must be a JSON object"),
    ):
        path.write_text(json.dumps(values))
        with pytest.raises(SystemExit):
            parse("--preset", str(path), output=tmp_path)
        assert message in capsys.readouterr().err
    path.write_bytes('{"train_data": "Größe"}'.encode("latin-1"))
    with pytest.raises(LaserError, match="not valid JSON"):
        load_preset(str(path), option_names())


def test_what_accelerate_is_told_decides_the_precision(tmp_path, monkeypatch, capsys):
    assert parse(output=tmp_path).training.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    options = parse(output=tmp_path)
    assert options.training.bf16
    assert options.recipe()["training"]["bf16"]
    for setting in ("fp16", "fp8"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", setting)
        with pytest.raises(SystemExit):
            parse(output=tmp_path)
        assert setting in capsys.readouterr().err
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit):
        parse(output=tmp_path)
    assert "DDP" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ([], []),
        (["--seed", "3", "--max_steps", "3600", "--output_dir", "elsewhere"], []),
        (["--alpha", "5", "--margin", "3", "--max_steps", "10"], ["alpha", "margin", "max_steps"]),
        (["--preset", "hubert-base-spin"], []),
        (["--preset", "hubert-base-spin", "--crop_seconds", "2"], ["crop_seconds"]),
    ],
)
def test_what_differs_from_the_preset(argv, changed):
    assert parse_options([*argv, "--use_cpu"]).changed == changed
