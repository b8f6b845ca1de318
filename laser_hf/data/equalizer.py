"""A random equaliser: the timbre of another channel or voice; words, pitch and timing stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchaudio.functional import lfilter

from .decode import SAMPLE_RATE
from .perturbation import Perturbation

Q_LOW, Q_HIGH = 2.0, 5.0
"""Range of the quality factors, `Q = 2 * 2.5 ** U(0, 1)`."""
_TAIL = 1e-8
"""The impulse response is cut where the slowest pole has decayed to this (float32 resolves 6e-8)."""
_MIN_BLOCK = 2**15


class Equalizer(Perturbation):
    """Parametric equaliser of a low shelf, peaking filters and a high shelf, clipped to [-1, 1] at the end.

    The second half of the speaker perturbation of NANSY, ContentVec and Spin; `voice` is the first. The filters are
    those of Bristow-Johnson's "Cookbook formulae for audio EQ biquad filter coefficients", at log-spaced frequencies.
    They run as one convolution with the impulse response of their cascade, exact to the round-off of float32 and faster
    than the recursion on every device.

    Drawn: `gains` (dB, uniform within `gain_db` either way) and `qualities` (`2 * 2.5 ** U(0, 1)`), one per band,
    lowest band first.
    """

    name = "equalizer"
    title = "Equaliser"
    summary = "changes the strengths of ten frequency bands"
    paper = "Chang, Liu & Glass, Spin, Interspeech 2023; after Choi et al., NANSY, NeurIPS 2021"
    keeps_duration = True
    changes = ("channel",)
    batched = True
    gain_db: float = 12
    """Largest gain or attenuation of a band."""
    frequencies = tuple(np.geomspace(60, 7600, 10).tolist())
    """Corner of the low shelf, centres of the peaking filters and corner of the high shelf, Hz."""

    def draw(self, rng: np.random.Generator) -> dict[str, list[float]]:
        """`{"gains": [dB, ...], "qualities": [Q, ...]}`, drawn in this order."""
        bands = len(self.frequencies)
        gains = rng.uniform(-self.gain_db, self.gain_db, bands).tolist()
        return {"gains": gains, "qualities": (Q_LOW * (Q_HIGH / Q_LOW) ** rng.random(bands)).tolist()}

    def apply(self, waveform: torch.Tensor, *, gains: Sequence[float], qualities: Sequence[float]) -> torch.Tensor:
        """`(samples,)` to `(samples,)`, on the device of `waveform`."""
        return _convolve(waveform, self.impulse_response(gains, qualities).to(waveform)).clamp(-1, 1)

    def describe(self, drawn: Mapping[str, Any]) -> str:
        """Such as `equaliser of 10 bands`."""
        return f"equaliser of {len(drawn['gains'])} bands"

    def impulse_response(self, gains: Sequence[float], qualities: Sequence[float]) -> torch.Tensor:
        """`(samples,)` float64 of the cascade, until it has died away."""
        kinds = ["low_shelf", *["peaking"] * (len(self.frequencies) - 2), "high_shelf"]
        filters = [
            biquad(kind, 2 * math.pi * frequency / SAMPLE_RATE, gain, quality)
            for kind, frequency, gain, quality in zip(kinds, self.frequencies, gains, qualities, strict=True)
        ]
        slowest = max(np.abs(np.roots(denominator)).max() for _, denominator in filters)
        samples = math.ceil(math.log(_TAIL) / math.log(slowest)) + len(filters)
        response = torch.zeros(samples, dtype=torch.float64)
        response[0] = 1
        for numerator, denominator in filters:
            response = lfilter(response, torch.tensor(denominator), torch.tensor(numerator), clamp=False)
        return response


def biquad(kind: str, omega: float, gain: float, quality: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of a filter of the cookbook, float64, each `(3,)` from `z ** 0` to `z ** -2`.

    Args:
        kind: `low_shelf`, `peaking` or `high_shelf`.
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
        high, low = plus - minus * cosine, plus + minus * cosine
        numerator = [amplitude * one for one in (high + slope, side * 2 * (minus - plus * cosine), high - slope)]
        denominator = [low + slope, side * -2 * (minus + plus * cosine), low - slope]
    return np.array(numerator) / denominator[0], np.array(denominator) / denominator[0]


def _convolve(waveform: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """The first `samples` of the convolution, by overlap-save in blocks that suit the length of the response."""
    samples, overlap = len(waveform), len(response) - 1
    block = max(_MIN_BLOCK, 2 ** (2 * overlap).bit_length())
    step = block - overlap
    count = max(1, -(-samples // step))
    blocks = torch.nn.functional.pad(waveform, (overlap, count * step - samples)).unfold(0, block, step)
    product = torch.fft.rfft(blocks) * torch.fft.rfft(response, block)
    return torch.fft.irfft(product, block)[:, overlap:].reshape(-1)[:samples]
