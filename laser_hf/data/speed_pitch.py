"""Speed, then pitch: the perturbed view of LASER and SCORE."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ..plugins import Option
from ..transfer import to_device
from .decode import SAMPLE_RATE
from .perturbation import Perturbation
from .resampling import resample, resampled_length

N_FFT, HOP = 512, 128  # STFT window and hop, samples (torchaudio's defaults)
Waveforms = Sequence[torch.Tensor]


class SpeedPitch(Perturbation):
    """`pitch_shift(speed(x))`, both drawn uniformly (LASER, Sec. 3; the lists are the authors' for HuBERT).

    Drawn: `speed` (a factor; 1 for no change) and `pitch` (semitones; 0 for no change).
    """

    name, title = "speed_pitch", "Speed and pitch"
    summary = "changes the speed, then shifts the pitch"
    paper = (
        "Meghanani & Hain, LASER: Learning by Aligning Self-supervised Representations of Speech for Improving "
        "Content-related Tasks, Interspeech 2024"
    )
    options = (
        Option("speed_factors", [0.9, 1.0, 1.1], "speed factors, one drawn per pair", many=True, low=0.25, high=4),
        Option(
            "pitch_steps", [-2.0, 2.0], "pitch shifts in semitones, one drawn per pair", many=True, low=-24, high=24
        ),
    )
    changes, batched = ("tempo", "speaker's pitch"), True

    def __init__(self, speed_factors: Sequence[float] = (0.9, 1.0, 1.1), pitch_steps: Sequence[float] = (-2.0, 2.0)):
        self.speed_factors, self.pitch_steps = tuple(speed_factors), tuple(pitch_steps)
        self.keeps_duration = set(self.speed_factors) == {1}
        self.changes = self.changes[1:] if self.keeps_duration else self.changes

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """`{"speed": factor, "pitch": semitones}`, drawn in this order."""
        lists = {"speed": self.speed_factors, "pitch": self.pitch_steps}
        return {name: values[int(rng.integers(len(values)))] for name, values in lists.items()}

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


def speed_batch(waveforms: Waveforms, factors: Sequence[float], sample_rate: int = SAMPLE_RATE) -> list[torch.Tensor]:
    """Play waveforms `(samples,)` of any lengths faster or slower, as `torchaudio.transforms.SpeedPerturbation` does.

    A factor above 1 shortens; it is rounded down to a whole number of Hz: `(ceil(samples * sample_rate / int(factor *
    sample_rate)),)` each. A `ValueError` says that one is not positive.
    """
    return _resample_ragged(waveforms, [int(factor * sample_rate) for factor in factors], sample_rate)


def pitch_shift(waveform: torch.Tensor, sample_rate: int, n_steps: float) -> torch.Tensor:
    """Shift the pitch of a waveform `(samples,)` by `n_steps` semitones. See `pitch_shift_batch`."""
    return pitch_shift_batch([waveform], sample_rate, [n_steps])[0]


def pitch_shift_batch(waveforms: Waveforms, sample_rate: int, n_steps: Sequence[float]) -> list[torch.Tensor]:
    """Shift the pitch of waveforms `(samples,)` of any lengths by so many semitones each, keeping their lengths.

    The steps of `torchaudio.transforms.PitchShift`: stretch by a phase vocoder (`n_fft` 512, hop 128, Hann), resample
    from `int(sample_rate * 2 ** (n_steps / 12))`, cut or zero-pad to the input length. torchaudio resamples with filter
    phases rounded to float32; the difference is below 5e-4 of full scale on 12 s of speech. On the CPU each waveform
    comes out bit for bit as it does alone; on CUDA to the round-off of its Fourier transform and phase.
    """
    shifted = [waveform.clone() for waveform in waveforms]
    if not (moved := [row for row, steps in enumerate(n_steps) if steps != 0]):
        return shifted
    rates = [2.0 ** (-float(n_steps[row]) / 12) for row in moved]
    # The STFT cannot pad fewer than 257 samples by reflection.
    stretched = stretch([pad(waveforms[row], (0, max(0, 257 - len(waveforms[row])))) for row in moved], rates)
    resampled = _resample_ragged(stretched, [int(sample_rate / rate) for rate in rates], sample_rate)
    for row, found in zip(moved, resampled, strict=True):
        shifted[row] = pad(found, (0, len(waveforms[row]) - len(found)))  # or cut
    return shifted


def _resample_ragged(waveforms: Sequence[torch.Tensor], orig: Sequence[int], new: int) -> list[torch.Tensor]:
    """Resample each `(samples,)` from its own rate to `new`, equal rates together; zeros behind it change nothing."""
    out = list(waveforms)
    for rate in set(orig):
        rows = [row for row, own in enumerate(orig) if own == rate]
        together = resample(pad_sequence([waveforms[row] for row in rows], batch_first=True), rate, new)
        for row, found in zip(rows, together, strict=True):
            out[row] = found[: resampled_length(len(waveforms[row]), rate, new)]
    return out


def stretch(waveforms: Sequence[torch.Tensor], rates: Sequence[float]) -> list[torch.Tensor]:
    """Waveforms `(samples,)`, of at least 257 samples, to `(round(samples / rate),)` at the same pitch.

    On the CPU bit for bit as for each alone.
    """
    window, advance = _constants(waveforms[0].dtype, waveforms[0].device)
    centred = [pad(row[None], (N_FFT // 2, N_FFT // 2), mode="reflect")[0] for row in waveforms]
    spectrum = torch.fft.rfft(pad_sequence(centred, batch_first=True).unfold(-1, N_FFT, HOP) * window)
    stretched, counts = _phase_vocoder(spectrum, [1 + len(row) // HOP for row in waveforms], rates, advance)
    total = _overlap_add(stretched, window, counts)
    return [row[: round(len(own) / rate)] for row, own, rate in zip(total, waveforms, rates, strict=True)]


@lru_cache(maxsize=4)
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Hann window `(n_fft,)`, and phase advance of each bin in one hop, `(bins,)` radians."""
    advance = torch.linspace(0, math.pi * HOP, N_FFT // 2 + 1, dtype=dtype)
    return torch.hann_window(N_FFT, dtype=dtype).to(device), advance.to(device)


def _phase_vocoder(
    spectrum: torch.Tensor, counts: Sequence[int], rates: Sequence[float], advance: torch.Tensor
) -> tuple[torch.Tensor, list[int]]:
    """`torchaudio.functional.phase_vocoder` of `(waveforms, frames, bins)` with `counts` frames, and the new counts."""
    waveforms, frames, bins = spectrum.shape
    # Positions are computed on the CPU for all devices: other rounding could choose a neighbouring frame.
    positions = [torch.arange(0, count, rate, dtype=advance.dtype) for count, rate in zip(counts, rates, strict=True)]
    found = [len(position) for position in positions]
    position = pad_sequence(positions, batch_first=True)
    first_row = torch.arange(waveforms)[:, None] * (frames + 2)
    sought = (position.long() + first_row).reshape(-1), ((position + 1).long() + first_row).reshape(-1)
    rows = [to_device(index, spectrum.device) for index in sought]
    weight = to_device(position % 1.0, spectrum.device)[..., None]

    def before_and_after(values: torch.Tensor) -> list[torch.Tensor]:
        values = pad(_cleared(values, counts), (0, 0, 0, 2)).reshape(-1, bins)  # two frames of zeros at the end
        return [values.index_select(0, index).reshape(waveforms, -1, bins) for index in rows]

    angle, angle_after = before_and_after(spectrum.angle())
    step = angle_after - angle - advance
    step = step - 2 * math.pi * torch.round(step / (2 * math.pi)) + advance
    step = torch.cat([angle[:, :1], step[:, :-1]], dim=1)
    # The phase grows to many turns. The CPU sums float32 in float64 by itself; elsewhere it must be asked to.
    phase = torch.cumsum(step, dim=1) if step.device.type == "cpu" else step.double().cumsum(dim=1).to(step.dtype)
    magnitude, magnitude_after = before_and_after(spectrum.abs())
    magnitude = weight * magnitude_after + (1 - weight) * magnitude
    return torch.polar(_cleared(magnitude, found), phase), found


def _overlap_add(spectrum: torch.Tensor, window: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """`torch.istft` (centred) of `(waveforms, frames, bins)` to `(waveforms, samples)`, undefined behind each end."""
    waveforms, count, _ = spectrum.shape
    # The hop is a quarter of the window: frames are added as four shifted blocks.
    blocks = (torch.fft.irfft(spectrum, n=N_FFT) * window).reshape(waveforms, count, 4, HOP)
    squared = window.square().reshape(4, HOP)
    weights = _cleared(blocks.new_ones(waveforms, count, 1), counts)
    total, envelope = blocks.new_zeros(2, waveforms, count + 3, HOP)
    for block in range(4):
        total[:, block : block + count] += blocks[:, :, block]
        envelope[:, block : block + count] += weights * squared[block]
    return (total / envelope).reshape(waveforms, -1)[:, N_FFT // 2 :]


def _cleared(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """`values` `(waveforms, frames, ...)` with zeros from frame `counts[waveform]` on."""
    if min(counts) == values.shape[1]:
        return values
    ends = to_device(torch.tensor(counts), values.device)[:, None]
    return values.masked_fill((torch.arange(values.shape[1], device=values.device) >= ends)[..., None], 0.0)
