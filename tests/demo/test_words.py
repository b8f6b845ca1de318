"""The before/after word report against brute force and the dtw package."""

import dataclasses
import json
import math
import random
import time

import numpy as np
import pytest
import torch

from laser_hf.demo import words as words_module
from laser_hf.demo.words import (
    Word,
    average_precision,
    dtw_distances,
    format_before_after,
    read_words,
    word_discrimination,
)


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def cosine_costs(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return (1 - a.double() @ b.double().T).clamp(min=0).numpy()


def cheapest_path(cost: np.ndarray) -> float:
    """The smallest path cost over an explicit walk of every path, a diagonal step counting twice."""

    def walk(i: int, j: int, total: float) -> float:
        if (i, j) == (cost.shape[0] - 1, cost.shape[1] - 1):
            return total
        best = math.inf
        if i + 1 < cost.shape[0]:
            best = min(best, walk(i + 1, j, total + cost[i + 1, j]))
        if j + 1 < cost.shape[1]:
            best = min(best, walk(i, j + 1, total + cost[i, j + 1]))
        if i + 1 < cost.shape[0] and j + 1 < cost.shape[1]:
            best = min(best, walk(i + 1, j + 1, total + 2 * cost[i + 1, j + 1]))
        return best

    return walk(0, 0, 2 * cost[0, 0])


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


# DTW


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (4, 1), (2, 3), (4, 4), (5, 6), (7, 3)])
def test_dtw_equals_walking_every_path(sizes):
    a, b = unit_rows(sizes[0], 8, seed=1), unit_rows(sizes[1], 8, seed=2)
    expected = cheapest_path(cosine_costs(a, b)) / sum(sizes)
    assert dtw_distances([a, b], [0], [1])[0] == pytest.approx(expected, abs=1e-6)


def test_dtw_of_many_pairs_equals_the_dtw_package(capsys):
    dtw = pytest.importorskip("dtw")
    capsys.readouterr()  # its greeting
    generator = np.random.default_rng(0)
    segments = [unit_rows(int(length), 12, seed=i) for i, length in enumerate(generator.integers(1, 30, 40))]
    first, second = generator.integers(0, 40, 200), generator.integers(0, 40, 200)
    expected = []
    for i, j in zip(first, second, strict=True):
        cost = cosine_costs(segments[i], segments[j])
        found = dtw.dtw(cost, step_pattern="symmetric2", distance_only=True)
        # The package counts the first cell once; Sakoe and Chiba's start counts it twice like a diagonal
        # step. Every path has that cell, so the best path is the same one.
        expected.append((found.distance + cost[0, 0]) / sum(cost.shape))
    np.testing.assert_allclose(dtw_distances(segments, first, second), expected, atol=1e-6)


def test_dtw_does_not_depend_on_the_batches_or_the_order(monkeypatch):
    segments = [unit_rows(length, 12, seed=length) for length in range(1, 25)]
    first, second = np.triu_indices(24, k=1)
    whole = dtw_distances(segments, first, second)
    monkeypatch.setattr(words_module, "_BATCH_ELEMENTS", 2000)
    np.testing.assert_allclose(dtw_distances(segments, first, second), whole, atol=1e-6)
    np.testing.assert_allclose(dtw_distances(segments, second, first), whole, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(first))
    np.testing.assert_allclose(dtw_distances(segments, first[order], second[order]), whole[order], atol=1e-6)


def test_dtw_of_a_stretched_copy_is_zero():
    a = unit_rows(6, 8)
    stretched = a.repeat_interleave(torch.tensor([1, 3, 2, 1, 4, 2]), dim=0)
    assert dtw_distances([a, stretched], [0], [1])[0] == pytest.approx(0, abs=1e-6)


def test_dtw_of_a_zero_frame_is_one():
    assert dtw_distances([torch.zeros(3, 4), unit_rows(5, 4)], [0], [1])[0] == pytest.approx(1)


# Average precision


def test_average_precision_equals_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(20):
        # Few different distances, so that there are many ties.
        distances = generator.integers(0, 6, 30) / 5
        same = generator.random(30) < 0.3
        same[0] = True
        expected, recall_before = 0.0, 0.0
        for threshold in sorted(set(distances)):
            accepted = distances <= threshold
            hits = sum(same[accepted])
            recall = hits / sum(same)
            expected += (recall - recall_before) * hits / sum(accepted)
            recall_before = recall
        assert average_precision(distances, same) == pytest.approx(expected)


def test_average_precision_without_ties_is_the_mean_precision_at_the_hits():
    assert average_precision(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 0, 1, 0])) == pytest.approx(
        (1 / 1 + 2 / 3) / 2
    )
    assert average_precision(np.zeros(4), np.array([1, 0, 1, 0])) == pytest.approx(0.5)


def test_average_precision_rejects_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        average_precision(np.zeros(3), np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="Shapes"):
        average_precision(np.zeros(3), np.ones(2, dtype=bool))


# The report


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
            (same if first.word == second.word else different).append(distance)
    return same, different


def test_report_equals_brute_force():
    frames, words = speech()
    report = word_discrimination(frames, words)
    same, different = brute_force_report(frames, words)
    assert (report.same_pairs, report.different_pairs) == (len(same), len(different)) == (120, 480)
    assert report.same_distance == pytest.approx(np.mean(same), abs=1e-6)
    assert report.different_distance == pytest.approx(np.mean(different), abs=1e-6)
    assert report.ratio == pytest.approx(np.mean(same) / np.mean(different), abs=1e-6)
    expected = average_precision(np.array(same + different), np.arange(600) < 120)
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

    monkeypatch.setattr(words_module, "dtw_distances", record)
    report = word_discrimination(frames, words, max_pairs=100)
    assert (report.same_pairs, report.different_pairs) == (20, 80)
    assert len(set(pairs)) == 100
    tokens = sorted(words)
    assert all(tokens[i].speaker != tokens[j].speaker for i, j in pairs)
    assert sum(tokens[i].word == tokens[j].word for i, j in pairs) == 20
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


def test_report_turns_into_json():
    report = word_discrimination(*speech())
    assert json.loads(json.dumps(report.to_dict())) == dataclasses.asdict(report)


def test_thousands_of_pairs_take_seconds():
    generator = torch.Generator().manual_seed(0)
    segments = [torch.randn(20, 256, generator=generator) for _ in range(100)]
    first, second = np.triu_indices(100, k=1)
    begin = time.perf_counter()
    dtw_distances(segments, first, second)  # 4950 pairs
    assert time.perf_counter() - begin < 10  # about 0.2 s on an idle core


ONE_SPEAKER = [Word("u", 0.0, 0.1, "river", "s"), Word("u", 0.1, 0.1, "river", "s")]
NO_SHARED = [Word("u", 0.0, 0.1, "river", "s"), Word("v", 0.0, 0.1, "garden", "t")]
ONE_WORD = [Word("u", 0.0, 0.1, "river", "s"), Word("v", 0.0, 0.1, "river", "t")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no words"),
        (ONE_SPEAKER, "No word is said by two different speakers"),
        (NO_SHARED, "No word is said by two different speakers"),
        (ONE_WORD, "no different-word pair"),
        ([*ONE_WORD, Word("w", 0.0, 0.1, "garden", "t")], "no frames for the utterance 'w'"),
        ([*ONE_WORD, Word("v", 0.3, 0.1, "garden", "t")], "do not fit"),
    ],
)
def test_words_that_cannot_be_compared(words, message):
    frames = {"u": unit_rows(10, 4), "v": unit_rows(10, 4)}
    with pytest.raises(ValueError, match=message):
        word_discrimination(frames, words)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.full((10, 4), torch.nan), "not all finite"),
        (torch.ones(10), r"must be \(frames, dim\)"),
        (torch.ones(10, 5), "one dimension"),
    ],
)
def test_bad_frames(matrix, message):
    with pytest.raises(ValueError, match=message):
        word_discrimination({"u": unit_rows(10, 4), "v": matrix}, NO_SHARED)


@pytest.mark.parametrize(("name", "value"), [("max_pairs", 1), ("frame_rate", 0.0), ("frame_rate", math.nan)])
def test_bad_settings(name, value):
    frames, words = speech()
    with pytest.raises(ValueError, match=name):
        word_discrimination(frames, words, **{name: value})


def test_collapsed_frames_are_named():
    frames, words = speech()
    with pytest.raises(ValueError, match="All frames point the same way"):
        word_discrimination({name: torch.ones(len(m), 1) for name, m in frames.items()}, words)


# Files


def test_read_the_layout_of_the_demo(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text(
        "utterance\tsplit\tspeaker\tword\tstart_seconds\tduration_seconds\n"
        "v02-s1-0001\theldout\tv02\tRiver\t0.5\t0.25\n"
        "v01-s1-0001\ttrain\tv01\tgarden\t0.25\t0.5\n"
        "v01-s1-0001\ttrain\tv01\tthe\t0.125\t0.125\n"
    )
    assert read_words(path) == [
        Word("v01-s1-0001", 0.25, 0.5, "garden", "v01"),
        Word("v02-s1-0001", 0.5, 0.25, "river", "v02"),
    ]
    assert [word.word for word in read_words(path, split="heldout")] == ["river"]
    assert [word.word for word in read_words(path, utterances=["v01-s1-0001"])] == ["garden"]
    assert [word.word for word in read_words(path, min_letters=3)] == ["the", "garden", "river"]


def test_read_the_layout_of_librispeech_alignments(tmp_path):
    path = tmp_path / "alignments.tsv"
    path.write_text(
        "utterance\tword\tstart_seconds\tduration_seconds\tphones(name:start_centiseconds)\n"
        "1-2-0000\t<sil>\t0.00\t0.18\tSIL:0:18\n"
        "1-2-0000\t<unknown>\t0.18\t0.18\tSPN:0:18\n"
        "1-2-0000\tthat's\t0.36\t0.24\t\n"
        "1-2-0000\tit's\t0.60\t0.24\t\n"
    )
    assert read_words(path) == [Word("1-2-0000", 0.36, 0.24, "that's", "1")]
    with pytest.raises(ValueError, match="no split column"):
        read_words(path, split="train")


def test_files_that_are_no_alignments(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("utterance\tword\n")
    with pytest.raises(ValueError, match="lacks start_seconds, duration_seconds"):
        read_words(path)
    path.write_text("utterance\tword\tstart_seconds\tduration_seconds\na-1\triver\t0.1\t-1\n")
    with pytest.raises(ValueError, match="line 2: no valid start"):
        read_words(path)


# The table


def test_table_before_and_after():
    before = word_discrimination(*speech())
    after = dataclasses.replace(before, ratio=before.ratio - 0.25, average_precision=0.875)
    lines = format_before_after(before, after).splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert lines[3].startswith("same / different")
    assert lines[3].endswith("-0.250  lower is better")
    assert "0.875" in lines[4]
    assert "120 same-word and 480 different-word pairs" in lines[-1]
    with pytest.raises(ValueError, match="not of the same pairs"):
        format_before_after(before, dataclasses.replace(after, same_pairs=3))
