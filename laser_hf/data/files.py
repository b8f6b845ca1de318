"""Files on disk: finding audio files, and the one reader of text tables."""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LaserError

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
"""File names taken for audio, upper or lower case."""


def find_audio_files(folder: Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> list[Path]:
    """All audio files below `folder`, sorted by path; a `LaserError` if a folder cannot be read.

    Hidden ones are left out; a folder that is linked counts once.
    """
    return [Path(path) for path in walk_audio(str(folder), {}, suffixes)]


def walk_audio(folder: str, changed: dict[str, int], suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> Iterator[str]:
    """The files of `find_audio_files` one by one; `changed` gets the time of change (ctime, ns) of every folder."""
    pending, seen = [(folder, True)], set()
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            if not path.isascii() and "\ufffd" in os.fsencode(path).decode(errors="replace"):
                raise LaserError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename the file or its folder")
            yield path
            continue
        try:
            state = os.stat(path)
            if (inode := (state.st_dev, state.st_ino)) in seen:
                continue
            seen.add(inode)
            changed[path] = state.st_ctime_ns
            with os.scandir(path) as entries:
                # A link may lead in a circle: decoding says so.
                shown = [entry for entry in entries if entry.name[0] != "."]
                found = [(e.name, os.path.isdir(e.path) if e.is_symlink() else e.is_dir()) for e in shown]
        except OSError as error:
            raise LaserError(f"cannot list {path}: {error.strerror}") from error
        found = [(name, deeper) for name, deeper in found if deeper or name.lower().endswith(suffixes)]
        pending += [(f"{path}/{name}", deeper) for name, deeper in sorted(found, reverse=True)]


def files_digest(folder: Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> str:
    """SHA-256 over path below `folder` and `content_mark` of its audio files; it does not depend on their place."""
    found = [(path.relative_to(folder).as_posix(), content_mark(path)) for path in find_audio_files(folder, suffixes)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def content_mark(path: str | os.PathLike[str] | None, data: bytes | None = None) -> tuple[int, int]:
    """Size in bytes and CRC-32 of 4 kB from the middle of a local file, or else of `data`; all would take hours."""
    try:
        with open(path or "", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size // 2)
            return size, zlib.crc32(file.read(4096))
    except OSError:  # not there, or not to be read: decoding says so
        data = data or b""
        return len(data), zlib.crc32(data[len(data) // 2 :][:4096])


def cache_folder() -> Path:
    """Where listings, lengths and decoded audio are kept: `laser_hf` in the cache of `datasets`."""
    import datasets  # half a second that --help need not wait for

    return Path(datasets.config.HF_DATASETS_CACHE) / "laser_hf"


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """An error of the disk while a cache is written becomes a `LaserError`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a remote file system
            raise
        mend = "free some space, or give another folder (HF_DATASETS_CACHE)"
        raise LaserError(f"cannot write to {folder} ({error.strerror or error}): {mend}") from error


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

    Each comes as `(place, row)`, `place` as in `read_lines`; `row` has all columns of the file. Those in `columns` must
    be there; other fields at the end of a row may be missing, and are empty then.

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
