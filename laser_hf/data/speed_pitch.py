"""Speed, then pitch: the perturbed view of LASER and SCORE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ..plugins import Option
from .decode import SAMPLE_RATE
from .perturbation import Perturbation
from .resampling import resample, resampled_length
from .stretch import MIN_SAMPLES, stretch


class SpeedPitch(Perturbation):
    """`pitch_shift(speed(x))`, both drawn uniformly (LASER, Sec. 3; the lists are the authors' for HuBERT).

    Drawn: `speed` (factor) and `pitch` (semitones).

    Args:
        speed_factors: positive factors; `[1.0]` for no change of speed.
        pitch_steps: semitones; `[0]` for no change of pitch.
    """

    name = "speed_pitch"
    title = "Speed and pitch"
    summary = "changes the speed, then shifts the pitch"
    paper = (
        "Meghanani & Hain, LASER: Learning by Aligning Self-supervised Representations of Speech for Improving "
        "Content-related Tasks, Interspeech 2024"
    )
    options = (
        Option("speed_factors", [0.9, 1.0, 1.1], "speed factors, one drawn per pair", many=True, low=0.01),
        Option("pitch_steps", [-2.0, 2.0], "pitch shifts in semitones, one drawn per pair", many=True),
    )
    changes = ("tempo", "speaker's pitch")
    batched = True

    def __init__(
        self, speed_factors: Sequence[float] = (0.9, 1.0, 1.1), pitch_steps: Sequence[float] = (-2.0, 2.0)
    ) -> None:
        self.speed_factors = tuple(speed_factors)
        self.pitch_steps = tuple(pitch_steps)
        self.keeps_duration = set(self.speed_factors) == {1}
        if self.keeps_duration:
            self.changes = ("speaker's pitch",)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """`{"speed": factor, "pitch": semitones}`, drawn in this order."""
        factor = self.speed_factors[int(rng.integers(len(self.speed_factors)))]
        return {"speed": factor, "pitch": self.pitch_steps[int(rng.integers(len(self.pitch_steps)))]}

    def apply(self, waveform: torch.Tensor, *, speed: float, pitch: float) -> torch.Tensor:
        """`(samples,)` to `(about samples / speed,)`."""
        return self.apply_batch([waveform], [{"speed": speed, "pitch": pitch}])[0]

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """`(samples,)` to `(about samples / speed,)` each."""
        faster = speed_batch(waveforms, [one["speed"] for one in drawn])
        return pitch_shift_batch(faster, SAMPLE_RATE, [one["pitch"] for one in drawn])

    def describe(self, drawn: Mapping[str, Any]) -> str:
        """Such as `speed 1.1, +2 semitones`."""
        return f"speed {drawn['speed']:g}, {drawn['pitch']:+g} semitones"


def speed(waveform: torch.Tensor, factor: float, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Play a waveform `(samples,)` `factor` times as fast; its pitch moves with it. See `speed_batch`."""
    return speed_batch([waveform], [factor], sample_rate)[0]


def speed_batch(
    waveforms: Sequence[torch.Tensor], factors: Sequence[float], sample_rate: int = SAMPLE_RATE
) -> list[torch.Tensor]:
    """Play waveforms of any lengths faster or slower, as `torchaudio.transforms.SpeedPerturbation` does.

    Equal factors are resampled together. On the CPU each waveform comes out bit for bit as it does alone.

    Args:
        waveforms: `(samples,)` each, floating point.
        factors: one each; above 1 shortens, below 1 lengthens.
        sample_rate: Hz; the factor is rounded down to a whole number of Hz.

    Returns:
        `(ceil(samples * sample_rate / int(factor * sample_rate)),)` each.

    Raises:
        ValueError: a factor is not a positive, finite number.
    """
    for factor in factors:
        if not (math.isfinite(factor) and int(factor * sample_rate) >= 1):
            raise ValueError(f"a speed factor must be positive and finite, got {factor!r}")
    return _resample_ragged(waveforms, [int(factor * sample_rate) for factor in factors], sample_rate)


def pitch_shift(waveform: torch.Tensor, sample_rate: int, n_steps: float) -> torch.Tensor:
    """Shift the pitch of a waveform `(samples,)` by `n_steps` semitones. See `pitch_shift_batch`."""
    return pitch_shift_batch([waveform], sample_rate, [n_steps])[0]


def pitch_shift_batch(
    waveforms: Sequence[torch.Tensor], sample_rate: int, n_steps: Sequence[float]
) -> list[torch.Tensor]:
    """Shift the pitch of waveforms of any lengths, keeping their lengths.

    The steps of `torchaudio.transforms.PitchShift`: stretch by a phase vocoder (`n_fft` 512, hop 128, Hann), resample
    from `int(sample_rate * 2 ** (n_steps / 12))`, cut or zero-pad to the input length. The resampling has exact filter
    phases (see `laser_hf.data.resampling`) and small tables; torchaudio computes the phases in float32 and
    builds kernels of up to 1.15 GB. The two differ by that rounding: below 5e-4 of full scale on 12 s of speech.

    All are stretched together, and equal steps resampled together. On the CPU each waveform comes out bit for bit as
    it does alone; on CUDA to the round-off of its Fourier transform and phase.

    Args:
        waveforms: `(samples,)` each, floating point, at least 257 samples.
        sample_rate: Hz.
        n_steps: semitones each, any real numbers; 0 gives a copy.

    Returns:
        `(samples,)` each.

    Raises:
        ValueError: a waveform is too short, or a step is not finite.
    """
    for steps in n_steps:
        if not math.isfinite(steps):
            raise ValueError(f"a pitch step must be a finite number of semitones, got {steps!r}")
    shortest = min((len(waveform) for waveform in waveforms), default=MIN_SAMPLES)
    if shortest < MIN_SAMPLES:
        raise ValueError(f"pitch_shift needs at least {MIN_SAMPLES} samples, got {shortest}")
    shifted = [waveform.clone() for waveform in waveforms]
    moved = [row for row, steps in enumerate(n_steps) if steps != 0]
    if not moved:
        return shifted
    rates = [2.0 ** (-float(n_steps[row]) / 12) for row in moved]
    stretched = stretch([waveforms[row] for row in moved], rates)
    resampled = _resample_ragged(stretched, [int(sample_rate / rate) for rate in rates], sample_rate)
    for row, found in zip(moved, resampled, strict=True):
        samples = len(waveforms[row])
        shifted[row] = pad(found[:samples], (0, max(0, samples - len(found))))
    return shifted


def _resample_ragged(waveforms: Sequence[torch.Tensor], orig: Sequence[int], new: int) -> list[torch.Tensor]:
    """Resample each `(samples,)` from its own rate to `new`, equal rates together.

    Samples beyond the end of a waveform count as zero, so padding changes nothing.
    """
    out: list[torch.Tensor] = list(waveforms)
    for rate in dict.fromkeys(orig):
        rows = [row for row, own in enumerate(orig) if own == rate]
        together = resample(pad_sequence([waveforms[row] for row in rows], batch_first=True), rate, new)
        for row, found in zip(rows, together, strict=True):
            out[row] = found[: resampled_length(len(waveforms[row]), rate, new)]
    return out
