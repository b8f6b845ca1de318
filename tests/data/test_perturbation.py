"""Draws, compositions, and finding perturbations by name or import path."""

from __future__ import annotations

import sys

import pytest
import torch

from laser_hf.data import (
    PERTURBATIONS,
    Compose,
    Perturbation,
    SpeedPitch,
    build_perturbation,
    draw_generator,
    find_perturbation,
    speed,
)
from laser_hf.errors import LaserError


def test_draws_depend_on_seed_epoch_and_utterance():
    def first(*key):
        return draw_generator(*key).random(4).tolist()

    assert first(3, 1, "a") == first(3, 1, "a")
    keys = [(3, 1, "a"), (4, 1, "a"), (3, 2, "a"), (3, 1, "b"), (31, 1, "a"), (3, 11, "a"), (3, 1, "1\na")]
    assert len({tuple(first(*key)) for key in keys}) == len(keys)


def test_draws_are_the_same_everywhere_and_for_ever():
    """Python's own hash of text differs between processes; a run must be repeatable years later."""
    assert draw_generator(0, 0, "19-198-0000").integers(1000, size=4).tolist() == [45, 438, 747, 359]
    assert draw_generator(7, 3, "19-198-0000").integers(1000, size=4).tolist() == [62, 153, 689, 177]


class OfSpeaker(Perturbation):
    """Draws what the utterance is called, and a number."""

    def draw(self, rng):
        return {"name": "nobody", "number": float(rng.random())}

    def draw_for(self, rng, utterance_id):
        return self.draw(rng) | {"name": utterance_id}

    def apply(self, waveform, *, name, number):
        return waveform


def test_draws_for_an_utterance():
    """The parts of a composition learn the utterance, in turn and however deep; those that do not ask draw alike."""
    plain = SpeedPitch()
    assert plain.draw_for(draw_generator(0, 0, "a"), "a") == plain.draw(draw_generator(0, 0, "a"))
    composed = Compose([OfSpeaker(), Compose([SpeedPitch(), OfSpeaker()])])
    rng = draw_generator(0, 0, "a")
    expected = [OfSpeaker().draw_for(rng, "x"), {"parts": [plain.draw(rng), OfSpeaker().draw_for(rng, "x")]}]
    assert composed.draw_for(draw_generator(0, 0, "a"), "x") == {"parts": expected}
    anonymous = composed.draw(draw_generator(0, 0, "a"))["parts"]
    assert anonymous[0] == expected[0] | {"name": "nobody"}
    assert anonymous[1]["parts"][1] == expected[1]["parts"][1] | {"name": "nobody"}


class OfBatches(OfSpeaker):
    """Writes `apply_batch` alone."""

    apply = Perturbation.apply

    def apply_batch(self, waveforms, drawn):
        return [one["number"] * waveform for waveform, one in zip(waveforms, drawn, strict=True)]


class OfNothing(OfBatches):
    """Writes neither."""

    apply_batch = Perturbation.apply_batch


def test_apply_or_apply_batch_is_enough():
    waveforms, drawn = [torch.ones(3), torch.ones(2)], [{"name": "a", "number": 2.0}, {"name": "b", "number": 3.0}]
    assert OfBatches().apply(waveforms[0], **drawn[0]).tolist() == [2, 2, 2]
    composed = Compose([OfBatches(), OfBatches()])
    assert composed.apply(waveforms[1], parts=drawn).tolist() == [6, 6]
    for fails in (lambda: OfNothing().apply(waveforms[0]), lambda: OfNothing().apply_batch(waveforms, [{}, {}])):
        with pytest.raises(NotImplementedError, match="OfNothing has neither apply nor apply_batch"):
            fails()


OWN = """
from laser_hf.data import Perturbation
from laser_hf.plugins import Option


class Gain(Perturbation):
    name, title, summary, paper = "gain", "Gain", "plays the utterance louder or softer", "nobody, nowhere"
    options = (Option("gains", [0.5, 2.0], "factors, one drawn per pair", many=True, above=0),)
    keeps_duration, changes = True, ("loudness",)

    def __init__(self, gains=(0.5, 2.0)):
        self.gains = tuple(gains)

    def draw(self, rng):
        return {"gain": self.gains[int(rng.integers(len(self.gains)))]}

    def apply(self, waveform, *, gain):
        return gain * waveform


class FastGain(Gain):
    name, batched = "fast_gain", True
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own with perturbations; its name."""
    (tmp_path / "my_views.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_views"
    sys.modules.pop("my_views", None)


def test_one_of_your_own(own, speech):
    built = build_perturbation([f"{own}:Gain", "speed_pitch"], {"gains": "3", "pitch_steps": [0]})
    assert isinstance(built, Compose)
    assert built.changes == ("loudness", "tempo", "speaker's pitch")
    assert not built.keeps_duration
    waveform = torch.from_numpy(speech(0.3))
    drawn = built.draw(draw_generator(0, 0, "a"))
    assert drawn["parts"][0] == {"gain": 3.0}
    assert drawn["parts"][1]["pitch"] == 0
    factor = drawn["parts"][1]["speed"]
    assert built.describe(drawn) == f"gain 3.0, speed {factor:g}, +0 semitones"
    assert torch.equal(built.apply(waveform, **drawn), speed(3 * waveform, factor))
    # Its parts do not all work on the device.
    assert SpeedPitch().batched
    assert not built.batched
    fast = build_perturbation([f"{own}:FastGain", "speed_pitch", f"{own}:FastGain"])
    assert fast.batched
    drawn = fast.draw(draw_generator(0, 0, "a"))
    assert torch.equal(fast.apply_batch([waveform], [drawn])[0], fast.apply(waveform, **drawn))


def test_shipped_perturbations_describe_themselves():
    assert set(PERTURBATIONS) == {"speed_pitch", "noise", "voice", "equalizer"}
    dests = [option.dest for cls in PERTURBATIONS.values() for option in cls.options]
    assert sorted(dests) == ["noise_dir", "noise_snrs", "pitch_steps", "speaker_f0", "speed_factors"]
    for name, cls in PERTURBATIONS.items():
        assert find_perturbation(name) is cls
        assert cls.name == name
        assert cls.title
        assert cls.summary
        assert cls.paper
        assert cls.changes


def test_composed_views_have_equal_lengths_if_all_parts_keep_them():
    both = build_perturbation(["equalizer", "speed_pitch"], {"speed_factors": [1]})
    assert both.keeps_duration
    assert both.changes == ("channel", "speaker's pitch")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("gian", {}, "unknown perturbation 'gian'; shipped are equalizer, noise, speed_pitch, voice"),
        ([], {}, "--perturbations is empty"),
        ("builtins:dict", {}, "derive the class from it"),
        ("equalizer", {"pitch_steps": [2]}, "none of the perturbations equalizer has pitch_steps"),
        (["equalizer", "speed_pitch"], {"loud": 1, "high": 2}, "none of .* equalizer, speed_pitch has high, loud"),
        ("speed_pitch", {"speed_factors": [[0.8, 0.9]]}, r"speed_factors must be a number, got \[0.8, 0.9\]"),
        ("speed_pitch", {"speed_factors": []}, "speed_factors must be a list with at least one value"),
        ("speed_pitch", {"speed_factors": [0.9, 0.0]}, "speed_factors must be from 0.25 to 4, got 0.0"),
        ("speed_pitch", {"speed_factors": [float("nan")]}, "speed_factors must be from 0.25 to 4, got nan"),
        ("speed_pitch", {"speed_factors": 0.9}, "speed_factors must be a list"),
        ("speed_pitch", {"pitch_steps": [float("inf")]}, "pitch_steps must be from -24 to 24, got inf"),
        ("speed_pitch", {"pitch_steps": [True]}, "pitch_steps must be a number, got True"),
    ],
)
def test_what_cannot_be_built(names, options, message):
    with pytest.raises(LaserError, match=message):
        build_perturbation(names, options)
