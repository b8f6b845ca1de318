"""The demo's table."""

from __future__ import annotations

import dataclasses

from laser_hf.demo.__main__ import format_before_after
from laser_hf.superb.discrimination import WordReport


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
