"""Curves: which panels there are, for any objective's terms, and what is drawn in them."""

from __future__ import annotations

import pytest

from laser_hf.plots import curves as curves_module
from laser_hf.plots import plot_training
from laser_hf.plots.curves import term_names

from .conftest import assert_drawn

BOOKKEEPING = {
    "learning_rate": 1e-4,
    "processed_hours": 0.1,
    "frames_per_second": 900.0,
    "skipped": 2,
    "collapse": 0,
    "epoch": 0.5,
}


def history(*terms: str, steps=(1, 2, 3), held_out: bool = True, scale: float = 1.0):
    log = []
    for step in steps:
        values = {name: scale * (number + 1) / step for number, name in enumerate(("loss", *terms))}
        statistics = {"frame_cosine": 0.1 * step, "effective_rank": 30.0 - step}
        log.append({"step": step, **values, **statistics, "grad_norm": 2.0, **BOOKKEEPING})
        if held_out:
            log.append(
                {"step": step, "epoch": 0.5, "eval_word_ap_across": 0.5}
                | {f"eval_{name}": value for name, value in (values | statistics).items()}
            )
    log.append({"step": steps[-1], "train_loss": 1.0, "train_runtime": 3.0, "total_flos": 0.0})
    return log


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, still open."""
    seen = []
    original = curves_module.save

    def keep(figure, path, title=""):
        seen.append(figure)
        original(figure, path, title)

    monkeypatch.setattr(curves_module, "save", keep)
    return seen


def visible(figure):
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


def test_terms_are_what_the_logs_name():
    assert term_names([history("soft_dtw", "idm")]) == ["soft_dtw", "idm"]
    swapped = ("perplexity", "cross_entropy_clean_to_perturbed", "cross_entropy_perturbed_to_clean")
    assert term_names([history(*swapped), history("soft_dtw", "perplexity")]) == [*swapped, "soft_dtw"]
    assert term_names([history()]) == []
    assert term_names([[{"step": 1, "eval_loss": 1.0, "eval_other": 2.0}]]) == []


@pytest.mark.parametrize("terms", [(), ("soft_dtw", "idm"), ("a", "b_c", "d", "e", "f")])
def test_a_panel_for_every_term(tmp_path, figures, terms):
    plot_training({"run": history(*terms)}, tmp_path / "curves.png", "title")
    assert_drawn(tmp_path / "curves.png")
    panels = visible(figures[0])
    assert next(iter(panels)) == "total loss"
    assert len(panels) == 1 + len(terms) + 3
    assert list(panels)[-1] == "gradient norm before clipping"
    if terms == ("soft_dtw", "idm"):
        assert {"normalised soft-DTW", "contrastive IDM"} < set(panels)
    if "b_c" in terms:
        assert "b c" in panels


def test_values_stand_at_their_steps(tmp_path, figures):
    log = history("soft_dtw", steps=(1, 5, 9))
    log.append({"step": 12, "loss": None, "soft_dtw": 7.0})  # a loss that was not finite is written as null
    plot_training({"one": log, "two": history("idm", steps=(2, 4), held_out=False)}, tmp_path / "curves.png")
    panels = visible(figures[0])
    training, held_out, other = panels["total loss"].lines
    assert training.get_xydata().tolist() == [[1, 1.0], [5, 0.2], [9, pytest.approx(1 / 9)]]
    assert held_out.get_xydata().tolist() == training.get_xydata().tolist()
    assert training.get_alpha() < 1
    assert training.get_color() == held_out.get_color() != other.get_color()
    assert panels["normalised soft-DTW"].lines[0].get_xdata().tolist() == [1, 5, 9, 12]
    assert [line.get_xdata().tolist() for line in panels["contrastive IDM"].lines] == [[2, 4]]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "training", "held-out"]


def test_terms_over_decades_are_logarithmic(tmp_path, figures):
    plot_training({"a": history("idm"), "b": history("idm", scale=1000.0)}, tmp_path / "curves.png")
    panels = visible(figures[0])
    assert panels["contrastive IDM"].get_yscale() == "log"
    assert panels["effective rank of frames"].get_yscale() == "linear"


def test_a_log_without_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the log of mine holds no loss"):
        plot_training({"mine": [{"step": 1, "epoch": 1.0}]}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="no run"):
        plot_training({}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
