"""Pictures: they are drawn for the extremes too."""

import matplotlib.pyplot as plt
import numpy as np

from laser_hf.superb.qbe import report, scoring


def test_the_best_term_weighted_value_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    random = np.random.default_rng(1)
    targets = random.random((4, 300)) < 0.1
    scores = random.normal(size=targets.shape) + 2 * targets
    report.plot_detection(scores, targets, tmp_path / "det.png", "title")
    assert plt.imread(tmp_path / "det.png").std() > 0.05
    axis = plt.gcf().axes[0]
    best = scoring.mtwv(scores, targets)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [f"MTWV {best.value:.4f}"]
    mark = next(line for line in axis.lines if line.get_marker() == "o")
    miss = np.mean([(scores[q][targets[q]] < best.threshold).mean() for q in range(4)])
    false_alarm = np.mean([(scores[q][~targets[q]] >= best.threshold).mean() for q in range(4)])
    np.testing.assert_allclose(np.ravel(mark.get_data()), [false_alarm, miss], atol=1e-9)
    monkeypatch.undo()
    plt.close("all")
    report.plot_detection([[1.0, 0.0]], [[True, False]], tmp_path / "perfect.png")
    assert plt.imread(tmp_path / "perfect.png").std() > 0.05


def test_matches(tmp_path):
    random = np.random.default_rng(0)
    matches = {"one": random.random((7, 40)), "tiny": np.zeros((5, 1))}
    report.plot_matches(matches, tmp_path / "alignment.png", 0.02)
    assert plt.imread(tmp_path / "alignment.png").std() > 0.05
    assert not plt.get_fignums()
