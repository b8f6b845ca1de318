"""Invariance: against hand computation, and what must follow from its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from laser_hf.superb.discrimination import task as room
from laser_hf.superb.discrimination.comparisons import dtw_distances
from laser_hf.superb.discrimination.speech import DiscriminationSettings
from laser_hf.superb.discrimination.task import invariance
from laser_hf.superb.discrimination.tokens import AlignedSpeech, Token
from laser_hf.superb.features import VIEWS, SpectralFeatures, perturbed

SETTINGS = DiscriminationSettings()


class Spikes:
    """Features of one layer: the frame at 0.02 k s is the unit vector of the largest sample's place in it."""

    layers, dim, shortest, frame_seconds = 1, 16, 320, 0.02

    def __call__(self, waveforms, layers):
        frames = [waveform[: len(waveform) // 320 * 320].view(-1, 16, 20).amax(-1) for waveform in waveforms]
        return [[torch.nn.functional.one_hot(one.argmax(1), 16).float() for one in frames] for _ in layers]


@pytest.fixture
def speech():
    generator = torch.Generator().manual_seed(0)
    waveforms = {f"{speaker}-{n}": torch.rand(16_000, generator=generator) for speaker in "ab" for n in range(2)}
    words = [Token(name, start, 0.2, f"w{int(10 * start) % 2}", name[0]) for name in waveforms for start in (0.1, 0.4)]
    return AlignedSpeech(waveforms, words, [], {})


def test_a_view_that_changes_nothing_is_no_distance(speech, monkeypatch):
    monkeypatch.setattr(room, "VIEWS", {"same": (1.0, 0.0)})
    monkeypatch.setattr(room, "perturbed", lambda waveform, view: waveform)
    (found,) = invariance(Spikes(), speech, [0], SETTINGS)
    assert found["view_distance"]["same"] == pytest.approx(0, abs=1e-6)


def test_words_of_another_utterance_are_far_by_definition(speech, monkeypatch):
    """A view that swaps the utterances: the distance is that of the words at the same times, computed here again."""
    monkeypatch.setattr(room, "VIEWS", {"swapped": (1.0, 0.0)})
    names = list(speech.waveforms)
    opposite = dict(zip(names, names[::-1], strict=True))
    swapped = {id(speech.waveforms[name]): speech.waveforms[other] for name, other in opposite.items()}
    monkeypatch.setattr(room, "perturbed", lambda waveform, view: swapped[id(waveform)])
    (found,) = invariance(Spikes(), speech, [0], SETTINGS)
    frames = dict(zip(names, Spikes()(list(speech.waveforms.values()), [0])[0], strict=True))
    words = sorted(speech.words)

    def cut(word, name):
        return frames[name][round(50 * word.start) : round(50 * word.end)]

    pairs = [[cut(word, opposite[word.utterance]), cut(word, word.utterance)] for word in words]
    moved = [dtw_distances(pair, [0], [1])[0] for pair in pairs]
    apart = [
        dtw_distances([cut(a, a.utterance), cut(b, b.utterance)], [0], [1])[0]
        for i, a in enumerate(words) for b in words[:i] if a.speaker != b.speaker and a.label != b.label
    ]  # fmt: skip
    assert found["view_distance"]["swapped"] == pytest.approx(np.mean(moved) / np.mean(apart))


def test_speed_moves_the_words(speech):
    """A sound that lasts as long as its word is found at the scaled times, and nowhere else."""
    tone = torch.zeros(16_000)
    tone[3_200:6_400] = torch.sin(torch.arange(3_200) * 0.3)
    for view, (speed, _) in VIEWS.items():
        found = perturbed(tone, view)
        assert len(found) == pytest.approx(len(tone) / speed, abs=2)
        loud = torch.nonzero(found.abs() > 0.2).flatten() / 16_000
        assert loud.min() == pytest.approx(0.2 / speed, abs=0.02)
        assert loud.max() == pytest.approx(0.4 / speed, abs=0.02)
    (found,) = invariance(SpectralFeatures("mfcc"), speech, [0], SETTINGS)
    for name in ("perturbed_word_ap_across", "view_distance"):
        assert found[name].keys() == VIEWS.keys()
        assert all(0 <= value < 2 for value in found[name].values())


class Loud:
    """Whether there is sound, by frames of 20 ms."""

    shortest, frame_seconds = 320, 0.02

    def __call__(self, waveforms, layers):
        loud = [
            (waveform[: len(waveform) // 320 * 320].view(-1, 320).abs().amax(1) > 0.2).long() for waveform in waveforms
        ]
        return [[torch.nn.functional.one_hot(one, 2).float() for one in loud] for _ in layers]


def test_the_times_of_words_move_with_the_speed():
    tone = torch.zeros(16_000)
    tone[12_800:14_400] = torch.sin(torch.arange(1_600) * 0.3)
    speech = AlignedSpeech({"a-1": tone, "b-1": tone}, [], [], {})
    for name in speech.waveforms:
        speech.words += [Token(name, 0.8, 0.1, "loud", name[0]), Token(name, 0.3, 0.1, "quiet", name[0])]
    (found,) = invariance(Loud(), speech, [0], SETTINGS)
    for view in ("speed 0.9", "speed 1.1"):
        assert found["view_distance"][view] < 0.2  # half of the words would be lost at the old times
        assert found["perturbed_word_ap_across"][view] == 1
