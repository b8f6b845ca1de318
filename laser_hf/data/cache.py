"""Decoded utterances kept on disk, so that every file is decoded once and not once an epoch."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .decode import Decoded, announce_conversion, check_duration, decode_audio

logger = logging.getLogger(__name__)

_FORMAT = "1"
_FULL_SCALE = 32768.0


class DecodedCacheError(ValueError):
    """The folder of the cache cannot be used; the message says which, why and what to do."""


class DecodedCache:
    """Does what :func:`laser_hf.data.decode.decode_audio` does, from a copy on disk where there is one.

    One file an utterance, written whole or not at all, so that any number of workers, processes and runs can share
    a folder and an interrupted run goes on where it was. A file is decoded again once its size or time of
    change differs; bytes inside a dataset are known by their hash. Audio that is refused is not kept, nor what
    is decoded already (arrays) or lies on a remote file system.

    The samples come back bit for bit. They are kept as int16 where that loses nothing (16-bit FLAC and WAV at
    the rate asked for; 115 MB an hour at 16 kHz), else as float32 (Ogg, Opus, MP3, resampled audio; twice
    that), and read through a memory map.

    Args:
        folder: made if it is not there; True for ``laser_hf-decoded`` in the cache of ``datasets``.

    Raises:
        DecodedCacheError: the folder cannot be written; when called, also a full disk.
    """

    def __init__(self, folder: str | os.PathLike[str] | bool) -> None:
        if folder is True:
            folder = Path(datasets.config.HF_DATASETS_CACHE) / "laser_hf-decoded"
        self.folder = Path(folder).expanduser().absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._cannot_write(error) from error

    def __call__(
        self,
        audio: str | os.PathLike[str] | Mapping[str, Any],
        sample_rate: int = 16000,
        *,
        min_seconds: float = 0.1,
        max_seconds: float | None = None,
    ) -> Decoded:
        """As :func:`laser_hf.data.decode.decode_audio`, errors included."""
        source = _identity(audio)
        if source is None:
            return decode_audio(audio, sample_rate, min_seconds=min_seconds, max_seconds=max_seconds)
        name, state = source
        key = hashlib.sha256(f"{_FORMAT}\n{sample_rate}\n{name}".encode()).hexdigest()
        path = self.folder / key[:2] / f"{key[2:]}.safetensors"
        decoded = _read(path, state, sample_rate)
        if decoded is None:
            decoded = decode_audio(audio, sample_rate, min_seconds=min_seconds, max_seconds=max_seconds)
            self._write(path, state, decoded)
            return decoded
        check_duration(decoded.source_frames, decoded.source_rate, min_seconds, max_seconds)
        announce_conversion(decoded.channels, decoded.source_rate, sample_rate)
        return decoded

    def _write(self, path: Path, state: str, decoded: Decoded) -> None:
        waveform = decoded.waveform
        whole = waveform * _FULL_SCALE
        samples = whole.round().clamp(-_FULL_SCALE, _FULL_SCALE - 1).to(torch.int16)
        if not torch.equal(samples.to(torch.float32), whole):
            samples = waveform
        described = {
            "state": state,
            "source_rate": str(decoded.source_rate),
            "source_frames": str(decoded.source_frames),
            "channels": str(decoded.channels),
        }
        data = save({"waveform": samples.contiguous()}, metadata=described)
        try:
            path.parent.mkdir(exist_ok=True)
            file, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with open(file, "wb") as stream:
                    stream.write(data)
                os.chmod(unfinished, 0o644)  # others may share the folder
                os.replace(unfinished, path)
            except BaseException:
                os.unlink(unfinished)
                raise
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> DecodedCacheError:
        return DecodedCacheError(
            f"cannot keep decoded audio in {self.folder} ({error.strerror or error}). Free some space, give another "
            "folder (--cache_decoded FOLDER), or train without it."
        )


def _identity(audio: Any) -> tuple[str, str] | None:
    """What names a source for good, and the state it is in; None for what is not kept."""
    path = audio
    if isinstance(audio, Mapping):
        if audio.get("array") is not None:
            return None
        if audio.get("bytes") is not None:
            return f"bytes {hashlib.sha256(audio['bytes']).hexdigest()}", ""
        path = audio.get("path")
    if not isinstance(path, (str, os.PathLike)) or "://" in os.fspath(path) or "::" in os.fspath(path):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None  # decoding says what is wrong with it
    return f"file {os.path.abspath(path)}", f"{found.st_size} {found.st_mtime_ns}"


def _read(path: Path, state: str, sample_rate: int) -> Decoded | None:
    """What is kept in ``path``; None where nothing is, or of another state of the source."""
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata()
            if described["state"] != state:
                return None
            samples = file.get_tensor("waveform")
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); it is decoded and written again", path, error)
        return None
    # A copy in any case: nothing keeps the file open.
    waveform = samples / _FULL_SCALE if samples.dtype == torch.int16 else samples.clone()
    return Decoded(
        waveform,
        sample_rate,
        int(described["source_rate"]),
        int(described["channels"]),
        int(described["source_frames"]),
    )
