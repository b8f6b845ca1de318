"""Triphones of an alignment, and our ABX against `fastabx` where it is installed (Python 3.12 or newer)."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from laser_hf.errors import LaserError
from laser_hf.superb.discrimination.comparisons import abx_error
from laser_hf.superb.discrimination.task import item_lines, zerospeech_abx
from laser_hf.superb.discrimination.tokens import AlignedSpeech, Token


def phones_of(utterance, labels, speaker, gap_before=()):
    found, start = [], 0.0
    for number, label in enumerate(labels):
        start += 0.3 if number in gap_before else 0.0
        found.append(Token(utterance, start, 0.1, label, speaker))
        start += 0.1
    return found


def test_triphones():
    phones = phones_of("a-1", "BATS", "a") + phones_of("a-2", "BIT", "a", gap_before=[2]) + phones_of("b-1", "NAP", "b")
    assert item_lines(phones)[1:] == [
        "a-1 0.000 0.300 A B T a",
        "a-1 0.100 0.400 T A S a",
        "b-1 0.000 0.300 A N P b",
    ]


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastabx", None)
    with pytest.raises(LaserError, match=r"--zerospeech needs fastabx .*pip install 'laser-hf\[abx\]'"):
        zerospeech_abx(SimpleNamespace(frame_seconds=0.02), AlignedSpeech({}, [], [], {}), [0])


def test_our_error_is_that_of_fastabx_on_phones_of_one_frame():
    """Without paths to normalise and without sampling, both are the same mean over the same triples."""
    fastabx = pytest.importorskip("fastabx")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (90,), generator=generator).tolist()
    centres = torch.randn(3, 6, generator=generator)
    frames = torch.stack([centres[label] for label in labels]) + 1.5 * torch.randn(90, 6, generator=generator)
    tokens = [
        Token(f"{number % 3}-1", 0.02 * (number // 3), 0.02, "ABC"[labels[number]], f"{number % 3}")
        for number in range(90)
    ]
    ours = abx_error({f"{speaker}-1": frames[speaker::3] for speaker in range(3)}, tokens, 50.0, 0.01)
    columns = {"phone": [token.label for token in tokens], "speaker": [token.speaker for token in tokens]}
    dataset = fastabx.Dataset.from_numpy(frames.numpy(), columns)
    for kind, how in (("within", {"by": ["speaker"]}), ("across", {"across": ["speaker"]})):
        task = fastabx.Task(dataset, on="phone", **how)
        error = fastabx.Score(task, "angular").collapse(levels=["speaker"])
        assert ours[kind]["error"] == pytest.approx(error, abs=1e-6)


def test_an_encoder_that_tells_phones_apart_has_no_error():
    pytest.importorskip("fastabx")

    class Perfect:
        layers, dim, frame_seconds, shortest = 1, 4, 0.02, 400

        def __call__(self, waveforms, layers):
            return [[torch.nn.functional.one_hot(one[::320].long(), 4).float() for one in waveforms] for _ in layers]

    waveforms, phones = {}, []
    for speaker in "ab":
        for number, labels in enumerate(["BAT", "BIT"] * 3):
            name = f"{speaker}-{number}"
            waveforms[name] = torch.tensor(["ABIT".index(label) for label in labels]).repeat_interleave(1_600).float()
            phones += phones_of(name, labels, speaker)
    speech = AlignedSpeech(waveforms, [], [], {}, sorted(phones))
    assert zerospeech_abx(Perfect(), speech, [0]) == [{"zerospeech_abx_within": 0.0, "zerospeech_abx_across": 0.0}]
