"""Speech lying on disk as audio files, indexed by path: nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
"""File names taken for audio, whatever their case."""


def find_audio_files(folder: Path) -> list[Path]:
    """All audio files below ``folder``, sorted by path; hidden files and folders are left out.

    Symbolic links are followed, each folder once.
    """
    return sorted(_walk(folder, set()), key=lambda path: path.parts)


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        elif entry.name.lower().endswith(AUDIO_SUFFIXES):
            yield Path(entry.path)


def index_audio_files(folder: Path, files: list[Path]) -> datasets.Dataset:
    """A dataset of paths, in the order given.

    A file ``speaker/chapter/speaker-chapter-utterance.ext``, as LibriSpeech names them, gets the id
    ``speaker-chapter-utterance``, its speaker, and its line of ``speaker-chapter.trans.txt`` where there is
    one. Any other file has its path below ``folder``, without the extension, for an id.

    Args:
        folder: what the ids are relative to.
        files: as :func:`find_audio_files` returns them.

    Returns:
        Columns ``id``, ``audio`` (``datasets.Audio(decode=False)``) and, if known for any file, ``speaker``
        and ``text``.

    Raises:
        ValueError: two files have the same id.
    """
    ids: dict[str, Path] = {}
    speakers: list[str | None] = []
    texts: list[str | None] = []
    transcripts: dict[Path, dict[str, str]] = {}
    for path in files:
        speaker, chapter = path.parent.parent.name, path.parent.name
        libri = path.stem.startswith(f"{speaker}-{chapter}-")
        utterance = path.stem if libri else path.relative_to(folder).with_suffix("").as_posix()
        if utterance in ids:
            raise ValueError(f"two files have the id {utterance!r}: {ids[utterance]} and {path}")
        ids[utterance] = path
        speakers.append(speaker if libri else None)
        if libri and path.parent not in transcripts:
            transcripts[path.parent] = _read_transcripts(path.parent / f"{speaker}-{chapter}.trans.txt")
        texts.append(transcripts[path.parent].get(utterance) if libri else None)

    audio_type = datasets.Audio(decode=False)
    paths = pa.array([str(path) for path in files], pa.string())
    columns = {"id": pa.array(list(ids), pa.string()), "audio": audio_type.cast_storage(paths)}
    features = {"id": datasets.Value("string"), "audio": audio_type}
    for name, values in (("speaker", speakers), ("text", texts)):
        if any(value is not None for value in values):
            columns[name] = pa.array(values, pa.string())
            features[name] = datasets.Value("string")
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(pa.table(columns), info=info)


def _read_transcripts(path: Path) -> dict[str, str]:
    """``{id: text}`` of a LibriSpeech transcript (``id text`` a line); empty if there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: words[1].strip() if len(words) > 1 else "" for words in lines if words}
