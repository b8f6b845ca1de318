"""Noise: recordings of a folder of the user's, added at a signal-to-noise ratio."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import LaserError
from ..plugins import NOISE_ROBUST_BIBTEX, NOISE_ROBUST_PAPER, Option
from ..transfer import to_device
from .decode import BadAudio, decode_audio
from .files import files_digest, find_audio_files
from .perturbation import Perturbation


class Noise(Perturbation):
    """Adds a cut of a noise recording, scaled so that `10 log10(P_speech / P_noise)` is the drawn ratio.

    Powers are means of squares over the whole utterance, as in `torchaudio.functional.add_noise`. A recording shorter
    than the utterance is repeated. If a cut is digital silence, it starts where the recording next has sound. Silent
    speech stays as it is. The sum is not clipped.

    Drawn: `file` (path below `folder`, with `/`), `start` (of the cut, as a fraction of the recording, in [0, 1)) and
    `snr` (dB); each file and each ratio is equally likely. Each process keeps the last recordings used, up to
    `memory_mb` (an hour takes 230 MB). Recordings may have any rate and number of channels. A `LaserError` says that
    the folder does not exist or has no audio files; in use, that a recording cannot be decoded or is silent.
    """

    name, title = "noise", "Noise"
    summary = "adds noise from your own folder of recordings at a signal-to-noise ratio (needs --noise_dir)"
    paper, bibtex, robust = NOISE_ROBUST_PAPER, NOISE_ROBUST_BIBTEX, "noise-robust"
    options = (
        Option("folder", None, "folder of noise recordings", kind=str, flag="noise_dir"),
        Option("snrs", [20.0, 10.0, 5.0], "signal-to-noise ratios in dB, one per pair", many=True, flag="noise_snrs"),
    )
    keeps_duration, batched, changes = True, True, ("background noise",)
    memory_mb: ClassVar[float] = 256

    def __init__(self, folder: str | Path | None, snrs: Sequence[float] = (20.0, 10.0, 5.0)) -> None:
        if folder is None:
            raise LaserError("--perturbations noise needs --noise_dir, a folder of noise recordings")
        self.snrs, self.folder, self._kept = tuple(snrs), Path(folder).expanduser().absolute(), {}
        if not self.folder.is_dir():
            raise LaserError(f"there is no folder of noise {str(folder)!r}; give the folder of your noise recordings")
        self.files = tuple(path.relative_to(self.folder).as_posix() for path in find_audio_files(self.folder))
        if not self.files:
            raise LaserError(f"no audio files in {self.folder}; put noise recordings there, at any depth")

    def content(self) -> dict[str, str]:
        """Digest of the folder, see `files_digest`."""
        return {"noise_dir": files_digest(self.folder)}

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """`{"file": path, "start": fraction, "snr": dB}`, drawn in this order."""
        drawn = {"file": self.files[int(rng.integers(len(self.files)))], "start": float(rng.random())}
        return drawn | {"snr": self.snrs[int(rng.integers(len(self.snrs)))]}

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """`(samples,)` each, on their device; the noise is cut on the CPU and goes there in one copy."""
        if not waveforms:
            return []
        lengths = [len(waveform) for waveform in waveforms]
        cuts = [_cut(self._recording(one["file"]), one["start"], n) for one, n in zip(drawn, lengths, strict=True)]
        ratios = torch.tensor([10 ** (one["snr"] / 10) for one in drawn], dtype=torch.float64)
        noise_power = torch.stack([cut.double().square().sum() for cut in cuts])
        device, dtype = waveforms[0].device, waveforms[0].dtype
        noises = to_device(torch.cat(cuts), device).split(lengths)
        speech_power = torch.stack([waveform.double().square().sum() for waveform in waveforms])
        scales = (speech_power / to_device(noise_power.clamp(min=torch.finfo().tiny) * ratios, device)).sqrt()
        scaled = [(scale * noise.double()).to(dtype) for scale, noise in zip(scales, noises, strict=True)]
        return [waveform + noise for waveform, noise in zip(waveforms, scaled, strict=True)]

    def describe(self, drawn: Mapping[str, Any]) -> str:
        """Such as `street.flac at 10 dB`."""
        return f"{drawn['file']} at {drawn['snr']:g} dB"

    def _recording(self, file: str) -> torch.Tensor:
        """`(samples,)`, not silent."""
        if (recording := self._kept.pop(file, None)) is None:
            place = self.folder / file
            try:
                recording = decode_audio(place, min_seconds=0.0).waveform
                if not recording.any():  # all of the sound was above the new Nyquist frequency
                    raise BadAudio("silent", "no sound at 16 kHz")
            except BadAudio as error:
                raise LaserError(f"the noise recording {place} cannot be used ({error}); mend or remove it") from error
        self._kept[file] = recording  # the last one used
        while self._kept and sum(one.nbytes for one in self._kept.values()) > self.memory_mb * 1e6:
            del self._kept[next(iter(self._kept))]
        return recording

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # each worker decodes what it needs


def _cut(recording: torch.Tensor, start: float, samples: int) -> torch.Tensor:
    """`samples` from the fraction `start` on, wrapping around at the end, not all of them zero."""
    places = int(start * len(recording)) + torch.arange(samples)
    cut = recording[places % len(recording)]
    if samples and not cut.any():
        until_sound = ((torch.nonzero(recording)[:, 0] - places[0]) % len(recording)).min()
        cut = recording[(places + until_sound) % len(recording)]
    return cut
