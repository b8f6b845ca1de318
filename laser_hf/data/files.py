"""Files on disk: listing and indexing audio files, and the one reader of text tables."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LaserError

if TYPE_CHECKING:
    import datasets

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
"""File names taken for audio, upper or lower case."""


def find_audio_files(folder: Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> list[Path]:
    """All audio files below `folder`, sorted by path. Hidden ones are left out; a folder that is linked counts once.

    Raises:
        LaserError: a folder cannot be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    unread: list[OSError] = []
    for root, folders, names in os.walk(folder, onerror=unread.append, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if name.lower().endswith(suffixes) and name[0] != "."]
    if unread:
        raise LaserError(f"cannot list {unread[0].filename}: {unread[0].strerror}") from unread[0]
    for path in found:
        if not str(path).isascii() and "\ufffd" in os.fsencode(path).decode(errors="replace"):
            raise LaserError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename the file or its folder")
    return sorted(found, key=lambda path: path.parts)


def files_digest(folder: Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> str:
    """SHA-256 over path below `folder` and `content_mark` of its audio files; it does not depend on their place."""
    found = [(path.relative_to(folder).as_posix(), content_mark(path)) for path in find_audio_files(folder, suffixes)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def content_mark(path: str | os.PathLike[str] | None, data: bytes | None = None) -> tuple[int, int]:
    """Size in bytes and CRC-32 of 4 kB from the middle of a local file, or else of `data`.

    Recordings often have one length; reading all of them would take hours.
    """
    if path is None or not os.path.isfile(path):
        data = data or b""
        return len(data), zlib.crc32(data[len(data) // 2 :][:4096])
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        return size, zlib.crc32(file.read(4096))


def index_audio_files(folder: Path, files: Sequence[Path]) -> datasets.Dataset:
    """A dataset of audio files, in the order given; nothing is decoded.

    A file `speaker/chapter/speaker-chapter-utterance.ext`, as LibriSpeech names them, gets the id
    `speaker-chapter-utterance`, its speaker, and its line of `speaker-chapter.trans.txt` if there is one. The id of any
    other file is its path below `folder` without the extension.

    Returns:
        Columns `id`, `audio` (`datasets.Audio(decode=False)`) and, if known for any file, `speaker` and `text`.

    Raises:
        LaserError: two files have the same id.
    """
    rows: dict[str, dict[str, str | None]] = {}
    transcripts: dict[Path, dict[str, str]] = {}
    for path in files:
        row = {"id": path.relative_to(folder).with_suffix("").as_posix(), "audio": str(path)}
        speaker, chapter = path.parent.parent.name, path.parent.name
        if path.stem.startswith(f"{speaker}-{chapter}-"):
            if path.parent not in transcripts:
                transcripts[path.parent] = _read_transcripts(path.parent / f"{speaker}-{chapter}.trans.txt")
            row |= {"id": path.stem, "speaker": speaker, "text": transcripts[path.parent].get(path.stem)}
        if other := rows.get(row["id"]):
            raise LaserError(
                f"{folder}: {other['audio']} and {path} have the same id {row['id']!r}; name one split (a sub-folder)"
            )
        rows[row["id"]] = row
    columns = {name: [row.get(name) for row in rows.values()] for name in ("id", "audio", "speaker", "text")}
    known = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    import datasets  # half a second that --help need not wait for

    return datasets.Dataset.from_dict(known).cast_column("audio", datasets.Audio(decode=False))


def _read_transcripts(path: Path) -> dict[str, str]:
    """`{id: text}` of a LibriSpeech transcript (`id text` per line); empty if there is no such file."""
    lines = [line.split(maxsplit=1) for _, line in read_lines(path)] if path.is_file() else []
    return {name: "".join(text).strip() for name, *text in lines}


def read_lines(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The lines that are not blank of a text file in UTF-8, with or without byte-order mark, with any line ends.

    Each comes as `(place, line)`; `place` is `FILE, line N` for messages.

    Raises:
        LaserError: there is no such file, it cannot be read, or it is not UTF-8 (the message names the line).
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.decode("utf-8").split("\n")
        wrong, at = "it holds a zero byte, as UTF-16 does", data.find(b"\0")
    except OSError as error:
        raise LaserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        wrong, at = error.reason, error.start
    if at >= 0:
        line = data[:at].count(b"\n") + 1
        raise LaserError(f"{path}, line {line}: not UTF-8 ({wrong}); save the file as UTF-8")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_table(path: str | os.PathLike[str], columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a tab-separated table whose first line names its columns. Quotes have no meaning.

    Args:
        path: the file.
        columns: those that must be there. Other fields at the end of a row may be missing; they are empty then.

    Returns:
        `(place, row)`, `place` as in `read_lines`; `row` has all columns of the file.

    Raises:
        LaserError: as `read_lines`; a column is missing; a row has too few or too many fields.
    """
    lines = read_lines(path)
    header = lines[0][1].split("\t") if lines else []
    if missing := [column for column in columns if column not in header]:
        expected = f"a tab-separated table with the columns {', '.join(columns)} was expected"
        raise LaserError(f"{path}: no column {', '.join(missing)} in the first line; {expected}")
    least = max((header.index(column) + 1 for column in columns), default=0)
    rows = []
    for place, line in lines[1:]:
        fields = line.split("\t")
        if not least <= len(fields) <= len(header):
            raise LaserError(f"{place}: expected the fields {', '.join(header)}, separated by tabs, got {line!r}")
        rows.append((place, dict.fromkeys(header, "") | dict(zip(header, fields, strict=False))))
    return rows
