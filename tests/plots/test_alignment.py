"""Where frames of a perturbed view belong, against clicks in perturbed waveforms and all paths of a small grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from laser_hf.data import SpeedPitch, build_perturbation, draw_generator
from laser_hf.errors import LaserError
from laser_hf.plots import alignment_figure, shares_beyond
from laser_hf.plots.alignment import DISTANCES, deviations, drawn_speed

HOP, FIELD, RATE = 320, 400, 16_000


def middles(samples: int) -> np.ndarray:
    """Centres of an encoder's frames, samples."""
    return np.arange((samples - FIELD) // HOP + 1) * HOP + FIELD / 2


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1, 1.25])
@pytest.mark.parametrize("pitch", [0.0, 2.0])
def test_sounds_lie_where_the_speed_says(speed, pitch):
    """Bursts in a clean waveform are found in its perturbed view, and the frames around them belong together."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(3 * RATE)
    for start in (5_000, 17_000, 40_000):
        clean[start : start + 800] = torch.hann_window(800) * torch.randn(800, generator=generator)
    perturbed = SpeedPitch([speed], [pitch]).apply(clean, speed=speed, pitch=pitch)
    late = deviations(len(middles(len(clean))), len(middles(len(perturbed))), speed, HOP / RATE, FIELD / 2 / RATE)
    for start in (5_000, 17_000, 40_000):
        middle = start + 400
        low, high = (int((middle + side * 1500) / speed) for side in (-1, 1))
        energy = perturbed[low:high].double().square()
        found = float((energy * torch.arange(low, high)).sum() / energy.sum())
        i = np.abs(middles(len(clean)) - middle).argmin()
        j = np.abs(middles(len(perturbed)) - found).argmin()
        # How much later the clean frame is than the burst, less how much later the perturbed frame is, in clean time.
        own, other = (middles(len(clean))[i] - middle) / RATE, speed * (middles(len(perturbed))[j] - found) / RATE
        assert float(late[i, j]) == pytest.approx(own - other, abs=0.004)


def test_the_speed_of_composed_views_is_the_product():
    assert drawn_speed({"speed": 1.1, "pitch": 2.0}) == 1.1
    assert drawn_speed({"file": "street.flac", "snr": 5.0}) == 1
    assert drawn_speed({"parts": [{"speed": 0.5}, {"gains": [1.0]}, {"parts": [{"speed": 1.5}]}]}) == 0.75
    views = build_perturbation(["equalizer", "speed_pitch"], {"speed_factors": [0.9]})
    drawn = views.draw_for(draw_generator(0, 0, "u"), "u")
    assert drawn_speed(drawn) == 0.9
    assert len(views.apply(torch.randn(9_000), **drawn)) == pytest.approx(10_000, abs=1)


def every_path(m: int, n: int):
    """All monotone paths from (0, 0) to (m - 1, n - 1)."""

    def grow(path):
        i, j = path[-1]
        if (i, j) == (m - 1, n - 1):
            yield path
        for step in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
            if step[0] < m and step[1] < n:
                yield from grow([*path, step])

    return grow([(0, 0)])


def test_shares_along_soft_dtw_are_those_of_all_paths():
    """Each path counts with its Gibbs probability, each of its cells with the probability of the path."""
    generator = torch.Generator().manual_seed(3)
    clean, perturbed = (torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) for n in (5, 4))
    gamma, speed, seconds, middle = 0.7, 1.25, 0.02, 0.0125
    cells, total = {}, 0.0
    for path in every_path(5, 4):
        cost = sum(float((clean[i] - perturbed[j]).square().sum()) for i, j in path)
        weight = math.exp(-cost / gamma)
        for cell in path:
            cells[cell] = cells.get(cell, 0.0) + weight
            total += weight
    beyond, _ = shares_beyond([(3 * clean, perturbed, speed)], gamma, seconds, middle)
    for distance, share in zip(DISTANCES.tolist(), beyond.tolist(), strict=True):
        far = sum(
            weight
            for (i, j), weight in cells.items()
            if abs(middle + i * seconds - speed * (middle + j * seconds)) > distance + 1e-6
        )
        assert share == pytest.approx(far / total, abs=1e-5)


def test_nearest_frames_are_taken_wherever_they_are():
    """Frames 0 and 3 of four change places: they are three frames away, and the others at their place."""
    clean = torch.eye(4)
    beyond = shares_beyond([(clean, clean[[3, 1, 2, 0]], 1.0)], 0.01, 0.02)[1]
    assert beyond[[0, 59, 60]].tolist() == pytest.approx([0.5, 0.5, 0])
    # A second pair without a fault halves them.
    pairs = [(clean, clean[[3, 1, 2, 0]], 1.0), (clean, clean, 1.0)]
    assert shares_beyond(pairs, 0.01, 0.02)[1][[0, 59, 60]].tolist() == pytest.approx([0.25, 0.25, 0])


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_a_path_along_the_true_warp_is_within_half_a_frame_of_it(speed):
    """Frames on a slow curve through space, sampled at the times of both views."""
    times = [0.0125 + 0.02 * torch.arange(n, dtype=torch.float64) for n in (100, int(100 / speed))]
    where = [torch.stack([(20 * t).cos(), (20 * t).sin(), 8 * t], 1) for t in (times[0], speed * times[1])]
    where = [torch.nn.functional.pad(one, (0, 1), value=5.0) for one in where]
    beyond = shares_beyond([(*where, speed)], 1e-4, 0.02, 0.0125)
    half = math.ceil(10 * max(1, speed)) + 1
    assert beyond[1, half] < 0.03  # nearest frames; the last ones may have no counterpart
    assert beyond[0, 2 * half] < 0.03


def test_a_speed_that_does_not_explain_the_views_is_refused():
    with pytest.raises(LaserError, match=r"true warp is not known: a speed of 1 .* 50 and 40 frames"):
        shares_beyond([(torch.randn(50, 3), torch.randn(40, 3), 1.0)], 0.1, 0.02)


def test_the_figure_draws_shares():
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(125, 6, generator=generator), torch.randn(100, 6, generator=generator), 1.25
    shares = {name: shares_beyond([pair], gamma, 0.02, 0.0125) for name, gamma in (("before", 9.0), ("after", 0.1))}
    axes = alignment_figure(shares, 0.02).axes
    assert len(axes) == 2
    for number, axis in enumerate(axes):
        for line, name in zip(axis.lines, shares, strict=False):
            np.testing.assert_allclose(line.get_xdata(), np.arange(201))
            np.testing.assert_allclose(line.get_ydata(), 100 * shares[name][number])
            assert line.get_label() == f"{name}: {100 * shares[name][number][20]:.1f} %"
        assert axis.get_legend().get_title().get_text() == "further than 20 ms"
