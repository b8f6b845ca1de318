"""Splits: characters without a label, and what the digest of a split depends on."""

from __future__ import annotations

import logging

import pytest
import soundfile

from laser_hf.data import load_speech
from laser_hf.errors import LaserError
from laser_hf.superb.ctc.data import read_split
from laser_hf.superb.ctc.tasks import Asr

from .conftest import write_chapter


def read(folder, texts=("ONE TWO", "THREE"), limit=None):
    if not folder.exists():
        write_chapter(folder, "11", list(texts), 0)
    return read_split(load_speech(folder), "some", Asr(), {}, limit=limit, bar=False)


def test_characters_without_a_label_are_counted_and_listed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        split = read(tmp_path / "a", ["One, two.", "Café, é"])
    assert split.counts()["unknown_units"] == {"count": 5, "listed": {",": 2, "É": 2, ".": 1}}
    assert "27.8% of its text has no label in asr: , É ." in caplog.text  # of 14 characters and 4 ends of words
    assert [unit for unit in split.utterances[1].units if unit != "|"] == list("CAFÉ,É")
    assert "unknown_units" not in read(tmp_path / "b").counts()


def test_text_that_is_mostly_unknown_is_refused(tmp_path):
    with pytest.raises(LaserError, match=r"split some: 83.3% of its text has no label in asr: .*Known are \| E T A"):
        read(tmp_path / "a", ["ПРИВЕ", "ПРИВЕ"])
    with pytest.raises(LaserError, match=r"split some: 50.0% of its text"):
        read(tmp_path / "b", ["Я Я", "Ю"])


def test_the_digest_depends_on_samples_and_text_and_not_on_the_path(tmp_path):
    first = read(tmp_path / "a").digest()
    (tmp_path / "a").rename(tmp_path / "b")
    assert read(tmp_path / "b").digest() == first
    path = tmp_path / "b" / "11" / "1" / "11-1-0000.flac"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate)
    second = read(tmp_path / "b").digest()
    assert second != first
    path = tmp_path / "b" / "11" / "1" / "11-1.trans.txt"
    path.write_text(path.read_text().replace("TWO", "TOO"))
    assert len({first, second, read(tmp_path / "b").digest(), read(tmp_path / "b", limit=1).digest()}) == 4
