"""Curves: which panels there are and what is drawn in them."""

from __future__ import annotations

import pytest

from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES, LaserLoss
from laser_hf.plots import discrimination_figure, training_figure

from .conftest import make_history

STATISTICS = ["mean pairwise cosine of frames", "effective rank of frames", "gradient norm before clipping"]


def visible(figure):
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_panel_for_every_term_of_the_objective(name):
    labels = OBJECTIVES[name].term_labels
    panels = visible(training_figure({"run": make_history(*list(labels)[1:])}, labels))
    assert list(panels) == [*labels.values(), *STATISTICS]


def test_terms_without_values_have_no_panel():
    panels = visible(training_figure({"run": make_history("soft_dtw")}, LaserLoss.term_labels))
    assert list(panels) == ["total loss", "normalised soft-DTW", *STATISTICS]
    assert list(visible(training_figure({"run": [{"step": 1, "loss": 2.0}]}))) == ["total loss"]


def test_values_stand_at_their_steps():
    log = make_history("soft_dtw", steps=(1, 5, 9))
    log.append({"step": 12, "loss": None, "soft_dtw": 7.0})  # a loss that was not finite is written as null
    runs = {"one": log, "two": make_history("idm", steps=(2, 4), held_out=False)}
    figure = training_figure(runs, LaserLoss.term_labels)
    panels = visible(figure)
    training, held_out, other = panels["total loss"].lines
    assert training.get_xydata().tolist() == [[1, 1.0], [5, 0.2], [9, pytest.approx(1 / 9)]]
    assert held_out.get_xydata().tolist() == training.get_xydata().tolist()
    assert training.get_alpha() < 1
    assert training.get_color() == held_out.get_color() != other.get_color()
    assert panels["normalised soft-DTW"].lines[0].get_xdata().tolist() == [1, 5, 9, 12]
    assert [line.get_xdata().tolist() for line in panels["regulariser (IDM term)"].lines] == [[2, 4]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "training", "held-out"]


def test_a_single_run_is_not_named():
    (legend,) = training_figure({"one": make_history()}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "held-out"]
    assert not training_figure({"one": make_history(held_out=False)}).legends


def test_terms_over_decades_are_logarithmic():
    runs = {"a": make_history("idm"), "b": make_history("idm", scale=1000.0)}
    panels = visible(training_figure(runs, LaserLoss.term_labels))
    assert panels["regulariser (IDM term)"].get_yscale() == "log"
    assert panels["effective rank of frames"].get_yscale() == "linear"


def test_a_log_without_loss_is_refused():
    with pytest.raises(LaserError, match="the log of mine holds no loss"):
        training_figure({"mine": [{"step": 1, "epoch": 1.0}]})
    with pytest.raises(LaserError, match="no run"):
        training_figure({})


def test_word_discrimination_against_updates():
    values = {"eval_word_ap_across": 0.4, "eval_abx_across": 0.2, "eval_abx_within": 0.1}
    log = [{"step": step, **{key: value * step for key, value in values.items()}} for step in (1, 2)]
    words, phones = discrimination_figure([{"step": 0, "loss": 1.0}, *log]).axes
    assert [line.get_xydata().tolist() for line in words.lines] == [[[1, 0.4], [2, 0.8]]]
    assert [line.get_label() for line in phones.lines] == ["across speakers", "within speakers"]
    assert phones.lines[1].get_xydata().tolist() == [[1, 0.1], [2, 0.2]]
    without_phones = discrimination_figure([{"step": 1, "eval_word_ap_across": 0.4}])
    assert [len(axis.lines) for axis in without_phones.axes] == [1]
    assert discrimination_figure(make_history()) is None
