"""Tables come back as they were written, and errors name file and line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.errors import LaserError
from laser_hf.superb.tsv import read_table

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), max_size=6)


@settings(deadline=None)
@given(
    header=st.lists(CELLS.filter(bool), min_size=2, max_size=4, unique=True),
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=5), max_size=5),
    mark=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_cells_come_back(tmp_path_factory, header, rows, mark, newline):
    path = tmp_path_factory.mktemp("table") / "a.tsv"
    header[0] = header[0].lstrip("\ufeff") or "first"
    lines = ["\t".join(cells) for cells in [header, *rows]]
    path.write_bytes((("\ufeff" if mark else "") + newline.join(lines)).encode())
    found = list(read_table(path, header[1:]))
    expected = [(number, dict(zip(header, row, strict=False))) for number, row in enumerate(rows, 2) if "\t".join(row)]
    assert found == expected


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.tsv"
    with pytest.raises(LaserError, match=r"cannot read .*a\.tsv"):
        read_table(path, ["word"])
    path.write_bytes(b"word\n\xff\n")
    with pytest.raises(LaserError, match=r"cannot read .*a\.tsv"):
        read_table(path, ["word"])
    path.write_text("word\tother\n")
    with pytest.raises(LaserError, match=r"a\.tsv lacks the columns audio, start"):
        read_table(path, ["word", "audio", "start"])
