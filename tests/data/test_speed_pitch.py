"""Resampling, pitch and speed against torchaudio and against dense float64 sums; draws; bad input."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torchaudio

from laser_hf.data import (
    SpeedPitch,
    draw_generator,
    pitch_shift,
    pitch_shift_batch,
    resample,
    resampling,
    speed,
    speed_batch,
)
from laser_hf.data.speed_pitch import stretch


def dense_resample(waveform: torch.Tensor, orig: int, new: int) -> torch.Tensor:
    """Windowed-sinc interpolation summed over every input sample, float64; `waveform` `(samples,)`."""
    cutoff = min(orig, new) * 0.99 / orig
    length = math.ceil(len(waveform) * new / orig)
    distance = torch.arange(len(waveform)) - (torch.arange(length)[:, None] * orig).double() / new
    t = (distance * cutoff).clamp(-6, 6)
    return (cutoff * torch.sinc(t) * torch.cos(math.pi * t / 12) ** 2) @ waveform.double()


RATIOS = [(17959, 16000), (14254, 16000), (997, 1009), (3203, 160), (160, 3203), (7, 5), (1, 50), (50, 1)]


@pytest.mark.parametrize("samples", [1, 2, 301, 2000])
@pytest.mark.parametrize(("orig", "new"), RATIOS)
def test_resample_is_the_dense_sum(orig, new, samples):
    samples = min(samples, 2000 * orig // new + 1)  # keeps the dense sum small
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)
    expected = dense_resample(waveform, orig, new)
    torch.testing.assert_close(resample(waveform, orig, new), expected, atol=1e-12, rtol=0)
    single = resample(waveform.float(), orig, new)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize(("orig", "new"), [(997, 1009), (3203, 160), (441, 160), (9, 10), (48000, 16000), (127, 128)])
def test_resample_is_torchaudios(orig, new):
    waveform = torch.randn(2, 3, 20001, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torchaudio.functional.resample(waveform, orig, new)
    torch.testing.assert_close(resample(waveform, orig, new), expected, atol=1e-11, rtol=0)
    # In float32 torchaudio computes the filter's phase in float32.
    single = torchaudio.functional.resample(waveform.float(), orig, new)
    torch.testing.assert_close(resample(waveform.float(), orig, new), single, atol=1e-3, rtol=0)


def test_sparse_and_dense_resampling_agree(monkeypatch):
    waveform = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = resample(waveform, 441, 160)
    monkeypatch.setattr(resampling, "MAX_DENSE_ELEMENTS", 0)
    torch.testing.assert_close(resample(waveform, 441, 160), dense, atol=1e-12, rtol=0)


def test_kept_tables_are_small_and_few():
    for steps in np.linspace(-5, 5, 40):
        pitch_shift(torch.randn(400), 16000, float(steps))
    info = resampling._taps.cache_info()
    assert info.currsize <= info.maxsize <= 16
    weights = resampling._taps(17959, 16000, torch.float32, torch.device("cpu"))[1]
    assert weights.numel() * weights.element_size() <= 2_000_000


@pytest.mark.parametrize(
    ("sample_rate", "steps"),  # small enough for torchaudio's dense kernel
    [(1000, -7), (1000, -2), (1000, -0.5), (1000, 0), (1000, 1.3), (1000, 2), (8000, 12), (4000, 3.7)],
)
def test_pitch_shift_is_torchaudios(sample_rate, steps):
    waveform = 0.3 * torch.randn(2, 6000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    window = torch.hann_window(512, dtype=torch.float64)
    expected = torchaudio.functional.pitch_shift(waveform, sample_rate, steps, window=window)
    shifted = torch.stack([pitch_shift(row, sample_rate, steps) for row in waveform])
    # torchaudio's phase advance is float32, also for float64 input.
    torch.testing.assert_close(shifted, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [-12, -2, 0.3, 2, 5])
@pytest.mark.parametrize("samples", [257, 300, 5000, 20001])
def test_stretch_is_torchaudios(steps, samples):
    waveform = 0.3 * torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    expected = torchaudio.functional.functional._stretch_waveform(waveform, steps)
    found = torch.stack(stretch(list(waveform), [2 ** (-steps / 12)] * 2))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_pitch_shift_down_is_torchaudios_on_speech(speech):
    waveform = torch.from_numpy(speech(2.0))
    with torch.no_grad():
        expected = torchaudio.transforms.PitchShift(16000, -2)(waveform)
    torch.testing.assert_close(pitch_shift(waveform, 16000, -2), expected, atol=5e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [-2, 7])  # its kernel for 2 takes a gigabyte; the next test has that
def test_pitch_shift_is_torchaudios_on_real_speech(real_speech, steps):
    torchaudios = torchaudio.transforms.PitchShift(16000, steps)
    for waveform in (waveform[:64_000] for waveform in real_speech):
        with torch.no_grad():
            expected = torchaudios(waveform)
        torch.testing.assert_close(pitch_shift(waveform, 16000, steps), expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("steps", [-2, 2])
def test_pitch_shift_on_real_speech_is_the_stretch_summed_in_float64(real_speech, steps):
    """The resampler adds nothing but round-off to torchaudio's stretching, and does not drift."""
    waveform = real_speech[0]
    rate = 2 ** (-steps / 12)
    stretched = torchaudio.functional.functional._stretch_waveform(waveform, steps)[0]
    orig = int(16000 / rate)
    for start in (0, 5 * 16000, 11 * 16000):  # dense sums around three moments, to the end of the utterance
        first = start * orig // 16000
        cut = stretched[max(0, first - 20) : first + 2000].double()
        position = (torch.arange(start, start + 800) * orig).double() / 16000 - max(0, first - 20)
        cutoff = min(orig, 16000) * 0.99 / orig
        t = ((torch.arange(len(cut)) - position[:, None]) * cutoff).clamp(-6, 6)
        expected = (cutoff * torch.sinc(t) * torch.cos(math.pi * t / 12) ** 2) @ cut
        found = pitch_shift(waveform, 16000, steps)[start : start + 800]
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [-12, -2, -0.5, 0, 0.25, 2, 7])
def test_a_sine_ends_at_the_right_pitch(steps):
    waveform = torch.sin(2 * math.pi * 440 * torch.arange(32000) / 16000)
    shifted = pitch_shift(waveform, 16000, steps)
    assert shifted.shape == waveform.shape
    spectrum = torch.fft.rfft(shifted[4000:-4000] * torch.hann_window(24000), n=2**18).abs()
    found = spectrum.argmax().item() * 16000 / 2**18
    assert found == pytest.approx(440 * 2 ** (steps / 12), rel=2e-3)


@pytest.mark.parametrize("factor", [0.8, 0.85, 0.9, 1.0, 1.1, 1.15, 1.2, 0.937])
def test_speed_is_torchaudios(speech, factor):
    waveform = torch.from_numpy(speech(0.7))
    expected, _ = torchaudio.transforms.SpeedPerturbation(16000, [factor])(waveform)
    found = speed(waveform, factor)
    assert len(found) == math.ceil(len(waveform) * 16000 / int(factor * 16000))
    if factor != 0.937:
        assert torch.equal(found, expected)
    # 14,992:16,000 is resampled sparsely; torchaudio computes part of its filter's phase in float32.
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_speed_then_pitch(speech):
    waveform = torch.from_numpy(speech(0.6))
    perturb = SpeedPitch()
    drawn = perturb.draw(draw_generator(0, 0, "a"))
    assert set(drawn) == {"speed", "pitch"}
    expected = pitch_shift(speed(waveform, drawn["speed"]), 16000, drawn["pitch"])
    assert torch.equal(perturb.apply(waveform, **drawn), expected)


LENGTHS = (100, 257, 258, 384, 1000, 3001, 8000, 8001)


def test_a_ragged_batch_is_what_each_waveform_gives_alone(speech):
    """Bit for bit on the CPU: padding never leaks, and company changes nothing."""
    waveforms = [torch.from_numpy(speech(1.0, seed))[:samples] for seed, samples in enumerate(LENGTHS)]
    steps = [-2, 2, -2, 0, 0.5, -2, 2, 1.7]
    for waveform, step, found in zip(waveforms, steps, pitch_shift_batch(waveforms, 16000, steps), strict=True):
        assert torch.equal(found, pitch_shift(waveform, 16000, step))
    factors = [1.0, 0.9, 1.0, 1.1, 0.9, 0.937, 1.1, 0.9]
    for waveform, factor, found in zip(waveforms, factors, speed_batch(waveforms, factors), strict=True):
        assert torch.equal(found, speed(waveform, factor))
    assert pitch_shift_batch([], 16000, []) == speed_batch([], []) == []


def test_real_speech_is_perturbed_together_as_one_by_one(real_speech):
    perturb = SpeedPitch([0.8, 0.9, 1.0, 1.1])
    waveforms = [waveform[: 16000 * seconds] for waveform in real_speech for seconds in (1, 3, 12)]
    drawn = [perturb.draw(draw_generator(3, 0, str(index))) for index in range(len(waveforms))]
    for waveform, one, found in zip(waveforms, drawn, perturb.apply_batch(waveforms, drawn), strict=True):
        assert torch.equal(found, perturb.apply(waveform, **one))


@pytest.mark.gpu
def test_real_speech_is_perturbed_on_the_gpu_as_on_the_cpu(real_speech):
    """To the round-off of another Fourier transform, which the phase vocoder carries on in faint bins."""
    perturb = SpeedPitch()
    drawn = [{"speed": 0.9, "pitch": -2}, {"speed": 1.1, "pitch": 2}]
    together = perturb.apply_batch([waveform.cuda() for waveform in real_speech], drawn)
    for waveform, one, found in zip(real_speech, drawn, together, strict=True):
        expected = perturb.apply(waveform, **one)
        assert found.shape == expected.shape
        assert (found.cpu() - expected).square().mean() < 1e-4 * expected.square().mean()


def test_all_combinations_are_drawn_alike_often():
    drawn = [SpeedPitch().draw(draw_generator(1, 0, f"utterance {i}")) for i in range(6000)]
    counts = Counter((one["speed"], one["pitch"]) for one in drawn)
    assert set(counts) == {(factor, step) for factor in (0.9, 1.0, 1.1) for step in (-2, 2)}
    # 1000 expected each; chi-square with 5 degrees of freedom stays below 20.5 with probability 0.999.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5


def test_bad_arguments_of_the_functions():
    for factor in (0, -1, 1e-5):
        with pytest.raises(ValueError, match="a rate must be a positive whole number"):
            speed(torch.zeros(300), factor)
    for rates in ((2.5, 3), (2, 0), (-1, 1)):
        with pytest.raises(ValueError, match="a rate must be a positive whole number"):
            resample(torch.zeros(300), *rates)


@pytest.mark.parametrize("samples", [1, 100, 256])
def test_waveforms_shorter_than_half_a_window_are_shifted_as_if_silence_followed(samples):
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    expected = pitch_shift(torch.cat([waveform, torch.zeros(257 - samples)]), 16000, 2)[:samples]
    torch.testing.assert_close(pitch_shift(waveform, 16000, 2), expected)


def test_words():
    assert SpeedPitch().describe({"speed": 1.1, "pitch": 2.0}) == "speed 1.1, +2 semitones"
    assert SpeedPitch().changes == ("tempo", "speaker's pitch")
    assert not SpeedPitch().keeps_duration
    assert SpeedPitch([1.0]).keeps_duration
    assert SpeedPitch([1.0]).changes == ("speaker's pitch",)
