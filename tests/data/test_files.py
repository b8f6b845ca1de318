"""Text files and tables: what is read, and that every error names file and line."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laser_hf.data import find_audio_files, read_lines, read_table
from laser_hf.errors import LaserError

# Characters that may stand in a field: no tab, no line end, no surrogate, no byte-order mark.
FIELD = st.text(st.characters(exclude_characters="\0\t\n\r\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=8)
LINE_END = st.sampled_from(["\n", "\r\n", "\r"])
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@one_folder
@given(st.text(st.characters(exclude_characters="\0\r\ufeff", exclude_categories=["Cs"])), LINE_END, st.booleans())
def test_text_comes_back(tmp_path, text, line_end, mark):
    path = tmp_path / "text.txt"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.replace("\n", line_end).encode())
    lines = text.split("\n")
    assert read_lines(path) == [
        (f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()
    ]


@one_folder
@given(st.data(), LINE_END, st.booleans())
def test_tables_come_back(tmp_path, data, line_end, mark):
    header = data.draw(st.lists(FIELD.filter(str.strip), min_size=1, max_size=4, unique=True))
    rows = data.draw(st.lists(st.lists(FIELD, min_size=len(header), max_size=len(header)), max_size=5))
    rows = [row for row in rows if "".join(row).strip()]
    path = tmp_path / "table.tsv"
    text = line_end.join("\t".join(row) for row in [header, *rows])
    path.write_text(text, encoding="utf-8-sig" if mark else "utf-8", newline="")
    columns = data.draw(st.lists(st.sampled_from(header), unique=True))
    found = read_table(path, columns)
    assert [list(row.values()) for _, row in found] == rows
    assert all(list(row) == header for _, row in found)
    assert [place for place, _ in found] == [f"{path}, line {number}" for number in range(2, len(rows) + 2)]


@one_folder
@given(
    st.lists(st.sampled_from(["", "one", "a\tb", "déjà vu"]), max_size=6),
    st.sampled_from([b"\xff", b"a\xe9", b"\xc3", b"\0a"]),
)
def test_the_line_that_is_not_utf8_is_named(tmp_path, before, wrong):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(line.encode() + b"\n" for line in before) + wrong + b"\nmore\n")
    with pytest.raises(LaserError, match=rf"latin.txt, line {len(before) + 1}: not UTF-8"):
        read_lines(path)


def test_optional_fields_at_the_end_may_be_missing(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text('utterance\tword\tphones\na\t"quoted"\tK AE\n\nb\tbare\n')
    rows = read_table(path, ("utterance", "word"))
    assert [row for _, row in rows] == [
        {"utterance": "a", "word": '"quoted"', "phones": "K AE"},
        {"utterance": "b", "word": "bare", "phones": ""},
    ]
    assert rows[1][0] == f"{path}, line 4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column a, b in the first line"),
        ("a,b\n1,2\n", "no column a, b in the first line"),
        ("a\tc\n1\t2\n", "no column b in the first line; a tab-separated table with the columns a, b was expected"),
        ("a\tb\tc\n1\t2\t3\n\n1\n", r"table.tsv, line 4: expected the fields a, b, c, separated by tabs, got '1'"),
        ("a\tb\n1\t2\t3\n", "table.tsv, line 2: expected the fields a, b"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "table.tsv"
    path.write_text(text)
    with pytest.raises(LaserError, match=message):
        read_table(path, ("a", "b"))


def test_folders_that_cannot_be_listed(tmp_path):
    with pytest.raises(LaserError, match=r"cannot list .*absent: No such file"):
        find_audio_files(tmp_path / "absent")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(LaserError, match=r"cannot read .*absent.tsv: No such file"):
        read_table(tmp_path / "absent.tsv", ("a",))
    with pytest.raises(LaserError, match="Is a directory"):
        read_lines(tmp_path)
