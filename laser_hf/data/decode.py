"""The one reader of audio: decoding, mixing to mono, resampling, and refusing what cannot be used.

`soundfile` reads FLAC, WAV, Ogg Vorbis/Opus and MP3 without FFmpeg or torchcodec.
"""

from __future__ import annotations

import functools
import io
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import fsspec
import numpy as np
import soundfile
import torch

from ..errors import LaserError
from .resampling import resample, resampled_length

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
"""Hz; the rate of all encoders and all perturbations."""
KINDS = ("undecodable", "empty", "too_short", "too_long", "nan", "silent")
"""The values of `BadAudio.kind`."""
SILENCE_PEAK = 1e-5
"""Full scale is 1; one step of 16-bit audio is 3e-5."""
_MAX_FRAMES = 2**40  # damaged and streamed headers announce more

Audio = str | os.PathLike[str] | Mapping[str, Any]


class BadAudio(LaserError):
    """Audio that cannot be used: its `kind` is one of `KINDS`, its `reason` says what was found."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class Decoded(NamedTuple):
    """`waveform` `(samples,)` float32 on the CPU, full scale 1; rate (Hz) and number of channels as stored."""

    waveform: torch.Tensor
    source_rate: int
    channels: int


def decode_audio(
    audio: Audio, sample_rate: int = SAMPLE_RATE, *, min_seconds: float = 0.1, max_seconds: float | None = None
) -> Decoded:
    """Decode to mono at `sample_rate`.

    Channels are averaged and other rates resampled; each process logs this once per number of channels and rate.

    Args:
        audio: a path or URL; `{"bytes", "path"}`, as `datasets.Audio(decode=False)` stores it; or
            `{"array", "sampling_rate"}`, the array `(samples,)` or `(channels, samples)` of floats, int16 or int32.
        sample_rate: of the result, Hz.
        min_seconds: shorter audio is refused.
        max_seconds: longer audio is refused, before decoding if its header tells the length; `None` for no limit.

    Raises:
        BadAudio: missing, undecodable, empty, too short or long, with NaN or infinite samples, or digital silence.
        OSError: a remote file system cannot be reached; the audio itself may be good.
    """
    if isinstance(audio, Mapping) and audio.get("array") is not None:
        samples, source_rate = _from_array(audio["array"], audio.get("sampling_rate"))
    else:
        samples, source_rate = _from_file(audio, max_seconds)
    frames, channels = samples.shape
    _check_duration(frames, source_rate, min_seconds, max_seconds)
    if not np.isfinite(samples).all():
        raise BadAudio("nan", f"{int((~np.isfinite(samples)).sum())} of {samples.size} samples are NaN or infinite")
    if channels > 1:
        _log_once(f"audio with {channels} channels is averaged to one")
    waveform = torch.from_numpy(np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32)))
    if float(waveform.max() - waveform.min()) < 2 * SILENCE_PEAK:
        raise BadAudio("silent", f"{frames / source_rate:.2f} s of digital silence")
    if source_rate != sample_rate:
        _log_once(f"audio at {source_rate} Hz is resampled to {sample_rate} Hz")
        waveform = resample(waveform, source_rate, sample_rate)
    return Decoded(waveform, source_rate, channels)


def audio_seconds(audio: Audio) -> float | None:
    """Duration from the header, in seconds, rounded up to a whole sample at 16 kHz as `decode_audio` does.

    Returns `None` if the header cannot be read or has no length.

    Raises:
        OSError: a remote file system cannot be reached.
    """
    try:
        found = soundfile.info(_source(audio))
    except (BadAudio, soundfile.SoundFileError, TypeError, ValueError):
        return None
    if not 0 <= found.frames < _MAX_FRAMES:
        return None
    return resampled_length(found.frames, found.samplerate, SAMPLE_RATE) / SAMPLE_RATE


def _from_file(audio: Any, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Samples `(frames, channels)` float32 and rate of a stored file."""
    source = _source(audio)
    try:
        with soundfile.SoundFile(source) as file:
            if 0 < file.frames < _MAX_FRAMES:
                _check_duration(file.frames, file.samplerate, 0.0, max_seconds)
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except BadAudio:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
        raise BadAudio("undecodable", f"{_name(audio)}: {getattr(error, 'error_string', error)}") from error


def _name(audio: Any) -> str:
    return str((audio.get("path") or "audio bytes") if isinstance(audio, Mapping) else audio)


def _source(audio: Any) -> str | io.BytesIO:
    """What soundfile opens: a local path, or bytes."""
    path, data = (audio.get("path"), audio.get("bytes")) if isinstance(audio, Mapping) else (audio, None)
    if data is None and not isinstance(path, (str, os.PathLike)):
        raise BadAudio("undecodable", f"neither bytes nor path nor array in {repr(audio)[:80]}")
    try:
        if data is None and is_remote(os.fspath(path)):
            with fsspec.open(path, "rb") as stream:
                data = stream.read()
        if len(data) == 0 if data is not None else os.path.getsize(path) == 0:
            raise BadAudio("empty", f"{_name(audio)}: no bytes")
    except OSError as error:
        if is_remote(os.fspath(path)) and not isinstance(error, FileNotFoundError):
            raise
        raise BadAudio("undecodable", f"{path}: {(error.strerror or 'no such file').lower()}") from error
    return os.fspath(path) if data is None else io.BytesIO(data)


def is_remote(path: str) -> bool:
    """Whether `fsspec` has to open the path."""
    return "::" in path or "://" in path


def _from_array(array: Any, rate: Any) -> tuple[np.ndarray, int]:
    """Samples `(frames, channels)` float32 and rate of already decoded audio."""
    if not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise BadAudio("undecodable", f"an array needs a positive, whole sampling_rate in Hz, got {rate!r}")
    try:
        array = np.atleast_2d(np.asarray(array))
    except ValueError as error:
        raise BadAudio("undecodable", f"array: {error}") from error
    if array.dtype in (np.int16, np.int32):
        array = array / -float(np.iinfo(array.dtype).min)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        expected = "(samples,) or (channels, samples) of floats, int16 or int32"
        raise BadAudio("undecodable", f"an array must be {expected}, got {array.shape} of {array.dtype}")
    return array.T.astype(np.float32), int(rate)


def _check_duration(frames: int, rate: int, min_seconds: float, max_seconds: float | None) -> None:
    seconds = frames / rate
    if frames == 0:
        raise BadAudio("empty", "no samples")
    if seconds < min_seconds:
        raise BadAudio("too_short", f"{seconds:.3f} s ({frames} samples at {rate} Hz); at least {min_seconds:g} s")
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio("too_long", f"{seconds:.1f} s; at most {max_seconds:g} s")


@functools.cache
def _log_once(message: str) -> None:
    logger.warning("%s (said once)", message)
