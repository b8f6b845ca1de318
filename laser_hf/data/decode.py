"""The one reader of audio: decoding, mixing to mono, resampling, and refusing what cannot be used.

`soundfile` reads FLAC, WAV, Ogg Vorbis/Opus and MP3 without FFmpeg or torchcodec.
"""

import functools
import io
import logging
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import soundfile
import torch

from ..errors import LaserError
from .resampling import resample, resampled_length

logger = logging.getLogger(__name__)
_log_once = functools.cache(logger.warning)

SAMPLE_RATE = 16000
"""Hz; the rate of all encoders and all perturbations."""
KINDS = ("undecodable", "empty", "too_short", "too_long", "nan", "silent", "damaged")  # of `BadAudio`
RATES = (4000, 384_000)  # lowest and highest rate that is believed, Hz
BLOCK = 2**20  # frames decoded at a time
SILENCE_PEAK = 1e-5  # full scale is 1; one step of 16-bit audio is 3e-5
_MAX_FRAMES = 2**40  # damaged and streamed headers announce more
_STREAMED = 0x7FFF0000  # bytes of WAV data that programs announce which do not know the length
_BAD_SEEK, _OGG_PAGE = 39, 65_307  # libsndfile's error; bytes of the longest page
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz; MPEG-1, 2 and 2.5
_MP3_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of MPEG-1
_MP3_KNOWN = re.escape(bytes(byte for byte in range(16, 240) if byte & 12 != 12))  # bitrate and rate
_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][" + _MP3_KNOWN + b"].", re.DOTALL)  # header, layer III
_MP3_TAGS = (b"TAG", b"APE", b"LYR")  # behind the last frame
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


def decode_audio(audio: Audio, *, min_seconds: float = 0.1, max_seconds: float | None = None) -> Decoded:
    """Decode to mono at 16 kHz.

    Channels are averaged and other rates resampled; each process logs this once per number of channels and rate. A file
    is damaged if it ends before the length that its header announces, or in the middle of an Ogg stream.

    Args:
        audio: a path or URL; `{"bytes", "path"}`, as `datasets.Audio(decode=False)` stores it; or
            `{"array", "sampling_rate"}`, the array `(samples,)` or `(channels, samples)` of floats, int16 or int32.
            Whole numbers in a list count as 16-bit samples if all fit, else as 32-bit ones.
        min_seconds: shorter audio is refused.
        max_seconds: longer audio is refused, before decoding if its header tells the length; `None` for no limit.

    Raises:
        BadAudio: missing, undecodable, damaged, empty, too short or long, with NaN or infinite samples, or silent.
        OSError: a remote file system cannot be reached; the audio itself may be good.
    """
    if isinstance(audio, Mapping) and audio.get("array") is not None:
        mono, rate, channels = _from_array(audio["array"], audio.get("sampling_rate"))
    else:
        mono, rate, channels = _from_file(audio, max_seconds)
    _check(len(mono), rate, min_seconds, max_seconds)
    if bad := np.count_nonzero(~np.isfinite(mono)):
        raise BadAudio("nan", f"{bad} of {len(mono)} samples are NaN or infinite")
    if channels > 1:
        _log_once(f"audio with {channels} channels is averaged to one (said once)")
    waveform = torch.from_numpy(mono)
    if float(waveform.max() - waveform.min()) < 2 * SILENCE_PEAK:
        raise BadAudio("silent", f"{len(mono) / rate:.2f} s of digital silence")
    if rate != SAMPLE_RATE:
        _log_once(f"audio at {rate} Hz is resampled to {SAMPLE_RATE} Hz (said once)")
        waveform = resample(waveform, rate, SAMPLE_RATE)
    return Decoded(waveform, rate, channels)


def audio_seconds(audio: Audio) -> float | None:
    """Duration from the header, in seconds, rounded up to a whole sample at 16 kHz as `decode_audio` does.

    `None` if the header cannot be read or has no length; an `OSError` if a remote file system cannot be reached.
    """
    try:
        if isinstance(audio, Mapping) and audio.get("array") is not None:
            frames, rate = np.shape(audio["array"])[-1], audio["sampling_rate"]
        else:
            with _open(_source(audio)[1]) as file:
                frames, rate = file.frames, file.samplerate
        known = 0 <= frames < _MAX_FRAMES and rate
        return resampled_length(frames, rate, SAMPLE_RATE) / SAMPLE_RATE if known else None
    except (soundfile.SoundFileError, EOFError, IndexError, KeyError, TypeError, ValueError):
        return None


def _from_file(audio: Any, max_seconds: float | None) -> tuple[np.ndarray, int, int]:
    """Samples `(frames,)` float32, averaged over the channels; rate and number of channels of a stored file."""
    (name, source), blocks, found, failure, at_end = _source(audio), [], 0, None, False
    try:
        with _open(source) as file:
            announced, rate = _announced(file), file.samplerate
            _check(announced or 1, rate, 0.0, max_seconds)
            while not at_end:
                block = np.full((BLOCK, file.channels), np.nan, np.float32)
                try:
                    count = len(file.read(out=block))
                except soundfile.LibsndfileError as error:
                    count, failure = np.count_nonzero(~np.isnan(block[:, 0])), error
                blocks.append(block[:count].mean(axis=1, dtype=np.float32))
                found, at_end = found + count, count < BLOCK or failure is not None
                _check(found or 1, rate, 0.0, max_seconds)
            # Behind the end of a FLAC file that does not know its length, seeking fails.
            cut = failure is not None and failure.code != _BAD_SEEK
            if cut or announced - found > 0.1 * rate or (file.format == "OGG" and not _ogg_ends(source)):
                length = f"{announced / rate:.2f} s are announced, " if announced else ""
                raise BadAudio("damaged", f"{name}: {length}{found / rate:.2f} s are there")
            return np.concatenate(blocks), rate, file.channels
    except BadAudio:
        raise
    except EOFError as error:
        raise BadAudio("damaged", f"{name}: {error}") from error
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
        raise BadAudio("undecodable", f"{name}: {getattr(error, 'error_string', error)}") from error


def _announced(file: soundfile.SoundFile) -> int:
    """Frames that the header announces; 0 if it does not say. Of a WAV file libsndfile tells what is there."""
    if found := re.search(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
        announced, there = map(int, found.groups())
        return file.frames * announced // max(there, 1) if announced < _STREAMED else 0
    return file.frames if 0 < file.frames < _MAX_FRAMES else 0


def _open(source: str | io.BytesIO) -> soundfile.SoundFile:
    """The file for reading, with its right length; `EOFError` if it is an MP3 file that has none and is cut off."""
    if (file := soundfile.SoundFile(source)).subtype != "MPEG_LAYER_III":
        return file
    data = Path(source).read_bytes() if isinstance(source, str) else source.getvalue()
    return soundfile.SoundFile(io.BytesIO(_add_length(data)))


def _add_length(data: bytes) -> bytes:
    """An MP3 file led by a frame that tells the number of frames, which decoders guess else; `EOFError` if cut off."""
    at = 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(data[6:10])) if data[:3] == b"ID3" else 0
    first = _MP3_FRAME.search(data, at)
    if first is None or any(name in data[first.start() :][:200] for name in (b"Xing", b"Info", b"VBRI")):
        return data
    at, count = first.start(), 0
    while data[at : at + 3] not in _MP3_TAGS and (found := _MP3_FRAME.search(data, at)):
        at, count = found.start() + _frame_size(found[0]), count + 1
    if at > len(data):
        raise EOFError("its last frame is cut off")
    header = bytes((255, first[0][1] | 1, 9 << 4 | first[0][2] & 12, first[0][3]))  # without checksum
    silence = bytes((9, 17, 32)[(header[3] >> 6 != 3) + (header[1] >> 3 & 3 == 3)])
    frame = header + silence + b"Info" + struct.pack(">II", 1, count)
    return frame.ljust(_frame_size(header), b"\0") + data[first.start() :]


def _frame_size(header: bytes) -> int:
    """Bytes of a frame."""
    version = header[1] >> 3 & 3
    factor, kbits = (144_000, _MP3_KBITS_1) if version == 3 else (72_000, _MP3_KBITS)
    return factor * kbits[header[2] >> 4] // _MP3_RATES[version][header[2] >> 2 & 3] + (header[2] >> 1 & 1)


def _ogg_ends(source: str | io.BytesIO) -> bool:
    """Whether an Ogg stream has its last page, whole."""
    with open(source, "rb") if isinstance(source, str) else io.BytesIO(source.getvalue()) as file:
        file.seek(-min(_OGG_PAGE, file.seek(0, os.SEEK_END)), os.SEEK_END)
        data = file.read()
    page = data[data.rfind(b"OggS\0") :]
    return len(page) > 27 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _source(audio: Any) -> tuple[str, str | io.BytesIO]:
    """Its name in messages, and what soundfile opens: a local path, or bytes."""
    path, data = (audio.get("path"), audio.get("bytes")) if isinstance(audio, Mapping) else (audio, None)
    name = str(path or "audio bytes")
    if data is None and not isinstance(path, (str, os.PathLike)):
        raise BadAudio("undecodable", f"neither bytes nor path nor array in {repr(audio)[:80]}")
    try:
        if data is None and is_remote(os.fspath(path)):
            with fsspec.open(path, "rb") as stream:
                data = stream.read()
        if len(data) == 0 if data is not None else os.path.getsize(path) == 0:
            raise BadAudio("empty", f"{name}: no bytes")
    except OSError as error:
        if is_remote(os.fspath(path)) and not isinstance(error, FileNotFoundError):
            raise
        raise BadAudio("undecodable", f"{path}: {(error.strerror or 'no such file').lower()}") from error
    return name, os.fspath(path) if data is None else io.BytesIO(data)


def is_remote(path: str) -> bool:
    """Whether `fsspec` has to open the path."""
    return "::" in path or "://" in path


def _from_array(array: Any, rate: Any) -> tuple[np.ndarray, int, int]:
    """As `_from_file`, of already decoded audio."""
    if not isinstance(rate, (int, np.integer)):
        raise BadAudio("undecodable", f"an array needs a whole sampling_rate in Hz, got {rate!r}")
    try:
        array = np.atleast_2d(np.asarray(array))
    except ValueError as error:
        raise BadAudio("undecodable", f"array: {error}") from error
    if array.dtype == np.int64 and array.size:  # a list: what a dataset stores as int16 or int32 comes as this
        fits = next((one for one in (np.int16, np.int32) if np.array_equal(array, array.astype(one))), np.int64)
        array = array.astype(fits)
    if array.dtype in (np.int16, np.int32):
        array = array / -float(np.iinfo(array.dtype).min)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        expected = "(samples,) or (channels, samples) of floats, int16 or int32"
        raise BadAudio("undecodable", f"an array must be {expected}, got {array.shape} of {array.dtype}")
    return array.T.astype(np.float32).mean(axis=1, dtype=np.float32), int(rate), len(array)


def _check(frames: int, rate: int, min_seconds: float, max_seconds: float | None) -> None:
    """Refuse rates that are not believed, and lengths outside the limits."""
    if not RATES[0] <= rate <= RATES[1]:
        raise BadAudio("undecodable", f"a rate of {rate} Hz; {RATES[0]} to {RATES[1]} Hz are read")
    if frames == 0:
        raise BadAudio("empty", "no samples")
    if (seconds := frames / rate) < min_seconds:
        raise BadAudio("too_short", f"{seconds:.3f} s ({frames} samples at {rate} Hz); at least {min_seconds:g} s")
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio("too_long", f"{seconds:.1f} s; at most {max_seconds:g} s")
