"""The speaker perturbation of NANSY, ContentVec and Spin: a voice moved by Praat, and a random equaliser."""

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torchaudio.functional import lfilter

from ..errors import LaserError
from ..plugins import Option
from ..transfer import to_device
from .decode import SAMPLE_RATE
from .files import read_table
from .perturbation import Perturbation

logger = logging.getLogger(__name__)

PAPER = "Chang, Liu & Glass, Spin, Interspeech 2023; after Choi et al., NANSY, NeurIPS 2021"
FIRST_PASS = (75.0, 600.0)  # search range of the first pass over an utterance, Hz
TAIL = 1e-8  # the impulse response is cut where the slowest pole has decayed to this (float32 resolves 6e-8)
MIN_BLOCK = 2**15


class Voice(Perturbation):
    """Moves formants, pitch median and pitch range by ratios, each uniform from 1 to its limit, half of them inverted.

    The median is that of the utterance's voiced frames. As in the released code of Spin, utterances come back unchanged
    if Praat finds no voice or cannot treat them (shorter than three periods of the lowest pitch).

    Drawn: `formant_ratio`, `pitch_ratio`, `range_ratio`; `seed` of the random numbers by which Praat divides unvoiced
    sound; `floor` and `ceiling` of the speaker in Hz, `None` if they are to be estimated (a third more time).

    Args:
        speaker_f0: tab-separated table with the columns `speaker` (the id of an utterance up to the first `-`), `floor`
            and `ceiling`: where to look for the pitch, Hz. A floor of 50 Hz becomes 75, as in the released code.
            Speakers without a line get `two_pass_range`.

    A `LaserError` says that praat-parselmouth is not installed, or which line of the table cannot be used.
    """

    name, title, paper = "voice", "Voice", PAPER
    summary = "changes formants and pitch by Praat (needs praat-parselmouth)"
    options = (
        Option("speaker_f0", None, "table of speaker, floor and ceiling in Hz; default: from each utterance", kind=str),
    )
    keeps_duration, changes = True, ("speaker's voice",)
    limits: Mapping[str, float] = {"formant_ratio": 1.4, "pitch_ratio": 2.0, "range_ratio": 1.5}  # 1 for no change

    def __init__(self, speaker_f0: str | Path | None = None) -> None:
        if importlib.util.find_spec("parselmouth") is None:
            raise LaserError("--perturbations voice needs Praat: pip install praat-parselmouth")
        self.speaker_f0 = None if speaker_f0 is None else read_speaker_f0(speaker_f0)
        self._warned = False

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Ratios, inversions and seed, drawn in this order; `floor` and `ceiling` stay `None`."""
        ratios = {name: float(rng.uniform(1, limit)) for name, limit in self.limits.items()}
        inverted = rng.random(len(ratios)) < 0.5
        drawn = {name: 1 / ratios[name] if turn else ratios[name] for name, turn in zip(ratios, inverted, strict=True)}
        return drawn | {"seed": int(rng.integers(2**31)), "floor": None, "ceiling": None}

    def draw_for(self, rng: np.random.Generator, utterance_id: str) -> dict[str, Any]:
        """`draw`, with the search range of the speaker if `speaker_f0` has it."""
        drawn, speaker = self.draw(rng), utterance_id.partition("-")[0]
        if self.speaker_f0 is not None and speaker in self.speaker_f0:
            drawn["floor"], drawn["ceiling"] = self.speaker_f0[speaker]
        elif self.speaker_f0 is not None and not self._warned:
            self._warned = True
            logger.warning("speaker %r has no line in the table of pitch ranges; such ranges are estimated", speaker)
        return drawn

    def apply(self, waveform: torch.Tensor, **drawn: Any) -> torch.Tensor:
        """`(samples,)` on the CPU to `(samples,)`."""
        import parselmouth

        def find_pitch(floor: float, ceiling: float) -> tuple[Any, np.ndarray]:
            pitch = sound.to_pitch(pitch_floor=floor, pitch_ceiling=ceiling)
            frequencies = pitch.selected_array["frequency"]
            return pitch, frequencies[frequencies > 0]

        floor, ceiling = drawn.get("floor"), drawn.get("ceiling")
        try:
            sound = parselmouth.Sound(waveform.double().numpy(), SAMPLE_RATE)
            if floor is None or ceiling is None:
                _, voiced = find_pitch(*FIRST_PASS)
                floor, ceiling = two_pass_range(voiced) if voiced.size else FIRST_PASS
            pitch, voiced = find_pitch(floor, ceiling)
            if not voiced.size:
                return waveform.clone()
            median = float(np.median(voiced)) * drawn["pitch_ratio"]
            # Praat draws random numbers for unvoiced sound.
            parselmouth.praat.run(f"random_initializeWithSeedUnsafelyButPredictably ({int(drawn.get('seed', 0))})")
            ratios = (drawn["formant_ratio"], median, drawn["range_ratio"], 1.0)
            changed = parselmouth.praat.call((sound, pitch), "Change gender", *ratios).values[0]
        except parselmouth.PraatError as error:
            logger.debug("an utterance of %d samples keeps its voice: %s", len(waveform), error)
            return waveform.clone()
        if not np.isfinite(changed).all():
            return waveform.clone()
        changed = torch.from_numpy(changed[: len(waveform)]).to(waveform.dtype)
        return pad(changed, (0, len(waveform) - len(changed)))

    def describe(self, drawn: Mapping[str, Any]) -> str:
        """Such as `formants x 1.2, pitch x 0.8, pitch range x 1.1`."""
        names = {"formant_ratio": "formants", "pitch_ratio": "pitch", "range_ratio": "pitch range"}
        return ", ".join(f"{words} x {drawn[name]:.3g}" for name, words in names.items())


def two_pass_range(voiced: np.ndarray) -> tuple[float, float]:
    """`0.75 * q25` and `1.5 * q75` of the voiced pitch `(frames,)`, within 60 and 600 Hz (De Looze & Hirst 2008)."""
    lower, upper = np.quantile(voiced, (0.25, 0.75))
    return max(60.0, 0.75 * float(lower)), min(600.0, 1.5 * float(upper))


def read_speaker_f0(path: str | Path) -> dict[str, tuple[float, float]]:
    """`{speaker: (floor, ceiling)}` in Hz from a table, see `Voice`."""
    ranges: dict[str, tuple[float, float]] = {}
    for place, row in read_table(path, ("speaker", "floor", "ceiling")):
        try:
            floor, ceiling = float(row["floor"]), float(row["ceiling"])
        except ValueError:
            floor = ceiling = math.nan
        if not 0 < floor < ceiling < math.inf:
            given = f"{row['floor']} and {row['ceiling']}"
            raise LaserError(f"{place}: 0 < floor < ceiling in Hz was expected, got {given}")
        if row["speaker"] in ranges:
            raise LaserError(f"{place}: speaker {row['speaker']!r} has a line already; keep one")
        ranges[row["speaker"]] = 75.0 if floor == 50 else floor, ceiling
    return ranges


class Equalizer(Perturbation):
    """Parametric equaliser of a low shelf, peaking filters and a high shelf, clipped to [-1, 1] at the end.

    The filters are those of Bristow-Johnson's "Cookbook formulae for audio EQ biquad filter coefficients". They run as
    one convolution with the impulse response of their cascade: the recursion, but faster.

    Drawn: `gains` (dB, uniform within `gain_db` either way) and `qualities` (`2 * 2.5 ** U(0, 1)`), one per band,
    lowest band first.
    """

    name, title, paper = "equalizer", "Equaliser", PAPER
    summary = "changes the strengths of ten frequency bands"
    keeps_duration, batched, changes = True, True, ("channel",)
    gain_db: float = 12
    frequencies = tuple(np.geomspace(60, 7600, 10).tolist())  # corner, centres and corner, Hz

    def draw(self, rng: np.random.Generator) -> dict[str, list[float]]:
        """`{"gains": [dB, ...], "qualities": [Q, ...]}`, drawn in this order."""
        bands = len(self.frequencies)
        gains = rng.uniform(-self.gain_db, self.gain_db, bands).tolist()
        return {"gains": gains, "qualities": (2.0 * 2.5 ** rng.random(bands)).tolist()}

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """`(samples,)` each, on their device; the filters are computed on the CPU and go there in one copy."""
        responses = [self.impulse_response(**one).to(waveforms[0].dtype) for one in drawn]
        # On the CPU, transforms depend in their last digit on how many there are.
        size = 1 if waveforms and waveforms[0].device.type == "cpu" else len(waveforms) or 1
        parts = [slice(first, first + size) for first in range(0, len(waveforms), size)]
        return [row.clamp(-1, 1) for part in parts for row in _convolve(waveforms[part], responses[part])]

    def describe(self, drawn: Mapping[str, Any]) -> str:
        """Such as `equaliser of 10 bands`."""
        return f"equaliser of {len(drawn['gains'])} bands"

    def impulse_response(self, gains: Sequence[float], qualities: Sequence[float]) -> torch.Tensor:
        """`(samples,)` float64 of the cascade, until it has died away."""
        kinds = ["low_shelf", *["peaking"] * (len(self.frequencies) - 2), "high_shelf"]
        bands = zip(kinds, self.frequencies, gains, qualities, strict=True)
        filters = [biquad(kind, 2 * math.pi * hertz / SAMPLE_RATE, *rest) for kind, hertz, *rest in bands]
        slowest = max(np.abs(np.roots(denominator)).max() for _, denominator in filters)
        samples = math.ceil(math.log(TAIL) / math.log(slowest)) + len(filters)
        response = torch.eye(1, samples, dtype=torch.float64)[0]
        for numerator, denominator in filters:
            response = lfilter(response, torch.tensor(denominator), torch.tensor(numerator), clamp=False)
        return response


def biquad(kind: str, omega: float, gain: float, quality: float) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a `low_shelf`, `peaking` or `high_shelf` of the cookbook, each `(3,)` float64.

    They go from `z ** 0` to `z ** -2`, divided by the denominator's first. `omega` is the centre or corner frequency in
    radians a sample, `gain` dB at the centre or on the shelf, `quality` Q.
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


def _convolve(waveforms: Sequence[torch.Tensor], responses: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The first `samples` of each convolution, by overlap-save in blocks that suit the longest response."""
    block = max([MIN_BLOCK, *(2 ** (2 * (len(response) - 1)).bit_length() for response in responses)])
    blocks, overlaps = [], [len(response) - 1 for response in responses]
    for waveform, overlap in zip(waveforms, overlaps, strict=True):
        samples, step = len(waveform), block - overlap
        count = max(1, -(-samples // step))
        blocks.append(pad(waveform, (overlap, count * step - samples)).unfold(0, block, step))
    padded = torch.stack([pad(response, (0, block - len(response))) for response in responses])
    spectra = torch.fft.rfft(to_device(padded, waveforms[0].device)).split(1)
    counts = [len(own) for own in blocks]
    products = zip(torch.fft.rfft(torch.cat(blocks)).split(counts), spectra, strict=True)
    found = torch.fft.irfft(torch.cat([own * spectrum for own, spectrum in products]), block).split(counts)
    cut = zip(waveforms, overlaps, found, strict=True)
    return [own[:, overlap:].reshape(-1)[: len(waveform)] for waveform, overlap, own in cut]
