"""Time-stretching by a phase vocoder, as in ``torchaudio.transforms.PitchShift`` and about twice as fast.

The phase vocoder computes magnitude and angle of each frame once instead of twice and keeps a frame's bins
side by side; its result is torchaudio's bit for bit. The synthesis adds overlapping frames as four shifted
blocks, because the hop is a quarter of the window; it is ``torch.istft`` to round-off.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

N_FFT = 512
"""STFT window, samples (torchaudio's default)."""
HOP = N_FFT // 4
"""STFT hop, samples (torchaudio's default)."""
MIN_SAMPLES = N_FFT // 2 + 1
"""Shortest waveform that the STFT can pad by reflection."""


def stretch(waveform: torch.Tensor, rate: float) -> torch.Tensor:
    """Change the duration, keeping the pitch.

    Args:
        waveform: ``(..., samples)``, floating point, at least 257 samples.
        rate: above 1 shortens, below 1 lengthens.

    Returns:
        ``(..., round(samples / rate))``.

    Raises:
        ValueError: the waveform is too short.
    """
    samples = waveform.shape[-1]
    if samples < MIN_SAMPLES:
        raise ValueError(f"stretching needs at least {MIN_SAMPLES} samples, got {samples}")
    window, advance = (constant.to(waveform.device) for constant in _constants(waveform.dtype))
    spectrum = torch.stft(waveform.reshape(-1, samples), N_FFT, HOP, window=window, center=True, return_complex=True)
    stretched = _phase_vocoder(spectrum.transpose(1, 2).contiguous(), rate, advance)
    length = round(samples / rate)
    return _overlap_add(stretched, window, length).reshape(*waveform.shape[:-1], length)


@lru_cache(maxsize=4)
def _constants(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hann window ``(n_fft,)`` and the phase advance of each bin in one hop ``(bins,)``, radians."""
    return torch.hann_window(N_FFT, dtype=dtype), torch.linspace(0, math.pi * HOP, N_FFT // 2 + 1, dtype=dtype)


def _phase_vocoder(spectrum: torch.Tensor, rate: float, advance: torch.Tensor) -> torch.Tensor:
    """``torchaudio.functional.phase_vocoder`` for a spectrum ``(waveforms, frames, bins)``.

    The magnitude is interpolated linearly between frames; the phase goes on by what it does from one frame
    to the next at that place.
    """
    position = torch.arange(0, spectrum.shape[1], rate, dtype=advance.dtype, device=spectrum.device)
    before, after = position.long(), (position + 1).long()
    weight = (position % 1.0)[:, None]
    magnitude = torch.nn.functional.pad(spectrum.abs(), (0, 0, 0, 2))
    angle = torch.nn.functional.pad(spectrum.angle(), (0, 0, 0, 2))

    step = angle.index_select(1, after) - angle.index_select(1, before) - advance
    step = step - 2 * math.pi * torch.round(step / (2 * math.pi)) + advance
    phase = torch.cumsum(torch.cat([angle[:, :1], step[:, :-1]], dim=1), dim=1)
    magnitude = weight * magnitude.index_select(1, after) + (1 - weight) * magnitude.index_select(1, before)
    return torch.polar(magnitude, phase)


def _overlap_add(spectrum: torch.Tensor, window: torch.Tensor, length: int) -> torch.Tensor:
    """``torch.istft`` (centred) of ``(waveforms, frames, bins)`` to ``(waveforms, length)``."""
    frames = torch.fft.irfft(spectrum, n=N_FFT) * window
    waveforms, count, _ = frames.shape
    blocks = frames.reshape(waveforms, count, 4, HOP)
    squared = window.square().reshape(4, HOP)
    total = frames.new_zeros(waveforms, count + 3, HOP)
    envelope = frames.new_zeros(count + 3, HOP)
    for block in range(4):
        total[:, block : block + count] += blocks[:, :, block]
        envelope[block : block + count] += squared[block]
    cut = slice(N_FFT // 2, N_FFT // 2 + length)
    return total.reshape(waveforms, -1)[:, cut] / envelope.reshape(-1)[cut]
