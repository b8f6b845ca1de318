"""Noise as the perturbation: recordings of a folder added at a signal-to-noise ratio.

The second view of Meghanani & Hain's noise-robust self-supervised fine-tuning: DEMAND noise at 20, 10 or 5 dB.
The recordings are the user's; any folder of audio files will do.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .decode import BadAudio, decode_audio
from .local_speech import AUDIO_SUFFIXES, find_audio_files
from .perturbation import Perturbation, check_numbers, check_rate, register_perturbation


@register_perturbation("noise")
class Noise(Perturbation):
    """Adds a cut of a noise recording, scaled so that ``10 log10(P_speech / P_noise)`` is the drawn ratio.

    Powers are means of squares over the whole utterance, as in ``torchaudio.functional.add_noise``. A recording
    shorter than the utterance is repeated. A cut that is digital silence begins where sound next sets in.
    Silent speech has no ratio to its noise and is left as it is. The sum is not clipped.

    Drawn: ``file`` (its path below ``folder``, with ``/``), ``start`` (where the cut begins, as a fraction of the
    recording, in [0, 1)) and ``snr`` (dB); each file and each ratio is as likely as any other.

    Recordings are decoded when they are first drawn and kept in memory, the one not used for longest going first;
    every process that loads data keeps its own.

    Args:
        folder: audio files (.flac .wav .ogg .opus .mp3) at any depth, of any rate, mono or not.
        snrs: at least one signal-to-noise ratio, dB.
        sample_rate: Hz.
        memory_mb: of decoded recordings to keep (an hour at 16 kHz takes 230 MB); 0 for none.

    Raises:
        ValueError: the folder does not exist or has no audio files, or a number is unsuitable. In use: a
            recording cannot be decoded or is silent throughout; the message names it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        snrs: Sequence[float] = (20, 10, 5),
        sample_rate: int = 16000,
        memory_mb: float = 256,
    ) -> None:
        self.sample_rate = check_rate(sample_rate)
        self.snrs = check_numbers("snrs", snrs, "[100] or so")
        if not np.isfinite(self.snrs).all():
            raise ValueError(f"snrs must be finite numbers of dB, got {list(self.snrs)}")
        if not memory_mb >= 0:
            raise ValueError(f"memory_mb must be 0 or more, got {memory_mb!r}")
        self.memory_mb = memory_mb
        self.folder = Path(folder).expanduser().absolute()
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder of noise {str(folder)!r}; give the folder of your noise recordings")
        self.files = tuple(path.relative_to(self.folder).as_posix() for path in find_audio_files(self.folder))
        if not self.files:
            suffixes = " ".join(AUDIO_SUFFIXES)
            raise ValueError(f"no audio files ({suffixes}) in {self.folder}; put noise recordings there, at any depth")
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """``{"file": path, "start": fraction, "snr": dB}``, drawn in this order."""
        file = self.files[int(rng.integers(len(self.files)))]
        start = float(rng.random())
        return {"file": file, "start": start, "snr": self.snrs[int(rng.integers(len(self.snrs)))]}

    def apply(self, waveform: torch.Tensor, *, file: str, start: float, snr: float) -> torch.Tensor:
        """``(samples,)`` to ``(samples,)``, on the device of ``waveform``.

        Raises:
            ValueError: the recording cannot be used.
        """
        speech_power = float(waveform.double().square().mean()) if len(waveform) else 0.0
        if speech_power == 0:
            return waveform.clone()
        noise = _cut(self._recording(file), start, len(waveform))
        scale = (speech_power / float(noise.double().square().mean()) / 10 ** (snr / 10)) ** 0.5
        return waveform + (scale * noise.double()).to(waveform)

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """``(samples,)`` to ``(samples,)`` each; the noise is cut on the CPU."""
        return [self.apply(waveform, **one) for waveform, one in zip(waveforms, drawn, strict=True)]

    def _recording(self, file: str) -> torch.Tensor:
        """``(samples,)``, not silent throughout."""
        if file in self._kept:
            self._kept.move_to_end(file)
            return self._kept[file]
        path = self.folder / file
        try:
            recording = decode_audio(path, self.sample_rate, min_seconds=0.0).waveform
            if not recording.any():  # what the resampling left of a sound beyond hearing
                raise BadAudio("silent", "no sound at the rate asked for")
        except BadAudio as error:
            raise ValueError(f"the noise recording {path} cannot be used ({error}); mend or remove it") from error
        self._kept[file] = recording
        while self._kept and sum(one.nbytes for one in self._kept.values()) > self.memory_mb * 1e6:
            self._kept.popitem(last=False)
        return recording

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}  # a worker decodes what it needs

    def __repr__(self) -> str:
        return f"Noise({str(self.folder)!r}, {list(self.snrs)}, {self.sample_rate})"


def _cut(recording: torch.Tensor, start: float, samples: int) -> torch.Tensor:
    """``samples`` from the fraction ``start`` on, going round at the end, and not all of them zero."""
    first = int(start * len(recording))
    cut = _wrapped(recording, first, samples)
    if not cut.any():
        sounding = torch.nonzero(recording)[:, 0]
        later = sounding[sounding >= first]
        cut = _wrapped(recording, int(later[0] if len(later) else sounding[0]), samples)
    return cut


def _wrapped(recording: torch.Tensor, first: int, samples: int) -> torch.Tensor:
    if first + samples <= len(recording):
        return recording[first : first + samples]
    return recording[torch.arange(first, first + samples) % len(recording)]
