"""The equaliser against the cookbook's transfer function, torchaudio's biquads and a float64 recursion."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch
import torchaudio

from laser_hf.data import Equalizer, build_perturbation, draw_generator
from laser_hf.data.speaker import biquad

FREQUENCIES = np.geomspace(60, 7600, 10)
KINDS = ["low_shelf", *["peaking"] * 8, "high_shelf"]


def analogue(kind: str, gain: float, quality: float, s: np.ndarray) -> np.ndarray:
    """The analogue prototypes `H(s)` that the cookbook starts from, for a corner at 1 rad/s."""
    a = 10 ** (gain / 40)
    if kind == "peaking":
        return (s**2 + s * a / quality + 1) / (s**2 + s / (a * quality) + 1)
    root = math.sqrt(a) / quality
    if kind == "low_shelf":
        return a * (s**2 + root * s + a) / (a * s**2 + root * s + 1)
    return a * (a * s**2 + root * s + 1) / (s**2 + root * s + a)


def transfer(gains, qualities, omega: np.ndarray) -> np.ndarray:
    """The cascade's frequency response at `omega` rad a sample, by the bilinear transform of the prototypes."""
    response = np.ones(len(omega), dtype=complex)
    for kind, frequency, gain, quality in zip(KINDS, FREQUENCIES, gains, qualities, strict=True):
        s = 1j * np.tan(omega / 2) / np.tan(np.pi * frequency / 16000)
        response *= analogue(kind, gain, quality, s)
    return response


DRAWS = [Equalizer().draw(draw_generator(0, 0, str(index))) for index in range(4)]
DRAWS += [{"gains": [sign * 12.0] * 10, "qualities": [5.0] * 10} for sign in (1, -1)]  # the longest to ring


@pytest.mark.parametrize("drawn", DRAWS)
def test_the_response_is_the_analytic_one(drawn):
    response = Equalizer().impulse_response(drawn["gains"], drawn["qualities"])
    size = 2**16
    omega = 2 * np.pi * np.arange(size // 2) / size  # all but half the sample rate
    expected = transfer(drawn["gains"], drawn["qualities"], omega)
    found = np.fft.rfft(response.numpy(), size)[:-1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "gain"), [("low_shelf", 9.0), ("peaking", -7.0), ("high_shelf", 4.0)])
def test_biquads_are_torchaudios(kind, gain):
    noise = 0.01 * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    functional = torchaudio.functional
    if kind == "peaking":
        expected = functional.equalizer_biquad(noise, 16000, 900, gain, 3.0)
    else:
        shelf = functional.bass_biquad if kind == "low_shelf" else functional.treble_biquad
        expected = shelf(noise, 16000, gain, 900, 3.0)
    numerator, denominator = biquad(kind, 2 * math.pi * 900 / 16000, gain, 3.0)
    found = functional.lfilter(noise, torch.tensor(denominator), torch.tensor(numerator), clamp=False)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("samples", [1, 300, 32768, 70001])
@pytest.mark.parametrize("drawn", DRAWS[-3:])
def test_the_convolution_is_the_recursion_in_float64(drawn, samples):
    waveform = 0.01 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    expected = waveform.double()
    for kind, frequency, gain, quality in zip(KINDS, FREQUENCIES, drawn["gains"], drawn["qualities"], strict=True):
        numerator, denominator = biquad(kind, 2 * math.pi * frequency / 16000, gain, quality)
        expected = torchaudio.functional.lfilter(
            expected, torch.tensor(denominator), torch.tensor(numerator), clamp=False
        )
    found = Equalizer().apply(waveform, **drawn)
    assert found.dtype == torch.float32
    assert found.shape == waveform.shape
    torch.testing.assert_close(
        found.double(), expected.clamp(-1, 1), atol=1e-6 * max(1, float(expected.abs().max())), rtol=0
    )


def test_only_the_end_is_clipped():
    """A boost that the next band takes back leaves no trace; clipping in between would."""
    perturb = Equalizer()
    perturb.frequencies = (1500, 1549, 1600)
    tone = 0.9 * torch.sin(2 * math.pi * 1549 / 16000 * torch.arange(8000))
    drawn = {"gains": [12.0, -12.0, 0.0], "qualities": [0.7] * 3}  # +6 dB at the shelf's corner, then -12 dB
    assert perturb.apply(tone, **drawn | {"gains": [12.0, 0.0, 0.0]})[1000:].abs().max() == 1
    found = perturb.apply(tone, **drawn)[1000:]  # once the tone has set in
    assert found.abs().max() < 0.6
    torch.testing.assert_close(found, 10 * perturb.apply(tone / 10, **drawn)[1000:], atol=1e-5, rtol=0)


def test_no_gain_is_no_change(speech):
    waveform = torch.from_numpy(speech(0.5))
    perturb = Equalizer()
    perturb.gain_db = 0
    found = perturb.apply(waveform, **perturb.draw(draw_generator(0, 0, "a")))
    torch.testing.assert_close(found, waveform, atol=1e-6, rtol=0)


def test_the_draw():
    drawn = [Equalizer().draw(draw_generator(0, 0, str(index))) for index in range(400)]
    assert json.loads(json.dumps(drawn)) == drawn
    gains = np.array([one["gains"] for one in drawn])
    qualities = np.array([one["qualities"] for one in drawn])
    assert gains.shape == qualities.shape == (400, 10)
    # The quantiles of U(-12, 12) and of 2 * 2.5 ** U(0, 1); 4000 draws each.
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(np.quantile(gains, levels), -12 + 24 * levels, atol=0.7)
    np.testing.assert_allclose(np.quantile(qualities, levels), 2 * 2.5**levels, atol=0.1)
    assert np.abs(gains).max() <= 12
    assert qualities.min() >= 2
    assert qualities.max() <= 5
    np.testing.assert_allclose(Equalizer().frequencies, FREQUENCIES)


def test_a_batch_is_what_each_gets_alone(speech):
    perturb = pickle.loads(pickle.dumps(build_perturbation("equalizer")))
    assert perturb.batched
    waveforms = [torch.from_numpy(speech(seconds, seed=1)) for seconds in (0.1, 0.7, 2.3)]
    drawn = [perturb.draw(draw_generator(1, 0, str(index))) for index in range(3)]
    for one, params, found in zip(waveforms, drawn, perturb.apply_batch(waveforms, drawn), strict=True):
        assert torch.equal(found, perturb.apply(one, **params))
        assert not torch.allclose(found, one, atol=1e-2)


@pytest.mark.gpu
def test_on_the_gpu_as_on_the_cpu(speech):
    waveform = torch.from_numpy(speech(2.3))
    for drawn in DRAWS:
        found = Equalizer().apply(waveform.cuda(), **drawn)
        torch.testing.assert_close(found.cpu(), Equalizer().apply(waveform, **drawn), atol=1e-5, rtol=0)


def test_words():
    assert Equalizer().describe(DRAWS[0]) == "equaliser of 10 bands"
    assert Equalizer().keeps_duration


def test_a_draw_of_another_equaliser():
    with pytest.raises(ValueError, match="shorter"):
        Equalizer().apply(torch.zeros(300), gains=[1.0, 2.0], qualities=[2.0, 2.0])
