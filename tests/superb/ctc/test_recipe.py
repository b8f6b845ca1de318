"""Every number of SUPERB's ASR and PR recipes, and what a record is called when one of them changes."""

from __future__ import annotations

import argparse
import dataclasses
import re

import pytest
import torch
from transformers import Trainer

from laser_hf.errors import LaserError
from laser_hf.superb.__main__ import main
from laser_hf.superb.ctc import task as recipe
from laser_hf.superb.ctc.run import Command
from laser_hf.superb.ctc.tasks import ASR, PR, Asr, Pr


def parse(task, *words):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    task.add_arguments(parser)
    return parser.parse_args(["--model", "m", "--data", "d", "--output_dir", "o", *words])


def test_asr_is_superbs():
    assert dataclasses.asdict(ASR["superb"]) == {
        "max_steps": 200_000,
        "eval_steps": 2_000,
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "batch_size": 16,
        "projection_size": 1024,
        "max_train_utterances": None,
        "precision": "fp32",
        "halve_above_samples": 2_000,
        "decay": 0.0,
        "stack": 1,
        "lstm_size": 1024,
        "lstm_layers": 2,
        "dropout": 0.2,
        "warp_window": 5,
        "feature_masks": 4,
        "feature_mask_width": 50,
        "time_masks": 2,
        "time_mask_width": 40,
    }


def test_pr_is_superbs_with_the_rate_of_the_published_numbers():
    assert dataclasses.asdict(PR["superb"]) == {
        "max_steps": 100_000,
        "eval_steps": 1_000,
        "learning_rate": 5e-4,
        "max_grad_norm": 1.0,
        "batch_size": 16,
        "projection_size": 256,
        "max_train_utterances": None,
        "precision": "fp32",
        "halve_above_samples": 300_000,
        "batches_per_update": 2,
    }


def test_the_seed_and_the_splits_are_superbs():
    for task in (Asr, Pr):
        arguments = parse(task)
        assert arguments.protocol == "superb"
        assert arguments.seed == 1337
        assert (arguments.train_split, arguments.dev_split) == ("train-clean-100", "dev-clean")
        assert arguments.test_split == ["test-clean"]
        assert not arguments.bf16


def test_the_trainer_is_told_so(tmp_path):
    command = Command.__new__(Command)
    command.arguments = parse(Asr, "--output_dir", str(tmp_path), "--device", "cpu")
    command.recipe = ASR["superb"]
    args = command.training_arguments()
    assert args.lr_scheduler_type == "constant"
    assert (args.warmup_steps, args.weight_decay, args.max_grad_norm) == (0, 0.0, 1.0)
    assert (args.max_steps, args.eval_steps, args.learning_rate, args.seed) == (200_000, 2_000, 1e-4, 1337)
    command.recipe = dataclasses.replace(ASR["superb"], max_steps=10, eval_steps=5, decay=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Trainer(torch.nn.Linear(1, 1), command.training_arguments(), eval_dataset=[0]).create_scheduler(
        10, optimizer
    )
    rates = []
    for _ in range(10):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_shapes_of_the_asr_head():
    with torch.device("meta"):  # only shapes
        head = Asr.build_head(ASR["superb"], 13, 768)
    shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
    assert shapes.pop("weighted_sum.weights") == (13,)
    assert shapes.pop("head.projection.weight") == (1024, 768)
    assert shapes.pop("head.output.weight") == (32, 2048)
    for layer, size in ((0, 1024), (1, 2048)):
        for way in ("", "_reverse"):
            assert shapes[f"head.lstms.{layer}.weight_ih_l0{way}"] == (4 * 1024, size)
            assert shapes[f"head.lstms.{layer}.weight_hh_l0{way}"] == (4 * 1024, 1024)
    assert len([name for name in shapes if "lstms" in name]) == 16
    assert head.head.dropout.p == 0.2


def test_shapes_of_the_pr_head():
    head = Pr.build_head(PR["superb"], 13, 768)
    shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
    assert shapes == {
        "weighted_sum.weights": (13,),
        "head.projection.weight": (256, 768),
        "head.projection.bias": (256,),
        "head.output.weight": (74, 256),
        "head.output.bias": (74,),
    }
    assert head.augment is None


def chosen_recipe(arguments, recipes):
    (chosen,) = recipe.choose_recipes(arguments, recipes)
    return chosen


def test_several_learning_rates():
    words = ["--learning_rate", "1e-3", "1e-4", "0.001", "--dropout", "0.1"]
    chosen = recipe.choose_recipes(parse(Asr, *words), ASR)
    assert [one.learning_rate for one in chosen] == [1e-3, 1e-4]
    assert {one.dropout for one in chosen} == {0.1}


def test_values_given_on_the_command_line():
    chosen = chosen_recipe(parse(Asr, "--max_steps", "5000", "--dropout", "0"), ASR)
    assert chosen == dataclasses.replace(ASR["superb"], max_steps=5000, dropout=0.0)
    chosen = chosen_recipe(parse(Pr, "--protocol", "quick", "--batch_size", "3"), PR)
    assert chosen == dataclasses.replace(PR["quick"], batch_size=3)
    assert chosen_recipe(parse(Pr), PR) == PR["superb"]
    with pytest.raises(LaserError, match="--eval_steps 2000 exceeds --max_steps 100"):
        chosen_recipe(parse(Asr, "--max_steps", "100"), ASR)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "1e-3", "nan"], "--learning_rate must be above 0, got 'nan'"),
        (["--learning_rate", "inf"], "--learning_rate must be above 0, got 'inf'"),
        (["--max_steps", "0"], "--max_steps must be at least 1, got '0'"),
        (["--max_grad_norm", "-1"], "--max_grad_norm must be above 0"),
        (["--dropout", "1"], "--dropout must be from 0 to 0.95"),
        (["--warp_window", "-1"], "--warp_window must be at least 0"),
        (["--max_train_utterances", "-3"], "--max_train_utterances must be at least 2"),
        (["--runs", "0"], "--runs must be at least 1, got '0'"),
        (["--micro_batch_size", "0"], "--micro_batch_size must be at least 1"),
        (["--eval_batch_size", "-1"], "--eval_batch_size must be at least 1"),
        (["--logging_steps", "0"], "--logging_steps must be at least 1"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers must be at least 0"),
        (["--runs", "1.5"], "--runs must be a whole number, got '1.5'"),
    ],
)
def test_values_out_of_range(words, message, capsys):
    """They are refused as the command line is read, and the help shows the range."""
    with pytest.raises(SystemExit):
        parse(Asr, *words)
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["asr", "--help"])
    (line,) = re.findall(rf"^  {words[0]} .*(?:\n {{20}}.*)*", capsys.readouterr().out, re.MULTILINE)
    shown = message.partition(" must be ")[2].partition(", got")[0]
    assert "whole number" in shown or f"({shown}" in " ".join(line.split())


def test_what_accelerate_was_told_decides_the_precision(monkeypatch):
    for told, words, expected in (("bf16", [], "bf16"), ("no", ["--bf16"], "bf16"), ("no", [], "fp32")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
        assert chosen_recipe(parse(Asr, *words), ASR).precision == expected
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(LaserError, match="ACCELERATE_MIXED_PRECISION is fp16"):
        chosen_recipe(parse(Asr), ASR)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], True),
        (["--learning_rate", "1e-3"], True),  # what SUPERB lets everyone tune
        (["--learning_rate", "1e-1"], True),  # the ends of the range
        (["--learning_rate", "1e-7"], True),
        (["--learning_rate", "1.1e-1"], False),
        (["--learning_rate", "0.9e-7"], False),
        (["--max_steps", "100000"], False),
        (["--time_masks", "0"], False),
        (["--bf16"], False),
        (["--micro_batch_size", "4", "--eval_batch_size", "1", "--cache_features", "yes"], True),
        (["--seed", "1", "--runs", "5"], True),
        (["--max_train_utterances", "100"], False),
    ],
)
def test_what_may_be_called_superb(words, kept):
    chosen = chosen_recipe(parse(Asr, *words), ASR)
    changed = recipe.changes(chosen, ASR["superb"])
    assert recipe.is_superb(changed, chosen.learning_rate) is kept
    assert bool(changed) == (chosen != ASR["superb"])


def test_quick_is_never_superb():
    for recipes in (ASR, PR):
        changed = recipe.changes(recipes["quick"], recipes["superb"])
        assert not recipe.is_superb(changed, recipes["quick"].learning_rate)
        assert set(changed) >= {"max_steps", "learning_rate"}
