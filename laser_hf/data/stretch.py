"""Time-stretching by a phase vocoder, as in ``torchaudio.transforms.PitchShift`` with less work.

The phase vocoder computes magnitude and angle of each frame once instead of twice and keeps a frame's bins
side by side; its result is torchaudio's bit for bit. The synthesis adds overlapping frames as four shifted
blocks, because the hop is a quarter of the window; it is ``torch.istft`` to round-off.

Waveforms of any lengths are stretched together, each by its own rate; on the CPU each comes out bit for bit as
it does alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.utils.rnn import pad_sequence

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
    rows = list(waveform.reshape(-1, waveform.shape[-1]))
    return torch.stack(stretch_ragged(rows, [rate] * len(rows))).reshape(*waveform.shape[:-1], -1)


def stretch_ragged(waveforms: Sequence[torch.Tensor], rates: Sequence[float]) -> list[torch.Tensor]:
    """:func:`stretch` of several waveforms at once, each by its own rate.

    Args:
        waveforms: ``(samples,)`` each, at least one, all of one dtype and on one device.
        rates: one a waveform.

    Returns:
        ``(round(samples / rate),)`` each.

    Raises:
        ValueError: a waveform is too short.
    """
    lengths = [len(waveform) for waveform in waveforms]
    if min(lengths) < MIN_SAMPLES:
        raise ValueError(f"stretching needs at least {MIN_SAMPLES} samples, got {min(lengths)}")
    window, advance = _constants(waveforms[0].dtype, waveforms[0].device)
    half = N_FFT // 2
    centred = [torch.nn.functional.pad(row[None], (half, half), mode="reflect")[0] for row in waveforms]
    spectrum = torch.fft.rfft(pad_sequence(centred, batch_first=True).unfold(-1, N_FFT, HOP) * window)
    stretched, counts = _phase_vocoder(spectrum, [1 + length // HOP for length in lengths], rates, advance)
    total = _overlap_add(stretched, window, counts)
    return [row[: round(length / rate)] for row, length, rate in zip(total, lengths, rates, strict=True)]


@lru_cache(maxsize=4)
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hann window ``(n_fft,)`` and the phase advance of each bin in one hop ``(bins,)``, radians."""
    advance = torch.linspace(0, math.pi * HOP, N_FFT // 2 + 1, dtype=dtype)
    return torch.hann_window(N_FFT, dtype=dtype).to(device), advance.to(device)


def _phase_vocoder(
    spectrum: torch.Tensor, counts: Sequence[int], rates: Sequence[float], advance: torch.Tensor
) -> tuple[torch.Tensor, list[int]]:
    """``torchaudio.functional.phase_vocoder`` for spectra ``(waveforms, frames, bins)`` of ``counts`` frames.

    The magnitude is interpolated linearly between frames; the phase goes on by what it does from one frame
    to the next at that place.

    Returns:
        ``(waveforms, other frames, bins)``, zero beyond the other frames of each; and how many these are.
    """
    waveforms, frames, bins = spectrum.shape
    # Where to look is computed on the CPU for all devices: rounding may not move it to a neighbouring frame.
    positions = [torch.arange(0, count, rate, dtype=advance.dtype) for count, rate in zip(counts, rates, strict=True)]
    found = [len(position) for position in positions]
    position = pad_sequence(positions, batch_first=True)
    first_row = torch.arange(waveforms)[:, None] * (frames + 2)
    before, after, weight = (
        value.to(spectrum.device, non_blocking=True)
        for value in (
            (position.long() + first_row).reshape(-1),
            ((position + 1).long() + first_row).reshape(-1),
            (position % 1.0)[..., None],
        )
    )
    # Beyond its end a waveform has frames of zeros.
    magnitude = torch.nn.functional.pad(_cleared(spectrum.abs(), counts), (0, 0, 0, 2)).reshape(-1, bins)
    angle = torch.nn.functional.pad(_cleared(spectrum.angle(), counts), (0, 0, 0, 2)).reshape(-1, bins)

    def look(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return values.index_select(0, index).reshape(waveforms, -1, bins)

    step = look(angle, after) - look(angle, before) - advance
    step = step - 2 * math.pi * torch.round(step / (2 * math.pi)) + advance
    step = torch.cat([angle.reshape(waveforms, -1, bins)[:, :1], step[:, :-1]], dim=1)
    # The CPU sums float32 in float64 by itself; the phase grows to many turns.
    phase = torch.cumsum(step, dim=1) if step.device.type == "cpu" else step.double().cumsum(dim=1).to(step.dtype)
    magnitude = weight * look(magnitude, after) + (1 - weight) * look(magnitude, before)
    return torch.polar(_cleared(magnitude, found), phase), found


def _overlap_add(spectrum: torch.Tensor, window: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """``torch.istft`` (centred) of ``(waveforms, frames, bins)`` to ``(waveforms, samples)``.

    Beyond the end of the waveform that ``counts`` frames make, the result is not defined.
    """
    frames = torch.fft.irfft(spectrum, n=N_FFT) * window
    waveforms, count, _ = frames.shape
    blocks = frames.reshape(waveforms, count, 4, HOP)
    squared = window.square().reshape(4, HOP)
    ragged = min(counts) < count
    weights = _cleared(frames.new_ones(waveforms, count, 1), counts) if ragged else frames.new_ones(1, count, 1)
    total = frames.new_zeros(waveforms, count + 3, HOP)
    envelope = frames.new_zeros(len(weights), count + 3, HOP)
    for block in range(4):
        total[:, block : block + count] += blocks[:, :, block]
        envelope[:, block : block + count] += weights * squared[block]
    inside = slice(N_FFT // 2, None)
    return total.reshape(waveforms, -1)[:, inside] / envelope.reshape(len(weights), -1)[:, inside]


def _cleared(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """``values (waveforms, frames, ...)`` with zeros from frame ``counts[waveform]`` on."""
    if min(counts) == values.shape[1]:
        return values
    ends = torch.tensor(counts).to(values.device, non_blocking=True)
    outside = torch.arange(values.shape[1], device=values.device) >= ends[:, None]
    return values.masked_fill(outside[..., None], 0.0)
