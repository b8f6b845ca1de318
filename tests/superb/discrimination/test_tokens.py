"""Alignment files: both layouts, and rows that cannot be used."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.errors import LaserError
from laser_hf.superb.discrimination.tokens import NO_PHONES, Token, long_words, read_alignments

HEADER = "utterance\tword\tstart_seconds\tduration_seconds\tphones(name:start:duration)\n"


def test_words_and_phones(tmp_path):
    path = tmp_path / "alignments.tsv"
    path.write_text(
        HEADER + "1-2-0000\t<sil>\t0.00\t0.18\tSIL:0:18\n"
        "1-2-0000\tThat's\t0.18\t0.24\tDH:18:5 AE:23:10 TS:33:9\n"
        "1-2-0000\tme\t0.42\t0.2\tM:42:10 IY:52:10\n"
    )
    found = read_alignments(path)
    assert found.words == [Token("1-2-0000", 0.18, 0.24, "that's", "1"), Token("1-2-0000", 0.42, 0.2, "me", "1")]
    assert [phone.label for phone in found.phones] == ["DH", "AE", "TS", "M", "IY"]
    assert found.phones[1] == Token("1-2-0000", 0.23, 0.10, "AE", "1")
    assert not found.reasons
    assert long_words(found.words, 5) == found.words[:1]
    assert long_words(found.words, 2, 0.24) == found.words[:1]


def test_columns_of_split_and_speaker(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text(
        "utterance\tsplit\tspeaker\tword\tstart_seconds\tduration_seconds\n"
        "a-1\ttrain\tv1\triver\t0.5\t0.25\n"
        "b-1\theldout\tv2\tgarden\t0.25\t0.5\n"
    )
    assert [word.speaker for word in read_alignments(path).words] == ["v1", "v2"]
    assert [word.label for word in read_alignments(path, split="heldout").words] == ["garden"]
    assert [word.utterance for word in read_alignments(path, utterances=["a-1"]).words] == ["a-1"]
    assert read_alignments(path).phones == []


def test_bad_rows_are_left_out_counted_and_named(tmp_path):
    path = tmp_path / "alignments.tsv"
    rows = [
        "1-2-0000\tgood\t0.10\t0.20\tG:10:5 UH:15:10 D:25:5",
        "1-2-0000\tnever\tnan\t0.20\tN:30:5",
        "1-2-0000\tminus\t-1\t0.20\t",
        "1-2-0000\tempty\t0.40\t0\t:40:5 EH:40:0 M:x:3 P:44 T:45:5",
        "1-2-0000\t\t0.5\t0.1\t",
        "\tword\t0.5\t0.1\t",
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    found = read_alignments(path)
    assert [word.label for word in found.words] == ["good"]
    assert [phone.label for phone in found.phones] == ["G", "UH", "D", "N", "T"]
    counts = {reason: entry["count"] for reason, entry in found.reasons.items()}
    assert counts == {
        "words without valid times": 3,
        "phones without name or valid times": 4,
        "rows without utterance or word": 2,
    }
    assert "1-2-0000 never, line 3" in found.reasons["words without valid times"]["first"]


def test_files_that_are_no_alignments(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("utterance\tword\n")
    with pytest.raises(LaserError, match="no column start_seconds, duration_seconds"):
        read_alignments(path)
    path.write_text(HEADER)
    with pytest.raises(LaserError, match="no column split"):
        read_alignments(path, split="train")
    path.write_text(HEADER + "1-2-0000\tcut\n")
    with pytest.raises(LaserError, match="line 2: expected the fields"):
        read_alignments(path)
    with pytest.raises(LaserError, match="nowhere"):
        read_alignments(tmp_path / "nowhere.tsv")


NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=8)
TIMES = st.integers(0, 10**6).map(lambda hundredths: hundredths / 100)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(NAMES, NAMES, NAMES, TIMES, TIMES, st.lists(st.tuples(NAMES, TIMES, TIMES), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_is_written_is_read_or_counted(tmp_path_factory, rows):
    """Every word and phone of a table is a token, a marker, or counted as skipped."""
    path = tmp_path_factory.mktemp("any") / "words.tsv"
    lines = ["speaker\t" + HEADER.strip()]
    for speaker, utterance, word, start, duration, phones in rows:
        listed = " ".join(f"{name}:{100 * begin:g}:{100 * length:g}" for name, begin, length in phones)
        lines.append(f"{speaker}\t{utterance}\t{word}\t{start}\t{duration}\t{listed}")
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    found = read_alignments(path)
    skipped = {reason: entry["count"] for reason, entry in found.reasons.items()}
    words = [row for row in rows if not row[2].startswith("<")]
    usable = [(row[1], row[3], row[4], row[2].lower(), row[0]) for row in words if row[4] > 0]
    assert found.words == sorted(Token(*values) for values in usable)
    assert skipped.get("words without valid times", 0) == len(words) - len(usable)
    phones = [phone for row in rows for phone in row[5]]
    silences = sum(name in NO_PHONES and length > 0 and ":" not in name for name, _, length in phones)
    assert len(found.phones) + skipped.get("phones without name or valid times", 0) + silences == len(phones)
