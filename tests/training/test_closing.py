"""What is said at the end of a run: only what was measured, relative to the start."""

from __future__ import annotations

import shlex

import pytest
from training_runs import start

from laser_hf import cli
from laser_hf.training.closing import closing, verdict


def record(first=None, last=None, fired_at=None, method="laser", held_out="dev", skipped=0, prefix="eval_"):
    """A training record with measurements before update 1 and after update 90; values by name."""
    start = {"loss": 37.6, "soft_dtw": 30.1, "idm": 50.0, "frame_cosine": 0.05, "effective_rank": 88.8, "collapse": 0}
    sides = []
    for step, values in ((0, first or {}), (90, last or {})):
        sides.append({prefix + name: {"step": step, "value": value} for name, value in {**start, **values}.items()})
    reference = {"step": 0, **{name: sides[0][prefix + name]["value"] for name in ("frame_cosine", "effective_rank")}}
    return {
        "updates": 90, "processed_hours": 0.5488, "wall_seconds": 178.0, "method": method, "first": sides[0],
        "last": sides[1], "collapse": {"fired_at": fired_at, "start": reference},
        "data": {"held_out": held_out, "skipped": {"utterances": skipped, "by_kind": {"too_short": skipped}}},
    }  # fmt: skip


def said(found) -> str:
    return "\n".join(verdict(found))


def test_held_out_terms_fell_and_one_rose():
    moved = {"loss": 22.56, "soft_dtw": 9.81, "idm": 85.0, "frame_cosine": 0.074, "effective_rank": 52.9}
    assert said(record(last=moved)).splitlines() == [
        "90 updates, 0.55 hours of speech processed, 178 seconds of training.",
        "Held-out speech, update 0 to 90: loss fell from 37.6 to 22.6 (-40 %), sDTW fell from 30.1 to 9.81 (-67 %), "
        "IDM rose from 50.0 to 85.0 (+70 %).",
        "No collapse alarm: mean cosine of frames rose from .050 to .074 (+48 %), effective rank fell from 88.8 to "
        "52.9 (-40 %).",
    ]


def test_held_out_terms_rose():
    text = said(record(last={"loss": 40.0, "soft_dtw": 33.0}))
    assert "loss rose from 37.6 to 40.0 (+6 %), sDTW rose from 30.1 to 33.0 (+10 %), IDM stayed at 50.0." in text
    assert "fell" not in text


def test_scores_of_an_evaluator_are_told():
    text = said(record(first={"word_ap_across": 0.896}, last={"word_ap_across": 0.919, "loss": 30.0}))
    assert "word AP rose from .896 to .919 (+3 %)" in text


def test_no_share_of_what_is_not_above_zero():
    text = said(record(first={"loss": -1.0}, last={"loss": -2.0}))
    assert "loss fell from -1.00 to -2.00, sDTW" in text


@pytest.mark.parametrize(("on", "state"), [(1, "still on at the end"), (0, "off again at the end")])
@pytest.mark.parametrize(
    ("method", "mend"), [("laser", "Raise --alpha or lower --learning_rate."), ("soft_dtw", "Lower --learning_rate.")]
)
def test_a_collapse_alarm_is_told(on, state, method, mend):
    last = {"loss": 1.0, "soft_dtw": 1.0, "frame_cosine": 0.9, "effective_rank": 2.0, "collapse": on}
    text = said(record(last=last, fired_at=60, method=method))
    assert f"COLLAPSE ALARM at update 60, {state}: mean cosine of frames rose from .050 to .900" in text
    assert text.endswith(f"effective rank fell from 88.8 to 2.00 (-98 %). {mend}")
    assert "No collapse" not in text


@pytest.mark.parametrize(
    ("given", "why"), [(None, "was not given (--eval_data)"), ("dev", "was not measured (--eval_steps)")]
)
def test_without_held_out_measurements_the_training_terms_stand_in(given, why):
    text = said(record(last={"loss": 20.0, "soft_dtw": 15.0, "idm": 60.0}, held_out=given, prefix=""))
    assert f"Held-out speech {why}: how the encoder does on speech it was not trained on is not known." in text
    assert "Speech trained on, update 0 to 90: loss fell from 37.6 to 20.0 (-47 %)" in text


def test_one_measurement_is_no_change():
    found = record()
    found["last"] = found["first"]
    assert "Held-out speech was not measured twice: what changed is not known." in said(found)
    found["collapse"]["start"] = None
    assert "Whether the frames became alike was not measured." in said(found)
    assert "fell" not in said(found)


def test_skipped_utterances_are_told():
    assert said(record(skipped=12)).endswith("12 utterances were skipped: {'too_short': 12}.")


def test_terms_of_another_objective():
    spin = {"loss": 5.0, "swapped_x": 5.5, "swapped_y": 4.5, "perplexity": 100.0, "code_perplexity": 50.0}
    text = said(record(first=spin, last=spin | {"loss": 4.0, "code_perplexity": 75.0}, method="spin"))
    assert "loss fell from 5.00 to 4.00 (-20 %), CE clean stayed at 5.50" in text
    assert "nearest rose from 50.0 to 75.0 (+50 %)" in text


def test_a_run_without_lines_of_the_log(tiny_encoder, small_tree, tmp_path, capsys):
    quiet = ("--max_steps", "1", "--logging_steps", "9", "--logging_first_step", "false")
    start(tiny_encoder, small_tree, tmp_path, *quiet)
    printed = capsys.readouterr().out
    assert "Speech trained on was not measured twice" in printed
    assert "Whether the frames became alike was not measured." in printed


def commands_of(text: str) -> list[list[str]]:
    """The commands that a closing text names, without the program."""
    program = shlex.split(cli.program())
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    assert all(line[: len(program)] == program for line in lines)
    return [line[len(program) :] for line in lines]


def test_the_commands_are_quoted():
    """`tests/test_package.py` runs them."""
    measure, publish = commands_of(closing("my run"))
    assert measure[:4] == ["superb", "discrimination", "--model", "my run"]
    assert publish[:2] == ["push", "my run"]
    given = dict(zip(publish[2::2], publish[3::2], strict=True))
    assert given == {"--repo_id": "your-name/my-run-laser", "--results": "my run/results/discrimination/results.json"}
