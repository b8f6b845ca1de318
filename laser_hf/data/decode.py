"""From stored audio to a mono float32 waveform: the one place where audio is decoded.

``soundfile`` reads FLAC, WAV, Ogg Vorbis/Opus and MP3 without FFmpeg or torchcodec. Whatever cannot be used
for training raises :class:`BadAudio` with a ``kind`` that can be counted.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec
import numpy as np
import soundfile
import torch

from .resampling import resample

logger = logging.getLogger(__name__)

KINDS = ("undecodable", "empty", "too_short", "too_long", "nan", "silent")
"""The values of :attr:`BadAudio.kind`."""
SILENCE_PEAK = 1e-5
"""Full scale is 1; one step of 16-bit audio is 3e-5."""

_announced: set[tuple[Any, ...]] = set()


class BadAudio(ValueError):
    """Audio that cannot be trained on.

    Attributes:
        kind: one of :data:`KINDS`.
        reason: what was found, in words.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class Decoded(NamedTuple):
    """A decoded utterance.

    Attributes:
        waveform: ``(samples,)`` float32 on the CPU, full scale 1, at ``sample_rate``.
        sample_rate: Hz, as asked for.
        source_rate: Hz, as stored.
        channels: as stored.
        source_frames: samples of each channel, as stored.
    """

    waveform: torch.Tensor
    sample_rate: int
    source_rate: int
    channels: int
    source_frames: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.waveform.shape[-1] / self.sample_rate


def decode_audio(
    audio: str | os.PathLike[str] | Mapping[str, Any],
    sample_rate: int = 16000,
    *,
    min_seconds: float = 0.1,
    max_seconds: float | None = None,
) -> Decoded:
    """Decode to mono at ``sample_rate``, and refuse what cannot be used.

    Several channels are averaged and other rates resampled; each new number of channels or rate is announced
    once in the log of the process that meets it.

    Args:
        audio: a path or URL; or ``{"bytes", "path"}`` as ``datasets.Audio(decode=False)`` stores it; or the
            already decoded ``{"array", "sampling_rate"}`` with an array ``(samples,)`` or
            ``(channels, samples)``, floating point or int16/int32.
        sample_rate: of the result, Hz.
        min_seconds: shorter audio is refused.
        max_seconds: longer audio is refused, before it is decoded where its header tells; None for no limit.

    Returns:
        The waveform with what was known of its source.

    Raises:
        BadAudio: the file is missing or undecodable, empty, shorter than ``min_seconds``, longer than
            ``max_seconds``, contains NaN or infinity, or is digital silence (a constant).
        OSError: a remote file system cannot be reached. That is no property of the audio.
    """
    if isinstance(audio, Mapping) and audio.get("array") is not None:
        samples, source_rate = _from_array(audio["array"], audio.get("sampling_rate"))
        check_duration(samples.shape[0], source_rate, 0.0, max_seconds)
    else:
        samples, source_rate = _from_file(audio, max_seconds)
    frames, channels = samples.shape
    check_duration(frames, source_rate, min_seconds, max_seconds)
    if not np.isfinite(samples).all():
        raise BadAudio("nan", f"{int((~np.isfinite(samples)).sum())} of {samples.size} samples are NaN or infinite")
    announce_conversion(channels, source_rate, sample_rate)
    waveform = torch.from_numpy(np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32)))
    if float(waveform.max() - waveform.min()) < 2 * SILENCE_PEAK:
        raise BadAudio("silent", f"{frames / source_rate:.2f} s of digital silence")
    if source_rate != sample_rate:
        waveform = resample(waveform, source_rate, sample_rate)
    return Decoded(waveform, sample_rate, source_rate, channels, frames)


def check_finite(waveform: torch.Tensor, what: str) -> None:
    """Refuse a waveform ``(samples,)`` that is empty or not finite; ``what`` names it in the reason.

    Raises:
        BadAudio: of kind ``empty`` or ``nan``.
    """
    if waveform.numel() == 0:
        raise BadAudio("empty", f"the {what} has no samples")
    if not bool(torch.isfinite(waveform).all()):
        raise BadAudio("nan", f"the {what} has samples that are NaN or infinite")


def _from_file(audio: Any, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Samples ``(frames, channels)`` float32 and rate of a stored file."""
    with opened(audio) as (name, source):
        try:
            with soundfile.SoundFile(source) as file:
                rate = file.samplerate
                # A damaged header can announce absurdly many frames; only a plausible number is believed.
                if 0 < file.frames < 2**40:
                    check_duration(file.frames, rate, 0.0, max_seconds)
                samples = file.read(dtype="float32", always_2d=True)
        except BadAudio:
            raise
        except soundfile.LibsndfileError as error:
            raise BadAudio("undecodable", f"{name}: {error.error_string}") from error
        except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
            raise BadAudio("undecodable", f"{name}: {error}") from error
    return samples, rate


@contextmanager
def opened(audio: Any):
    """Yield a name for messages and something soundfile can open."""
    if isinstance(audio, Mapping):
        path, data = audio.get("path"), audio.get("bytes")
        if data is not None:
            if len(data) == 0:
                raise BadAudio("empty", f"{path or 'audio bytes'}: no bytes")
            yield path or "audio bytes", io.BytesIO(data)
            return
    else:
        path = audio
    if not isinstance(path, (str, os.PathLike)):
        raise BadAudio("undecodable", f"neither bytes nor path nor array in {_short(audio)}")
    path = os.fspath(path)
    if "::" in path or "://" in path:
        try:
            with fsspec.open(path, "rb") as stream:
                data = stream.read()
        except FileNotFoundError as error:
            raise BadAudio("undecodable", f"{path}: no such file") from error
        yield path, io.BytesIO(data)
        return
    if not os.path.isfile(path):
        raise BadAudio("undecodable", f"{path}: no such file")
    if os.path.getsize(path) == 0:
        raise BadAudio("empty", f"{path}: no bytes")
    yield path, path


def _from_array(array: Any, rate: Any) -> tuple[np.ndarray, int]:
    """Samples ``(frames, channels)`` float32 and rate of already decoded audio."""
    if not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise BadAudio("undecodable", f"an array needs a positive, whole sampling_rate in Hz, got {rate!r}")
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise BadAudio("undecodable", f"array: {error}") from error
    if array.ndim not in (1, 2):
        raise BadAudio("undecodable", f"array must be (samples,) or (channels, samples), got {array.shape}")
    if array.size == 0:
        raise BadAudio("empty", "no samples")
    if array.dtype in (np.int16, np.int32):
        array = array / -float(np.iinfo(array.dtype).min)
    if not np.issubdtype(array.dtype, np.floating):
        raise BadAudio("undecodable", f"array must be floating point, int16 or int32, got {array.dtype}")
    return np.atleast_2d(array).T.astype(np.float32), int(rate)


def check_duration(frames: int, rate: int, min_seconds: float, max_seconds: float | None) -> None:
    """Refuse ``frames`` samples at ``rate`` Hz that are none, or shorter or longer than the limits.

    Raises:
        BadAudio: of kind ``empty``, ``too_short`` or ``too_long``.
    """
    seconds = frames / rate
    if frames == 0:
        raise BadAudio("empty", "no samples")
    if seconds < min_seconds:
        raise BadAudio("too_short", f"{seconds:.3f} s ({frames} samples at {rate} Hz); at least {min_seconds:g} s")
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio("too_long", f"{seconds:.1f} s; at most {max_seconds:g} s")


def announce_conversion(channels: int, source_rate: int, sample_rate: int) -> None:
    """Say once in the log that audio of these properties is converted, if it is."""
    if channels > 1:
        _announce(("channels", channels), "audio with %d channels is averaged to one", channels)
    if source_rate != sample_rate:
        _announce(("rate", source_rate, sample_rate), "audio at %d Hz is resampled to %d Hz", source_rate, sample_rate)


def _announce(key: tuple[Any, ...], message: str, *values: Any) -> None:
    """Log a warning the first time ``key`` is met in this process."""
    if key not in _announced:
        _announced.add(key)
        logger.warning(message + " (said once)", *values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
