"""`--eval_alignments`: what it logs, and that it leaves the run as it would be without."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from laser_hf.errors import LaserError
from laser_hf.records import located
from laser_hf.training import parse_options, run_training
from laser_hf.training.arguments import DataArguments
from laser_hf.training.speech import LOGGED, load_evaluator

HEADER = "utterance\tword\tstart_seconds\tduration_seconds\tphones(name:start:duration)\n"


@pytest.fixture(scope="module")
def alignments(tmp_path_factory, small_tree):
    vocabulary, phones = ["river", "garden", "letter", "winter"], ["AA", "IY", "S", "T"]
    rows = []
    for file in sorted(small_tree.rglob("*.flac")):
        take = int(file.stem[-1])
        for place in range(3):
            phone = f"{phones[(take + place) % 4]}:{10 + 13 * place}:6"
            rows.append(f"{file.stem}\t{vocabulary[(take + place) % 4]}\t{0.1 + 0.13 * place:.2f}\t0.12\t{phone}")
    path = tmp_path_factory.mktemp("aligned") / "alignments.tsv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def options(encoder, tree, output_dir, *more):
    return parse_options(
        [
            "--model_name_or_path", str(encoder), "--train_data", str(tree), "--train_split", "train",
            "--eval_data", str(tree), "--output_dir", str(output_dir), "--use_cpu",
            "--max_eval_samples", "3", "--min_seconds", "0.1",
            "--pairs_per_update", "2", "--per_device_train_batch_size", "2", "--warmup_steps", "1", "--max_steps", "4",
            "--eval_steps", "2", "--eval_on_start", "--save_steps", "2", "--logging_steps", "1", "--projection_dim",
            "8", "--dataloader_num_workers", "0", "--report_to", "none", "--learning_rate", "1e-2", *more,
        ]
    )  # fmt: skip


def measured(output_dir) -> list[tuple[int, dict[str, float]]]:
    log = json.loads((output_dir / "training_log.json").read_text())["log"]
    return [
        (entry["step"], {name: entry[f"eval_{name}"] for name in LOGGED if f"eval_{name}" in entry})
        for entry in log
        if "eval_loss" in entry
    ]


@pytest.fixture(scope="module")
def with_evaluator(tiny_encoder, small_tree, alignments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "with"
    record = run_training(options(tiny_encoder, small_tree, folder, "--eval_alignments", str(alignments)))
    return folder, record


@pytest.mark.slow
def test_values_are_logged_recorded_and_drawn(with_evaluator):
    folder, record = with_evaluator
    values = measured(folder)
    assert [step for step, _ in values] == [0, 2, 4]
    for _, entry in values:
        assert set(entry) == set(LOGGED)
        assert all(0 < value < 1 for value in entry.values())
    assert values[0] != values[-1]
    for name in LOGGED:
        assert record["first"][f"eval_{name}"] == {"step": 0, "value": values[0][1][name]}
        assert record["last"][f"eval_{name}"] == {"step": 4, "value": values[-1][1][name]}
    assert "eval_alignments" not in record["recipe"]["data"]
    assert (folder / "plots" / "loss_terms.png").is_file()


def test_the_run_is_the_same_without_it(with_evaluator, tiny_encoder, small_tree, tmp_path):
    folder, _ = with_evaluator
    run_training(options(tiny_encoder, small_tree, tmp_path / "without", "--plots", "false"))
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "without"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(not entry for _, entry in measured(tmp_path / "without"))


@pytest.mark.slow
def test_a_resumed_run_measures_the_same(with_evaluator, tiny_encoder, small_tree, alignments, tmp_path):
    folder, _ = with_evaluator
    arguments = (
        tiny_encoder,
        small_tree,
        tmp_path / "resumed",
        "--eval_alignments",
        str(alignments),
        "--plots",
        "false",
    )
    first = options(*arguments)
    run_training(first)
    # As if it had been interrupted after the checkpoint of step 2.
    for name in ("laser_config.json", "training_log.json"):
        (tmp_path / "resumed" / name).unlink()
    last = tmp_path / "resumed" / "checkpoint-4"
    last.rename(tmp_path / "set-aside")
    run_training(options(*arguments))
    assert measured(tmp_path / "resumed") == measured(folder)


def test_the_generator_of_dropout_is_left_alone(alignments, small_tree, tiny_encoder):
    from laser_hf.encoders import load_encoder

    evaluator = load_evaluator(DataArguments(eval_data=str(small_tree), eval_alignments=str(alignments)))
    encoder = load_encoder(str(tiny_encoder)).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    values = evaluator(encoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.training
    assert evaluator(encoder) == values


def test_the_shipped_speech_has_word_times():
    evaluator = load_evaluator(
        DataArguments(eval_data=located("{laser_hf}/demo/speech/heldout"), eval_alignments="demo")
    )
    assert len(evaluator.speech.words) == 200
    assert len({word.speaker for word in evaluator.speech.words}) == 6
    assert not evaluator.speech.reasons


def test_options_that_do_not_fit_are_refused(alignments, small_tree, tmp_path):
    assert load_evaluator(DataArguments()) is None
    with pytest.raises(LaserError, match="none without --eval_data"):
        load_evaluator(DataArguments(eval_alignments=str(alignments)))
    with pytest.raises(LaserError, match=r"--eval_alignments .*nowhere\.tsv cannot be used"):
        load_evaluator(DataArguments(eval_data=str(small_tree), eval_alignments=str(tmp_path / "nowhere.tsv")))
    with pytest.raises(LaserError, match="no folder"):
        load_evaluator(
            DataArguments(eval_data=str(small_tree), eval_alignments=str(alignments), eval_alignments_splits=["dev"])
        )
