"""The lines that a training prints."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from training_runs import history, start

from laser_hf.console import LogLines, short, time_left
from laser_hf.objectives import OBJECTIVES, LaserLoss, Objective, SoftDTWLoss

TRAINING = {
    "grad_norm": 18.6, "learning_rate": 1.9e-4, "loss": 47.08, "soft_dtw": 34.27, "idm": 85.31, "epoch": 0.3,
    "processed_hours": 0.1838, "frames_per_second": 4961.0, "frame_cosine": 0.1303, "effective_rank": 98.29,
}  # fmt: skip
HELD_OUT = {
    "eval_loss": 27.89, "eval_soft_dtw": 12.56, "eval_idm": 102.2, "eval_frame_cosine": 0.0, "eval_collapse": 0,
    "eval_effective_rank": 9.16, "eval_word_ap_across": 0.9187, "eval_my_score": 0.00021, "epoch": 0.3,
}  # fmt: skip


def test_the_lines_of_training_and_of_evaluation():
    lines = LogLines(LaserLoss.log_labels())
    assert lines.line(30, 90, {**TRAINING, "skipped": 3}, "2 min left") == (
        "   30/90  loss 47.1  sDTW 34.3  IDM 85.3  cos .13  rank  98  5.0k frames/s  .18 h  3 skipped  2 min left"
    )
    assert lines.line(30, 90, HELD_OUT) == (
        "held-out  loss 27.9  sDTW 12.6  IDM  102  cos   0  rank 9.2  word AP .919  my score 2e-04  after 30"
    )
    assert lines.line(0, 90, HELD_OUT).endswith("  before training")
    # The beginnings have one width, whatever the number of updates.
    assert {len(lines.line(step, 5000, {"loss": 1.0}).split("loss")[0]) for step in (1, 40, 5000)} == {11}
    assert lines.line(7, 5000, {"eval_loss": 1.0}).startswith("held-out ".rjust(10))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((0, "0"), (1e-5, "1e-05"), (0.0123, ".012"), (0.5, ".500"), (-0.25, "-.250"), (1.234, "1.23")),
        *((47.08, "47.1"), (102.2, "102"), (999.4, "999"), (4961, "5.0k"), (94_371_712, "94.4M")),
        *((float("nan"), "nan"), (float("inf"), "inf")),
    ],
)
def test_numbers_are_short(value, said):
    assert short(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, ""), (20, "20 s left"), (100, "2 min left"), (3 * 3600, "3 h left"), (80 * 60, "80 min left")],
)
def test_time_that_is_left(seconds, said):
    assert time_left(seconds) == said


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_every_objective_has_its_terms_in_the_line(objective):
    labels = objective.log_labels()
    assert len(labels) == len(objective.term_names) == len(set(labels.values()))
    logs = {name: 1.5 + place for place, name in enumerate(labels)}
    line = LogLines(labels).line(1, 2, logs)
    for place, label in enumerate(labels.values()):
        assert f"  {label} {1.5 + place:.2f}" in line
    assert "_" not in line


def test_a_term_that_is_the_loss_is_not_said_twice():
    line = LogLines(SoftDTWLoss.log_labels()).line(1, 2, {"loss": 34.3, "soft_dtw": 34.3})
    assert line == "     1/2  loss 34.3"


class Own(Objective):
    name, term_labels = "own", {"total": "total loss", "my_term": "a long label for plots"}


def test_an_objective_without_short_labels():
    assert Own.log_labels() == {"loss": "loss", "my_term": "my term"}


def test_only_the_first_process_prints(capsys):
    lines = LogLines({"loss": "loss"})
    for first in (False, True):
        state = SimpleNamespace(is_world_process_zero=first, global_step=1, max_steps=2)
        lines.on_log(None, state, None, {"loss": 1.0})
        assert bool(capsys.readouterr().out) is first
    lines.on_log(None, state, None, {"train_runtime": 1.0, "train_loss": 2.0})
    assert capsys.readouterr().out == ""


NUMBER = r" +([\d.e-]+k?)"


def value_of(text: str) -> float:
    return float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1)


@pytest.mark.slow
def test_a_run_prints_what_it_logs_and_nothing_else(tiny_encoder, small_tree, tmp_path, capfd):
    """No bars, no dictionaries, no noise of libraries: one line for each entry of the log, with its values."""
    held_out = (
        "--eval_data",
        str(small_tree),
        "--eval_steps",
        "2",
        "--eval_on_start",
        "true",
        "--max_eval_samples",
        "3",
    )
    record, *_ = start(tiny_encoder, small_tree, tmp_path, *held_out)
    out, err = capfd.readouterr()
    assert not re.search(r"[\r{}]|%\|", out + err)
    lines, end = out.split("\n\n")
    entries = [entry for entry in history(tmp_path) if "train_runtime" not in entry]
    assert len(lines.splitlines()) == len(entries) == 4 + 3
    for line, entry in zip(lines.splitlines(), entries, strict=True):
        prefix = "eval_" if "eval_loss" in entry else ""
        assert line.lstrip().startswith("held-out" if prefix else f"{entry['step']}/4"), line
        names = {"loss": "loss", "sDTW": "soft_dtw", "IDM": "idm", "cos": "frame_cosine", "rank": "effective_rank"}
        for label, name in names.items():
            (shown,) = re.findall(rf"  {label}{NUMBER}", line)
            assert value_of(shown) == pytest.approx(entry[prefix + name], rel=0.06, abs=0.006), (label, line)
        if not prefix:
            (shown,) = re.findall(r"  ([\d.]+k?) frames/s", line)
            assert value_of(shown) == pytest.approx(entry["frames_per_second"], rel=0.06)
    assert end.startswith(f"{record['updates']} updates, ")
    assert "Held-out speech, update 0 to 4: loss " in end
    assert "warning" not in err.lower().replace("do_normalize", "")
