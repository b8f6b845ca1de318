"""The demo's choice of words and its table."""

from __future__ import annotations

import dataclasses

from laser_hf.demo.__main__ import format_before_after, read_words
from laser_hf.superb.discrimination import Token, WordReport

HEADER = "utterance\tsplit\tspeaker\tword\tstart_seconds\tduration_seconds\n"


def test_words_of_four_letters_of_a_split(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text(
        HEADER + "v02-s1-0001\theldout\tv02\tRiver\t0.5\t0.25\n"
        "v01-s1-0001\ttrain\tv01\tgarden\t0.25\t0.5\n"
        "v01-s1-0001\ttrain\tv01\tthe\t0.125\t0.125\n"
    )
    assert read_words(path) == [
        Token("v01-s1-0001", 0.25, 0.5, "garden", "v01"),
        Token("v02-s1-0001", 0.5, 0.25, "river", "v02"),
    ]
    assert [word.label for word in read_words(path, split="heldout")] == ["river"]


def report() -> WordReport:
    return WordReport(
        same_distance=0.2,
        different_distance=0.4,
        ratio=0.5,
        average_precision=0.625,
        chance=0.2,
        same_pairs=120,
        different_pairs=480,
        words=40,
        vocabulary=5,
        speakers=4,
    )


def test_table_before_and_after():
    before = report()
    after = dataclasses.replace(before, ratio=before.ratio - 0.25, average_precision=0.875)
    lines = format_before_after(before, after).splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert lines[3].startswith("same / different")
    assert lines[3].endswith("-0.250  lower is better")
    assert "0.875" in lines[4]
    assert "120 same-word and 480 different-word pairs" in lines[-1]
