"""Pictures: they are drawn for the extremes too."""

import matplotlib.pyplot as plt
import numpy as np

from laser_hf.superb.qbe import figures, scoring


def test_detection_curves(tmp_path):
    random = np.random.default_rng(0)
    targets = random.random((5, 200)) < 0.1
    good = scoring.detection_curve(random.normal(size=targets.shape) + 3 * targets, targets)
    perfect = scoring.detection_curve([[1.0, 0.0]], [[True, False]])
    figures.plot_detection({"good": good, "perfect": perfect}, tmp_path / "det.png", title="title")
    assert plt.imread(tmp_path / "det.png").std() > 0.05


def test_matches(tmp_path):
    random = np.random.default_rng(0)
    matches = [figures.Match("one", random.random((7, 40))), figures.Match("tiny", np.zeros((5, 1)))]
    figures.plot_matches(matches, tmp_path / "alignment.png", 0.02)
    assert plt.imread(tmp_path / "alignment.png").std() > 0.05
    assert not plt.get_fignums()
