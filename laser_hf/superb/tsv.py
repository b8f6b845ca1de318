"""Tab-separated tables with a header line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LaserError


def read_table(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table as `(line number, {column: cell})`; quotes have no meaning, and empty lines are left out.

    A row that is too short lacks its last columns; cells beyond the header are ignored.

    Args:
        path: a UTF-8 file, with or without byte-order mark.
        columns: those that the header must have; it may have more.

    Raises:
        LaserError: a file that cannot be read, or a column is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LaserError(f"cannot read {path}: {error}") from error
    header, *lines = text.split("\n")
    names = header.split("\t")
    missing = [column for column in columns if column not in names]
    if missing:
        raise LaserError(
            f"{path} lacks the columns {', '.join(missing)}; its first line must name them, separated by tabs "
            f"({', '.join(columns)})"
        )
    return ((number, dict(zip(names, line.split("\t"), strict=False))) for number, line in enumerate(lines, 2) if line)
