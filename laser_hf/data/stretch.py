"""Time-stretching by a phase vocoder, as in `torchaudio.transforms.PitchShift` with less work.

Magnitude and angle of each frame are computed once instead of twice, and a frame's bins lie side by side: the result is
torchaudio's bit for bit. The synthesis adds overlapping frames as four shifted blocks, because the hop is a quarter of
the window; it is `torch.istft` to round-off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

N_FFT = 512
"""STFT window, samples (torchaudio's default)."""
HOP = N_FFT // 4
"""STFT hop, samples (torchaudio's default)."""
MIN_SAMPLES = N_FFT // 2 + 1
"""Shortest waveform that the STFT can pad by reflection."""


def stretch(waveforms: Sequence[torch.Tensor], rates: Sequence[float]) -> list[torch.Tensor]:
    """Change the durations of waveforms of any lengths, keeping their pitch.

    All are treated at once; on the CPU each comes out bit for bit as it does alone.

    Args:
        waveforms: `(samples,)` each, at least one, floating point, all of one dtype and on one device.
        rates: one each; above 1 shortens, below 1 lengthens.

    Returns:
        `(round(samples / rate),)` each.

    Raises:
        ValueError: a waveform has fewer than 257 samples.
    """
    lengths = [len(waveform) for waveform in waveforms]
    if min(lengths) < MIN_SAMPLES:
        raise ValueError(f"stretching needs at least {MIN_SAMPLES} samples, got {min(lengths)}")
    window, advance = _constants(waveforms[0].dtype, waveforms[0].device)
    half = N_FFT // 2
    centred = [pad(row[None], (half, half), mode="reflect")[0] for row in waveforms]
    spectrum = torch.fft.rfft(pad_sequence(centred, batch_first=True).unfold(-1, N_FFT, HOP) * window)
    stretched, counts = _phase_vocoder(spectrum, [1 + length // HOP for length in lengths], rates, advance)
    total = _overlap_add(stretched, window, counts)
    return [row[: round(length / rate)] for row, length, rate in zip(total, lengths, rates, strict=True)]


@lru_cache(maxsize=4)
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Hann window `(n_fft,)`, and phase advance of each bin in one hop, `(bins,)` radians."""
    advance = torch.linspace(0, math.pi * HOP, N_FFT // 2 + 1, dtype=dtype)
    return torch.hann_window(N_FFT, dtype=dtype).to(device), advance.to(device)


def _phase_vocoder(
    spectrum: torch.Tensor, counts: Sequence[int], rates: Sequence[float], advance: torch.Tensor
) -> tuple[torch.Tensor, list[int]]:
    """`torchaudio.functional.phase_vocoder` for spectra `(waveforms, frames, bins)` of `counts` frames.

    Magnitudes are interpolated linearly between frames. Phases advance as they do between the two frames there.

    Returns:
        `(waveforms, other frames, bins)`, zero beyond the end of each, and the other number of frames of each.
    """
    waveforms, frames, bins = spectrum.shape
    # Positions are computed on the CPU for all devices: other rounding could choose a neighbouring frame.
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
    # Two frames of zeros follow the last one.
    magnitude = pad(_cleared(spectrum.abs(), counts), (0, 0, 0, 2)).reshape(-1, bins)
    angle = pad(_cleared(spectrum.angle(), counts), (0, 0, 0, 2)).reshape(-1, bins)

    def look(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return values.index_select(0, index).reshape(waveforms, -1, bins)

    step = look(angle, after) - look(angle, before) - advance
    step = step - 2 * math.pi * torch.round(step / (2 * math.pi)) + advance
    step = torch.cat([angle.reshape(waveforms, -1, bins)[:, :1], step[:, :-1]], dim=1)
    # The phase grows to many turns. The CPU sums float32 in float64 by itself; elsewhere it must be asked to.
    phase = torch.cumsum(step, dim=1) if step.device.type == "cpu" else step.double().cumsum(dim=1).to(step.dtype)
    magnitude = weight * look(magnitude, after) + (1 - weight) * look(magnitude, before)
    return torch.polar(_cleared(magnitude, found), phase), found


def _overlap_add(spectrum: torch.Tensor, window: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """`torch.istft` (centred) of `(waveforms, frames, bins)` to `(waveforms, samples)`.

    The result is undefined beyond the samples that the `counts` frames of each waveform make.
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
    """`values` `(waveforms, frames, ...)` with zeros from frame `counts[waveform]` on."""
    if min(counts) == values.shape[1]:
        return values
    ends = torch.tensor(counts).to(values.device, non_blocking=True)
    outside = torch.arange(values.shape[1], device=values.device) >= ends[:, None]
    return values.masked_fill(outside[..., None], 0.0)
