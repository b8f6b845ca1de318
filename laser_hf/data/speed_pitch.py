"""LASER's and SCORE's second view: speed, then pitch (LASER, section 3; Meghanani & Hain 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .perturbation import Perturbation, check_numbers, check_rate, register_perturbation
from .resampling import resample, resampled_length
from .stretch import MIN_SAMPLES, stretch, stretch_ragged


def speed(waveform: torch.Tensor, factor: float, sample_rate: int = 16000) -> torch.Tensor:
    """Play a waveform ``factor`` times as fast; its pitch moves with it.

    As ``torchaudio.transforms.SpeedPerturbation``: resampling from ``int(factor * sample_rate)`` to
    ``sample_rate``.

    Args:
        waveform: ``(..., samples)``, floating point.
        factor: above 1 shortens, below 1 lengthens; 1 gives the waveform back.
        sample_rate: Hz.

    Returns:
        ``(..., ceil(samples * sample_rate / int(factor * sample_rate)))``.

    Raises:
        ValueError: the factor is not a positive, finite number.
    """
    _check_speed(factor, sample_rate)
    return resample(waveform, int(factor * sample_rate), sample_rate)


def speed_batch(
    waveforms: Sequence[torch.Tensor], factors: Sequence[float], sample_rate: int = 16000
) -> list[torch.Tensor]:
    """:func:`speed` of waveforms of any lengths, ``(samples,)`` each, by a factor each.

    Those with the same factor are resampled together. On the CPU each comes out bit for bit as it does alone.

    Raises:
        ValueError: a factor is not a positive, finite number.
    """
    for factor in factors:
        _check_speed(factor, sample_rate)
    return _resample_ragged(waveforms, [int(factor * sample_rate) for factor in factors], sample_rate)


def pitch_shift(waveform: torch.Tensor, sample_rate: int, n_steps: float) -> torch.Tensor:
    """Shift the pitch, keeping the length.

    The steps of ``torchaudio.transforms.PitchShift(sample_rate, n_steps)``: stretch by a phase vocoder
    (``n_fft`` 512, hop 128, Hann), resample from ``int(sample_rate * 2 ** (n_steps / 12))``, cut or zero-pad
    to the input length. Only the resampling differs, see :func:`laser_hf.data.resampling.resample`: it needs
    a table of at most 2 MB where torchaudio builds a kernel of up to 1.15 GB, and computes the filter's phase
    in float64 where torchaudio computes it in float32. What remains between the two is that rounding: each
    output phase of torchaudio's filter sits up to about 1e-3 samples beside its place, which is below 5e-4
    of full scale on 12 s of speech, largest where the signal is loud and high, and does not grow with time.

    Args:
        waveform: ``(..., samples)``, floating point, at least 257 samples.
        sample_rate: Hz.
        n_steps: semitones, any real number; 0 gives the waveform back.

    Returns:
        ``(..., samples)``.

    Raises:
        ValueError: the waveform is shorter than 257 samples, or ``n_steps`` is not finite.
    """
    _check_pitch(n_steps)
    samples = waveform.shape[-1]
    if samples < MIN_SAMPLES:
        raise ValueError(f"pitch_shift needs at least {MIN_SAMPLES} samples, got {samples}")
    if n_steps == 0:
        return waveform.clone()
    rate = 2.0 ** (-float(n_steps) / 12)
    shifted = resample(stretch(waveform, rate), int(sample_rate / rate), sample_rate)[..., :samples]
    return torch.nn.functional.pad(shifted, (0, samples - shifted.shape[-1]))


def pitch_shift_batch(
    waveforms: Sequence[torch.Tensor], sample_rate: int, n_steps: Sequence[float]
) -> list[torch.Tensor]:
    """:func:`pitch_shift` of waveforms of any lengths, ``(samples,)`` each, by a number of semitones each.

    All are stretched together, and those with the same step are resampled together. On the CPU each comes
    out bit for bit as it does alone; on CUDA to the round-off of its Fourier transform and phase.

    Raises:
        ValueError: a waveform is shorter than 257 samples, or a step is not finite.
    """
    for steps in n_steps:
        _check_pitch(steps)
    shortest = min((len(waveform) for waveform in waveforms), default=MIN_SAMPLES)
    if shortest < MIN_SAMPLES:
        raise ValueError(f"pitch_shift needs at least {MIN_SAMPLES} samples, got {shortest}")
    shifted = [waveform.clone() for waveform in waveforms]
    moved = [row for row, steps in enumerate(n_steps) if steps != 0]
    if not moved:
        return shifted
    rates = [2.0 ** (-float(n_steps[row]) / 12) for row in moved]
    stretched = stretch_ragged([waveforms[row] for row in moved], rates)
    resampled = _resample_ragged(stretched, [int(sample_rate / rate) for rate in rates], sample_rate)
    for row, found in zip(moved, resampled, strict=True):
        samples = len(waveforms[row])
        shifted[row] = torch.nn.functional.pad(found[:samples], (0, max(0, samples - len(found))))
    return shifted


def _resample_ragged(waveforms: Sequence[torch.Tensor], orig: Sequence[int], new: int) -> list[torch.Tensor]:
    """Resample each ``(samples,)`` from its own rate to ``new``; equal rates together.

    Beyond its end a waveform counts as zero, so that padding changes nothing.
    """
    out: list[torch.Tensor] = list(waveforms)
    for rate in dict.fromkeys(orig):
        rows = [row for row, own in enumerate(orig) if own == rate]
        together = resample(pad_sequence([waveforms[row] for row in rows], batch_first=True), rate, new)
        for row, found in zip(rows, together, strict=True):
            out[row] = found[: resampled_length(len(waveforms[row]), rate, new)]
    return out


@register_perturbation("speed_pitch")
class SpeedPitch(Perturbation):
    """LASER's second view: ``pitch_shift(speed(x))``, both chosen uniformly, the pitch always shifted.

    Section 3 of the paper; lists as in the authors' recipe for HuBERT. Drawn: ``speed`` (factor) and
    ``pitch`` (semitones).

    Args:
        speed_factors: at least one positive factor; ``[1.0]`` for no change of speed.
        pitch_steps: at least one number of semitones; ``[0]`` for no change of pitch.
        sample_rate: Hz.

    Raises:
        ValueError: a list is empty, or holds anything but suitable numbers.
    """

    def __init__(
        self,
        speed_factors: Sequence[float] = (0.9, 1.0, 1.1),
        pitch_steps: Sequence[float] = (-2, 2),
        sample_rate: int = 16000,
    ) -> None:
        self.sample_rate = check_rate(sample_rate)
        self.speed_factors = check_numbers("speed_factors", speed_factors, "[1.0]")
        self.pitch_steps = check_numbers("pitch_steps", pitch_steps, "[0]")
        for factor in self.speed_factors:
            _check_speed(factor, self.sample_rate)
        for step in self.pitch_steps:
            _check_pitch(step)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """``{"speed": factor, "pitch": semitones}``; the speed is drawn first."""
        factor = self.speed_factors[int(rng.integers(len(self.speed_factors)))]
        return {"speed": factor, "pitch": self.pitch_steps[int(rng.integers(len(self.pitch_steps)))]}

    def apply(self, waveform: torch.Tensor, *, speed: float, pitch: float) -> torch.Tensor:
        """``(samples,)`` to ``(about samples / speed,)``."""
        return pitch_shift(_speed(waveform, speed, self.sample_rate), self.sample_rate, pitch)

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """``(samples,)`` to ``(about samples / speed,)`` each."""
        faster = speed_batch(waveforms, [one["speed"] for one in drawn], self.sample_rate)
        return pitch_shift_batch(faster, self.sample_rate, [one["pitch"] for one in drawn])

    def __repr__(self) -> str:
        return f"SpeedPitch({list(self.speed_factors)}, {list(self.pitch_steps)}, {self.sample_rate})"


_speed = speed  # ``speed`` is an argument inside SpeedPitch.apply


def _check_speed(factor: float, sample_rate: int) -> None:
    if not (math.isfinite(factor) and int(factor * sample_rate) >= 1):
        raise ValueError(f"a speed factor must be positive and finite, got {factor!r}")


def _check_pitch(n_steps: float) -> None:
    if not math.isfinite(n_steps):
        raise ValueError(f"a pitch step must be a finite number of semitones, got {n_steps!r}")
