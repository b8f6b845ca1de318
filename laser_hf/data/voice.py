"""Another speaker's voice as the perturbation: formants, pitch and intonation moved by Praat's "Change gender".

The first half of the speaker perturbation of NANSY (Choi et al. 2021), ContentVec (Qian et al. 2022) and SPIN
(Chang et al. 2023); :mod:`laser_hf.data.equalizer` is the second: ``build_perturbation(["voice", "equalizer"])``.
Durations do not change. Needs ``pip install praat-parselmouth`` (Jadoul et al. 2018).
"""

from __future__ import annotations

import csv
import logging
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .perturbation import Perturbation, check_rate, register_perturbation

logger = logging.getLogger(__name__)

FIRST_PASS = (75.0, 600.0)
"""Search range of the first pass over an utterance, Hz."""
LIMITS = (60.0, 600.0)
"""What is estimated from an utterance stays within, Hz."""
_COLUMNS = ("speaker", "floor", "ceiling")


@register_perturbation("voice")
class Voice(Perturbation):
    """Moves formants, pitch median and pitch range by ratios, each uniform from 1 to its limit, half of them inverted.

    The new pitch median is the utterance's own, over its voiced frames, times the ratio. Utterances in which Praat
    finds no voice, or which it cannot treat (shorter than three periods of the lowest pitch), come back
    unchanged, as in the released code of SPIN.

    Where to look for the pitch is taken from the speaker's line of ``speaker_f0``. For other speakers, and without
    that file, it is estimated in two passes (De Looze & Hirst 2008): the quartiles of a first pass between 75
    and 600 Hz give a floor of ``0.75 * q25`` and a ceiling of ``1.5 * q75``, kept within 60 and 600 Hz. That
    pass takes about a third of the time.

    Drawn: ``formant_ratio``, ``pitch_ratio``, ``range_ratio``; ``seed`` of the random numbers by which Praat divides
    unvoiced sound; ``floor`` and ``ceiling`` of the speaker in Hz, None where they are to be estimated.

    Args:
        max_formant_ratio: at least 1; 1 for no change.
        max_pitch_ratio: at least 1; 1 for no change.
        max_range_ratio: of the pitch's distances from its median; at least 1; 1 for no change.
        speaker_f0: a tab-separated file with a header line and the columns ``speaker``, ``floor`` and ``ceiling``
            (Hz). The speaker of an utterance is its id up to the first ``-``, as in LibriSpeech. A floor of
            50 Hz is raised to 75, as the released code does with its list.
        sample_rate: Hz.

    Raises:
        ValueError: a ratio is below 1, or the file cannot be used; the message says which line.
        ImportError: in use, where praat-parselmouth is not installed.
    """

    def __init__(
        self,
        max_formant_ratio: float = 1.4,
        max_pitch_ratio: float = 2.0,
        max_range_ratio: float = 1.5,
        speaker_f0: str | os.PathLike[str] | None = None,
        sample_rate: int = 16000,
    ) -> None:
        self.sample_rate = check_rate(sample_rate)
        self.max_ratios = {
            "formant_ratio": max_formant_ratio,
            "pitch_ratio": max_pitch_ratio,
            "range_ratio": max_range_ratio,
        }
        for name, ratio in self.max_ratios.items():
            if not (math.isfinite(ratio) and ratio >= 1):
                raise ValueError(f"max_{name} must be 1 or more, and finite, got {ratio!r}; 1 for no change")
        self.speaker_f0 = None if speaker_f0 is None else read_speaker_f0(speaker_f0)
        self._announced = False

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Ratios, inversions and seed, drawn in this order; the search range is left to the utterance."""
        ratios = {name: float(rng.uniform(1, limit)) for name, limit in self.max_ratios.items()}
        inverted = rng.random(len(ratios)) < 0.5
        drawn = {
            name: 1 / ratio if turn else ratio for (name, ratio), turn in zip(ratios.items(), inverted, strict=True)
        }
        return drawn | {"seed": int(rng.integers(2**31)), "floor": None, "ceiling": None}

    def draw_for(self, rng: np.random.Generator, utterance_id: str) -> dict[str, Any]:
        """:meth:`draw`, with the search range of the speaker where it is known."""
        drawn = self.draw(rng)
        if self.speaker_f0 is None:
            return drawn
        speaker = utterance_id.partition("-")[0]
        if speaker not in self.speaker_f0:
            if not self._announced:
                self._announced = True
                logger.warning(
                    "speaker %r of utterance %r is not in the file of pitch ranges; for such speakers the range is "
                    "estimated from each utterance (said once)",
                    speaker,
                    utterance_id,
                )
            return drawn
        floor, ceiling = self.speaker_f0[speaker]
        return drawn | {"floor": floor, "ceiling": ceiling}

    def apply(
        self,
        waveform: torch.Tensor,
        *,
        formant_ratio: float,
        pitch_ratio: float,
        range_ratio: float,
        seed: int = 0,
        floor: float | None = None,
        ceiling: float | None = None,
    ) -> torch.Tensor:
        """``(samples,)`` on the CPU to ``(samples,)``."""
        parselmouth = _parselmouth()
        try:
            sound = parselmouth.Sound(waveform.double().numpy(), self.sample_rate)
            if floor is None or ceiling is None:
                voiced = _voiced(sound.to_pitch(pitch_floor=FIRST_PASS[0], pitch_ceiling=FIRST_PASS[1]))
                if not voiced.size:
                    return waveform.clone()
                floor, ceiling = two_pass_range(voiced)
            pitch = sound.to_pitch(pitch_floor=floor, pitch_ceiling=ceiling)
            voiced = _voiced(pitch)
            if not voiced.size:
                return waveform.clone()
            median = float(np.median(voiced)) * pitch_ratio
            # "Unsafely" is for cryptography; without it the same draw would give another waveform each time.
            parselmouth.praat.run(f"random_initializeWithSeedUnsafelyButPredictably ({int(seed)})")
            changed = parselmouth.praat.call(
                (sound, pitch), "Change gender", formant_ratio, median, range_ratio, 1.0
            ).values[0]
        except parselmouth.PraatError as error:
            logger.debug("an utterance of %d samples keeps its voice: %s", len(waveform), error)
            return waveform.clone()
        if not np.isfinite(changed).all():
            return waveform.clone()
        changed = torch.from_numpy(changed[: len(waveform)]).to(waveform.dtype)
        return torch.nn.functional.pad(changed, (0, len(waveform) - len(changed)))

    def __repr__(self) -> str:
        ratios = ", ".join(f"{limit:g}" for limit in self.max_ratios.values())
        speakers = "" if self.speaker_f0 is None else f", pitch ranges of {len(self.speaker_f0)} speakers"
        return f"Voice({ratios}{speakers}, {self.sample_rate})"


def two_pass_range(voiced: np.ndarray) -> tuple[float, float]:
    """Floor and ceiling (Hz) of the second pass from the pitch ``(frames,)`` of the first (De Looze & Hirst 2008)."""
    lower, upper = np.quantile(voiced, (0.25, 0.75))
    return max(LIMITS[0], 0.75 * float(lower)), min(LIMITS[1], 1.5 * float(upper))


def read_speaker_f0(path: str | os.PathLike[str]) -> dict[str, tuple[float, float]]:
    """``{speaker: (floor, ceiling)}`` in Hz of a tab-separated file, see :class:`Voice`.

    Raises:
        ValueError: the file or a column is missing, or a line holds no range, or the speaker of another line.
    """
    path = Path(path).expanduser()
    wanted = f"a tab-separated file with the columns {', '.join(_COLUMNS)} was expected"
    if not path.is_file():
        raise ValueError(f"speaker_f0: there is no file {str(path)!r}; {wanted}")
    ranges: dict[str, tuple[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: there is no column {', '.join(missing)} in the header line; {wanted}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            try:
                floor, ceiling = float(row["floor"]), float(row["ceiling"])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: floor and ceiling must be numbers of Hz ({error})") from error
            floor = 75.0 if floor == 50 else floor
            if not 0 < floor < ceiling < math.inf:
                raise ValueError(f"{where}: 0 < floor < ceiling was expected, got {floor:g} and {ceiling:g} Hz")
            if row["speaker"] in ranges:
                raise ValueError(f"{where}: speaker {row['speaker']!r} has a line already; keep one")
            ranges[row["speaker"]] = floor, ceiling
    return ranges


def _voiced(pitch: Any) -> np.ndarray:
    """Fundamental frequencies (Hz) of the voiced frames of a Praat pitch object."""
    frequencies = pitch.selected_array["frequency"]
    return frequencies[frequencies > 0]


def _parselmouth() -> ModuleType:
    """Praat, which only this perturbation needs."""
    try:
        import parselmouth
    except ImportError as error:
        raise ImportError(
            'the perturbation "voice" needs Praat: pip install praat-parselmouth (the package parselmouth is another)'
        ) from error
    return parselmouth
