"""What the page's buttons do, without a browser."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest
import soundfile
from conftest import make_waveform

from laser_hf.app import main
from laser_hf.errors import LaserError

# gradio asks for these when it is imported; its folder for uploads must not be somebody's own.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
gr = pytest.importorskip("gradio", reason="the page needs gradio, of the extra app")

from laser_hf.app.page import MAX_SECONDS, Page, explained, read  # noqa: E402


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return Page(tmp_path_factory.mktemp("cache"), "cpu")


@pytest.fixture
def query(tmp_path) -> str:
    soundfile.write(tmp_path / "query.wav", make_waveform(0.4, seed=3), 16_000)
    return str(tmp_path / "query.wav")


def test_search_and_show(page, small_tree, tiny_encoder, query):
    first, second, found = page.search(str(small_tree), str(tiny_encoder), "", None, query)
    assert first.label == str(tiny_encoder)
    rows = first.value["data"]
    assert [row[0] for row in rows] == list(range(1, 11))
    scores = [float(row[3]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert {row[4] for row in rows} == {""}  # no word was picked: nobody knows what is said
    assert not second.visible
    heard, match = page.show(found, 0, 2)
    assert rows[2][1] in heard.label
    assert match.dtype == np.uint8
    assert match.ndim == 3


def test_two_encoders_have_a_table_each_and_one_picture(page, small_tree, tiny_encoder, query):
    first, second, found = page.search(str(small_tree), "logmel", str(tiny_encoder), None, query)
    assert (first.label, second.label) == ("logmel", str(tiny_encoder))
    assert second.visible
    one, two = (page.show(found[:count], 0, 0)[1] for count in (1, 2))
    assert two.shape[0] > 1.5 * one.shape[0]


def test_the_same_encoder_twice_is_one(page, small_tree, query):
    _, second, found = page.search(str(small_tree), "mfcc", "mfcc", None, query)
    assert len(found) == 1
    assert not second.visible


def test_compare(page, small_tree, query):
    assert page.compare(str(small_tree), "mfcc", "", query, query).ndim == 3


def bad(tmp_path, kind: str):
    path = tmp_path / "bad.wav"
    if kind == "text":
        path.write_text("This is no audio.")
    elif kind == "empty":
        path.touch()
    elif kind == "long":
        soundfile.write(path, make_waveform(MAX_SECONDS + 1), 16_000)
    elif kind == "silent":
        soundfile.write(path, np.zeros(8000), 16_000)
    else:
        return None
    return str(path)


SENTENCES = {
    "text": "This recording cannot be used: bad.wav: Format not recognised",
    "empty": "This recording cannot be used: bad.wav: no bytes",
    "long": "This recording cannot be used: 31.0 s; at most 30 s",
    "silent": "This recording cannot be used: 0.50 s of digital silence",
    "none": "There is no recording yet",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_what_cannot_be_used_becomes_a_sentence(page, small_tree, tmp_path, kind):
    with pytest.raises(gr.Error) as caught:
        explained(page.search)(str(small_tree), "mfcc", "", None, bad(tmp_path, kind))
    assert caught.value.message.startswith(SENTENCES[kind])
    assert str(tmp_path) not in caught.value.message
    assert not caught.value.print_exception


@pytest.mark.parametrize("what", [("/no/such/folder", "mfcc"), (None, "no/such-encoder")])
def test_folders_and_encoders_that_are_not_there(page, small_tree, query, what):
    folder, model = what
    with pytest.raises(gr.Error, match=r"there is no folder|cannot load the encoder"):
        explained(page.search)(folder or str(small_tree), model, "", None, query)


def test_read_says_what_is_wrong(tmp_path):
    with pytest.raises(LaserError, match="Format not recognised"):
        read(bad(tmp_path, "text"))


def dropdowns(blocks) -> list:
    return [one for one in blocks.blocks.values() if isinstance(one, gr.Dropdown)][:3]


def test_strangers_can_name_no_other_folder(page, small_tree):
    """On an open page the server refuses what is not offered, whatever the browser sends."""
    for dropdown in dropdowns(page.build(["mfcc"], [str(small_tree)], fixed=True)):
        with pytest.raises(gr.Error, match="not in the list of choices"):
            dropdown.preprocess("/etc")
    for dropdown in dropdowns(page.build(["mfcc"], [str(small_tree)])):
        assert dropdown.preprocess("/etc") == "/etc"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "a", "b", "c"], "one or two encoders"),
        (["--model", "mfcc", "--data", "/no/such/folder"], "there is no folder"),
        (["--model", "no/such-encoder"], "cannot load the encoder"),
        (["--model", "mfcc", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_refused_commands(options, said, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", tempfile.gettempdir())  # restored afterwards
    with pytest.raises(LaserError, match=said):
        main(options)
