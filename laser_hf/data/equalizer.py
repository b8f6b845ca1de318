"""A random equaliser as the perturbation: the timbre of another channel or voice, the words and pitch kept.

The second half of the speaker perturbation of NANSY (Choi et al. 2021), ContentVec (Qian et al. 2022) and SPIN
(Chang et al. 2023). The filters are the low shelf, peaking and high shelf of Bristow-Johnson's "Cookbook formulae
for audio EQ biquad filter coefficients".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchaudio.functional import lfilter

from .perturbation import Perturbation, check_rate, register_perturbation

Q_LOW, Q_HIGH = 2.0, 5.0
"""Range of the quality factors, ``Q = 2 * 2.5 ** U(0, 1)``."""
_TAIL = 1e-8
"""Where the impulse response may be cut: the slowest pole has decayed to this (float32 resolves 6e-8)."""
_MIN_BLOCK = 2**15


@register_perturbation("equalizer")
class Equalizer(Perturbation):
    """Parametric equaliser of a low shelf, peaking filters and a high shelf, clipped to [-1, 1] at the end.

    Centre frequencies lie log-spaced from ``low`` to ``high``. Drawn: ``gains`` (dB, uniform within ``gain_db``
    either way) and ``qualities`` (``2 * 2.5 ** U(0, 1)``), one a band, lowest band first.

    The filters run as one convolution with the impulse response of their cascade, exact to the round-off of
    float32: unlike the recursion itself it is quick on every device. Nothing is clipped between the filters.

    Args:
        gain_db: largest gain or attenuation of a band, dB.
        low: corner of the low shelf, Hz.
        high: corner of the high shelf, Hz, below half the sample rate.
        bands: number of filters, at least the 2 shelves.
        sample_rate: Hz.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self, gain_db: float = 12, low: float = 60, high: float = 7600, bands: int = 10, sample_rate: int = 16000
    ) -> None:
        self.sample_rate = check_rate(sample_rate)
        if not (math.isfinite(gain_db) and gain_db >= 0):
            raise ValueError(f"gain_db must be 0 or more, and finite, got {gain_db!r}; 0 for no change")
        if not 0 < low < high < self.sample_rate / 2:
            raise ValueError(
                f"an equaliser needs 0 < low < high < half the sample rate ({self.sample_rate / 2:g} Hz), "
                f"got low {low!r} and high {high!r} Hz"
            )
        if isinstance(bands, bool) or int(bands) != bands or bands < 2:
            raise ValueError(f"bands must be a whole number, at least 2 (the two shelves), got {bands!r}")
        self.gain_db, self.low, self.high = float(gain_db), float(low), float(high)
        self.frequencies = tuple(np.geomspace(low, high, int(bands)).tolist())

    def draw(self, rng: np.random.Generator) -> dict[str, list[float]]:
        """``{"gains": [dB, ...], "qualities": [Q, ...]}``; all gains are drawn first."""
        bands = len(self.frequencies)
        gains = rng.uniform(-self.gain_db, self.gain_db, bands).tolist()
        return {"gains": gains, "qualities": (Q_LOW * (Q_HIGH / Q_LOW) ** rng.random(bands)).tolist()}

    def apply(self, waveform: torch.Tensor, *, gains: Sequence[float], qualities: Sequence[float]) -> torch.Tensor:
        """``(samples,)`` to ``(samples,)``, on the device of ``waveform``.

        Raises:
            ValueError: the numbers of gains and qualities are not that of the bands.
        """
        response = self.impulse_response(gains, qualities)
        return _convolve(waveform, response.to(waveform)).clamp(-1, 1)

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """``(samples,)`` to ``(samples,)`` each."""
        return [self.apply(waveform, **one) for waveform, one in zip(waveforms, drawn, strict=True)]

    def impulse_response(self, gains: Sequence[float], qualities: Sequence[float]) -> torch.Tensor:
        """``(samples,)`` float64 of all filters in a row, as long as it takes to die away."""
        bands = len(self.frequencies)
        if not len(gains) == len(qualities) == bands:
            raise ValueError(f"{bands} bands need as many gains and qualities, got {len(gains)} and {len(qualities)}")
        kinds = ["low_shelf", *["peaking"] * (bands - 2), "high_shelf"]
        filters = [
            biquad(kind, 2 * math.pi * frequency / self.sample_rate, gain, quality)
            for kind, frequency, gain, quality in zip(kinds, self.frequencies, gains, qualities, strict=True)
        ]
        slowest = max(np.abs(np.roots(denominator)).max() for _, denominator in filters)
        response = torch.zeros(math.ceil(math.log(_TAIL) / math.log(slowest)) + bands, dtype=torch.float64)
        response[0] = 1
        for numerator, denominator in filters:
            response = lfilter(response, torch.tensor(denominator), torch.tensor(numerator), clamp=False)
        return response

    def __repr__(self) -> str:
        bands = len(self.frequencies)
        return f"Equalizer({self.gain_db:g}, {self.low:g}, {self.high:g}, {bands}, {self.sample_rate})"


def biquad(kind: str, omega: float, gain: float, quality: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of a filter of the cookbook, float64, each ``(3,)`` from ``z ** 0`` to ``z ** -2``.

    Args:
        kind: ``low_shelf``, ``peaking`` or ``high_shelf``.
        omega: centre or corner frequency, radians a sample.
        gain: dB, at the centre or on the shelf.
        quality: Q.

    Returns:
        Numerator and denominator, both divided by the denominator's first.
    """
    amplitude, cosine, alpha = 10 ** (gain / 40), math.cos(omega), math.sin(omega) / (2 * quality)
    if kind == "peaking":
        numerator = [1 + alpha * amplitude, -2 * cosine, 1 - alpha * amplitude]
        denominator = [1 + alpha / amplitude, -2 * cosine, 1 - alpha / amplitude]
    else:
        side = {"low_shelf": 1, "high_shelf": -1}[kind]  # the high shelf mirrors the low one: cos -> -cos
        cosine *= side
        plus, minus, slope = amplitude + 1, amplitude - 1, 2 * math.sqrt(amplitude) * alpha
        numerator = [
            amplitude * (plus - minus * cosine + slope),
            side * 2 * amplitude * (minus - plus * cosine),
            amplitude * (plus - minus * cosine - slope),
        ]
        denominator = [
            plus + minus * cosine + slope,
            side * -2 * (minus + plus * cosine),
            plus + minus * cosine - slope,
        ]
    return np.array(numerator) / denominator[0], np.array(denominator) / denominator[0]


def _convolve(waveform: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """The first ``samples`` of the convolution, by overlap-save in blocks that suit the response."""
    samples, overlap = len(waveform), len(response) - 1
    block = max(_MIN_BLOCK, 2 ** (2 * overlap).bit_length())
    step = block - overlap
    count = max(1, -(-samples // step))
    blocks = torch.nn.functional.pad(waveform, (overlap, count * step - samples)).unfold(0, block, step)
    product = torch.fft.rfft(blocks) * torch.fft.rfft(response, block)
    return torch.fft.irfft(product, block)[:, overlap:].reshape(-1)[:samples]
