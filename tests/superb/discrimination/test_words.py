"""Word discrimination against brute force, and its invariances."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from laser_hf.errors import LaserError
from laser_hf.superb.discrimination import comparisons as module
from laser_hf.superb.discrimination.comparisons import dtw_distances, word_discrimination
from laser_hf.superb.discrimination.tokens import Token as Word
from laser_hf.superb.qbe.scoring import average_precision


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def speech(seed: int = 0) -> tuple[dict[str, torch.Tensor], list[Word]]:
    """Four speakers say five words in two utterances each; copies of a word share noisy frames."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = ["river", "garden", "letter", "winter", "doctor"]
    centres = torch.randn(len(vocabulary), 4, 16, generator=generator)
    frames, words = {}, []
    for speaker in range(4):
        for take in range(2):
            utterance = f"s{speaker}-{take}"
            parts, position = [], 0
            for index, word in enumerate(vocabulary):
                repeats = torch.randint(1, 4, (4,), generator=generator)
                part = centres[index].repeat_interleave(repeats, dim=0)
                part = part + 0.9 * torch.randn(part.shape, generator=generator)
                parts.append(part)
                words.append(Word(utterance, position / 50, len(part) / 50, word, f"s{speaker}"))
                position += len(part)
            frames[utterance] = torch.cat(parts)
    return frames, words


def brute_force_report(frames, words):
    same, different = [], []
    for i, first in enumerate(words):
        for second in words[i + 1 :]:
            if first.speaker == second.speaker:
                continue
            segments = []
            for word in (first, second):
                times = (torch.arange(len(frames[word.utterance])) + 0.5) / 50
                inside = (times >= word.start) & (times < word.start + word.duration)
                segments.append(torch.nn.functional.normalize(frames[word.utterance][inside], dim=1))
            distance = float(dtw_distances(segments, [0], [1])[0])
            (same if first.label == second.label else different).append(distance)
    return same, different


def test_report_equals_brute_force():
    frames, words = speech()
    report = word_discrimination(frames, words)
    same, different = brute_force_report(frames, words)
    assert (report.same_pairs, report.different_pairs) == (len(same), len(different)) == (120, 480)
    assert report.same_distance == pytest.approx(np.mean(same), abs=1e-6)
    assert report.different_distance == pytest.approx(np.mean(different), abs=1e-6)
    assert report.ratio == pytest.approx(np.mean(same) / np.mean(different), abs=1e-6)
    expected = average_precision(-np.array(same + different), np.arange(600) < 120)
    assert report.average_precision == pytest.approx(expected, abs=1e-4)
    assert report.chance == pytest.approx(0.2)
    assert (report.words, report.vocabulary, report.speakers) == (40, 5, 4)
    assert report.ratio < 1
    assert report.average_precision > report.chance


def test_report_does_not_depend_on_the_order_of_the_words():
    frames, words = speech()
    shuffled = words.copy()
    random.Random(0).shuffle(shuffled)
    assert word_discrimination(frames, shuffled) == word_discrimination(frames, words)
    sampled = word_discrimination(frames, words, max_pairs=50, seed=3)
    assert word_discrimination(frames, shuffled, max_pairs=50, seed=3) == sampled
    assert word_discrimination(frames, words, max_pairs=50, seed=4) != sampled


def test_report_does_not_depend_on_scale_type_or_unused_utterances():
    frames, words = speech()
    report = word_discrimination(frames, words)
    other = {name: 7 * matrix.double() for name, matrix in frames.items()} | {"unused": torch.zeros(3, 2)}
    assert word_discrimination(other, words).same_distance == pytest.approx(report.same_distance, abs=1e-6)


def test_sample_keeps_the_share_of_same_pairs_and_repeats_no_pair(monkeypatch):
    frames, words = speech()
    pairs = []

    def record(segments, first, second):
        pairs.extend(zip(first.tolist(), second.tolist(), strict=True))
        return dtw_distances(segments, first, second)

    monkeypatch.setattr(module, "dtw_distances", record)
    report = word_discrimination(frames, words, max_pairs=100)
    assert (report.same_pairs, report.different_pairs) == (20, 80)
    assert len(set(pairs)) == 100
    tokens = sorted(words)
    assert all(tokens[i].speaker != tokens[j].speaker for i, j in pairs)
    assert sum(tokens[i].label == tokens[j].label for i, j in pairs) == 20
    tiny = word_discrimination(frames, words, max_pairs=2)
    assert (tiny.same_pairs, tiny.different_pairs) == (1, 1)


def test_better_frames_give_a_better_report():
    frames, words = speech()
    noise = torch.Generator().manual_seed(5)
    worse = {k: v + 2 * torch.randn(v.shape, generator=noise) for k, v in frames.items()}
    before, after = word_discrimination(worse, words), word_discrimination(frames, words)
    assert after.ratio < before.ratio
    assert after.average_precision > before.average_precision


def test_a_last_frame_dropped_by_the_encoder_is_tolerated():
    frames, words = speech()
    cut = {name: matrix[:-1] for name, matrix in frames.items()}
    assert word_discrimination(cut, words).words == 40


def test_a_word_shorter_than_a_frame_keeps_one_frame():
    frames = {"a-1": unit_rows(4, 3), "b-1": unit_rows(4, 3)}
    words = [
        Word("a-1", 0.031, 0.002, "river", "a"),
        Word("b-1", 0.031, 0.002, "river", "b"),
        Word("b-1", 0.06, 0.02, "garden", "b"),
    ]
    report = word_discrimination(frames, words)
    assert report.same_distance == pytest.approx(0, abs=1e-6)  # frame 1 of both


ONE_SPEAKER = [Word("u", 0.0, 0.1, "river", "s"), Word("u", 0.1, 0.1, "river", "s")]
NO_SHARED = [Word("u", 0.0, 0.1, "river", "s"), Word("v", 0.0, 0.1, "garden", "t")]
ONE_WORD = [Word("u", 0.0, 0.1, "river", "s"), Word("v", 0.0, 0.1, "river", "t")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"two different speakers \(0 word tokens of 0 speaker"),
        (ONE_SPEAKER, "no word is said by two different speakers"),
        (NO_SHARED, "no word is said by two different speakers"),
        (ONE_WORD, "no different-word pair"),
        ([*ONE_WORD, Word("w", 0.0, 0.1, "garden", "t")], "no frames for the utterance"),
        ([*ONE_WORD, Word("v", 0.3, 0.1, "garden", "t")], "do not fit"),
    ],
)
def test_words_that_cannot_be_compared(words, message):
    frames = {"u": unit_rows(10, 4), "v": unit_rows(10, 4)}
    with pytest.raises(ValueError, match=message):
        word_discrimination(frames, words)


def test_frames_that_are_not_finite():
    with pytest.raises(LaserError, match="the frames of 'v' are not all finite"):
        word_discrimination({"u": unit_rows(10, 4), "v": torch.full((10, 4), torch.nan)}, NO_SHARED)


def test_collapsed_frames_earn_nothing():
    frames, words = speech()
    report = word_discrimination({name: torch.ones(len(m), 1) for name, m in frames.items()}, words)
    assert math.isnan(report.ratio)
    # Ties rank last: even the first same-word pair comes after all others.
    assert report.average_precision < report.chance


def test_words_apart_and_together_are_perfect():
    directions = torch.eye(5)
    frames, words = {}, []
    for speaker in "abc":
        order = [1, 0, 2, 4, 3] if speaker == "b" else range(5)
        frames[speaker] = directions[list(order)].repeat_interleave(10, dim=0)
        words += [Word(speaker, 0.2 * place, 0.2, f"word{index}", speaker) for place, index in enumerate(order)]
    report = word_discrimination(frames, words)
    assert report.average_precision == 1
    assert report.ratio == pytest.approx(0, abs=1e-6)


def test_random_frames_are_near_chance():
    words = [Word(f"{s}", 0.1 * w, 0.1, f"word{w}", f"{s}") for s in range(20) for w in range(10)]
    frames = {f"{s}": unit_rows(50, 16, seed=s) for s in range(20)}
    report = word_discrimination(frames, words)
    assert report.chance == pytest.approx(0.1)
    assert abs(report.average_precision - report.chance) < 0.02


def test_all_speakers_compares_every_pair():
    frames, words = speech()
    report = word_discrimination(frames, words, across=False)
    assert report.same_pairs + report.different_pairs == 40 * 39 // 2
    assert report.same_pairs == 5 * 8 * 7 // 2
