"""Curves: which panels there are and what is drawn in them."""

from __future__ import annotations

import numpy as np
import pytest

from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES, LaserLoss
from laser_hf.plots import training_figure
from laser_hf.plots.run import curve_marks

from .conftest import make_history

STATISTICS = ["mean pairwise cosine of frames", "effective rank of frames", "gradient norm before clipping"]


def visible(figure):
    return {axis.get_title().replace("\n", " "): axis for axis in figure.axes if axis.get_visible()}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_panel_for_every_term_of_the_objective(name):
    labels = OBJECTIVES[name].term_labels
    panels = visible(training_figure({"run": make_history(*list(labels)[1:])}, labels))
    assert list(panels) == [*labels.values(), *STATISTICS]


def test_terms_without_values_have_no_panel():
    panels = visible(training_figure({"run": make_history("soft_dtw")}, LaserLoss.term_labels))
    assert list(panels) == ["total loss", "normalised soft-DTW", *STATISTICS]
    assert list(visible(training_figure({"run": [{"step": 1, "loss": 2.0}]}))) == ["total loss"]


def test_terms_are_relative_to_their_start_at_their_steps():
    log = make_history("soft_dtw", steps=(2, 5, 8), scale=4.0)
    log.append({"step": 12, "loss": None, "soft_dtw": 6.0})  # a loss that was not finite is written as null
    runs = {"one": log, "two": make_history("idm", steps=(2, 4), held_out=False)}
    figure = training_figure(runs, LaserLoss.term_labels)
    panels = visible(figure)
    training, held_out, other = panels["total loss"].lines
    np.testing.assert_allclose(training.get_xydata(), [[2, 100], [5, 40], [8, 25]])
    np.testing.assert_allclose(held_out.get_xydata(), training.get_xydata())
    assert training.get_alpha() < 1
    assert training.get_color() == held_out.get_color() != other.get_color()
    # The term starts at 2 * 4.0 / 2.
    np.testing.assert_allclose(panels["normalised soft-DTW"].lines[0].get_xydata()[-1], [12, 150])
    np.testing.assert_allclose(panels["regulariser (IDM term)"].lines[0].get_xydata(), [[2, 100], [4, 50]])
    assert {panels[title].get_ylabel() for title in LaserLoss.term_labels.values()} == {"% of its start"}
    np.testing.assert_allclose(panels["effective rank of frames"].lines[0].get_xydata(), [[2, 28], [5, 25], [8, 22]])
    assert [panels[title].get_ylabel() for title in STATISTICS] == ["cosine", "dimensions", "norm"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "training", "held-out"]


def test_terms_that_start_at_zero_or_below_are_drawn_as_they_are():
    log = [{"step": step, "loss": 3.0, "idm": value} for step, value in ((1, 0.0), (2, 4.0))]
    panels = visible(training_figure({"run": log}, LaserLoss.term_labels))
    assert panels["regulariser (IDM term)"].lines[0].get_xydata().tolist() == [[1, 0.0], [2, 4.0]]
    assert panels["regulariser (IDM term)"].get_ylabel() == "value"
    assert panels["total loss"].lines[0].get_ydata().tolist() == [100, 100]


def test_warm_up_alarm_and_held_out_pairs_are_marked():
    log = [{"step": step, "eval_loss": 1.0, "eval_collapse": int(step > 3)} for step in (0, 2, 4, 6)]
    figure = training_figure({"run": log}, None, 3, 32)
    (axis,) = visible(figure).values()
    (alarm,) = [line for line in axis.lines if len(set(line.get_xdata())) == 1]
    assert set(alarm.get_xdata()) == {4}
    (span,) = axis.patches
    assert (span.get_x(), span.get_width()) == (0, 3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["held-out (32 pairs)", "warm-up", "collapse alarm"]
    (legend,) = training_figure({"run": log[:2]}, None, 3, 32).legends
    assert [text.get_text() for text in legend.get_texts()] == ["held-out (32 pairs)", "warm-up"]
    # Of training frames, without held-out ones.
    figure = training_figure({"run": [{"step": step, "loss": 1.0, "collapse": int(step > 4)} for step in (4, 5, 6)]})
    assert set(figure.axes[0].lines[-1].get_xdata()) == {5}


@pytest.mark.parametrize(("steps", "marked"), [(20, 20), (0.1, 9), (0, 0), (None, 0)])
def test_marks_come_from_the_record(steps, marked):
    record = {"recipe": {"training": {"warmup_steps": steps}}, "updates": 90, "data": {"held_out_utterances": 64}}
    assert curve_marks([record]) == curve_marks([record, record]) == (marked, 64)
    other = {"recipe": {"training": {"warmup_steps": 7}}, "updates": 90, "data": {"held_out_utterances": 8}}
    assert curve_marks([record, other]) == (0, None)
    assert curve_marks([{"recipe": {}, "data": {}, "updates": 90}]) == (0, None)  # of an earlier version


def test_a_single_run_is_not_named():
    (legend,) = training_figure({"one": make_history()}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "held-out"]
    assert not training_figure({"one": make_history(held_out=False)}).legends


def test_terms_over_decades_are_logarithmic():
    runs = {"a": make_history("idm"), "b": make_history("idm", steps=(1, 100))}
    panels = visible(training_figure(runs, LaserLoss.term_labels))
    assert panels["regulariser (IDM term)"].get_yscale() == "log"
    assert panels["mean pairwise cosine of frames"].get_yscale() == "linear"  # it has a scale of its own


def test_a_log_without_loss_is_refused():
    with pytest.raises(LaserError, match="the log of mine holds no loss"):
        training_figure({"mine": [{"step": 1, "epoch": 1.0}]})
    with pytest.raises(LaserError, match="no run"):
        training_figure({})


def test_words_and_phones_have_panels():
    values = {"eval_word_ap_across": 0.4, "eval_abx_across": 0.2, "eval_abx_within": 0.1}
    log = [{"step": step, "loss": 1.0, **{key: value * step for key, value in values.items()}} for step in (1, 2)]
    panels = visible(training_figure({"run": log}))
    titles = ["word discrimination across speakers", "ABX-like phone error across speakers"]
    assert list(panels) == ["total loss", *titles, "ABX-like phone error within speakers"]
    for axis, value in zip(list(panels.values())[1:], values.values(), strict=True):
        assert [line.get_xydata().tolist() for line in axis.lines] == [[[1, value], [2, 2 * value]]]
    assert "best 1" in panels[titles[0]].get_ylabel()
    assert "chance 0.5" in panels[titles[1]].get_ylabel()
