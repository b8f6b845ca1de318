"""The control that trains nothing."""

from __future__ import annotations

import pytest
import torch

from experiments import whitened
from laser_hf.superb.features import load_features


def test_the_last_layer_has_mean_0_and_covariance_1_and_others_are_left(tiny_encoder):
    features = load_features(str(tiny_encoder))
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(16_000 + 1000 * n, generator=generator) for n in range(8)]
    changed = whitened.Whitened(features, waveforms)
    assert (changed.layers, changed.dim) == (features.layers, features.dim)
    last = features.layers - 1
    first, found = ([torch.cat(one) for one in made(waveforms, [0, last])] for made in (features, changed))
    torch.testing.assert_close(found[0], first[0])
    torch.testing.assert_close(found[1].mean(0), torch.zeros(features.dim), atol=1e-3, rtol=0)
    covariance = torch.cov(found[1].T.double())
    # A LayerNorm ends the encoder, so one direction hardly varies; `FLOOR` keeps it from being blown up.
    variances = torch.linalg.eigvalsh(covariance)
    assert variances[1:] == pytest.approx(torch.ones(features.dim - 1).numpy(), abs=2e-2)
    # The map is one and the same for every frame: differences are mapped without the mean.
    step = (first[1][3] - first[1][4]).double() @ changed.matrix
    torch.testing.assert_close(found[1][3] - found[1][4], step.float(), atol=1e-3, rtol=1e-3)


def test_a_task_on_whitened_features(tiny_encoder, small_tree, tmp_path, capsys):
    words = ["--model", str(tiny_encoder), "--data", str(small_tree), "--seconds", "0.2", "--max_steps", "10"]
    words += ["--device", "cpu", "--eval_steps", "10", "--output_dir", str(tmp_path / "a")]
    whitened.main(["sid", "--speech", str(small_tree), *words])
    assert (tmp_path / "a" / "results.json").is_file()
    with pytest.raises(SystemExit, match="no audio below"):
        whitened.main(["sid", "--speech", str(tmp_path / "none"), *words])
