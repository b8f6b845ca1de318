"""The ABX-like error against loops over all triples, and its limits."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.superb.discrimination.comparisons import abx_error, dtw_distances
from laser_hf.superb.discrimination.speech import balanced
from laser_hf.superb.discrimination.tokens import Token, token_frames


def speech(seed: int = 0, noise: float = 1.0, speakers: int = 3, per_phone: int = 3):
    """Phones of 2 to 4 frames; tokens of a phone share a noisy direction."""
    generator = torch.Generator().manual_seed(seed)
    names = ["AA", "IY", "S", "T"]
    centres = torch.eye(8)[: len(names)]
    frames, tokens = {}, []
    for speaker in range(speakers):
        parts, position = [], 0
        for index, name in enumerate(names):
            for _ in range(per_phone if index else 1):  # one phone without a second token within a speaker
                length = int(torch.randint(2, 5, (1,), generator=generator))
                part = centres[index].expand(length, 8) + noise * torch.randn(length, 8, generator=generator)
                tokens.append(Token(f"u{speaker}", position / 50, length / 50, name, f"s{speaker}"))
                parts.append(part)
                position += length
        frames[f"u{speaker}"] = torch.cat(parts)
    return frames, tokens


def errors_of(frames, tokens):
    """Within and across speakers."""
    found = abx_error(frames, tokens)
    return found["within"], found["across"]


def brute_force(frames, tokens, across: bool) -> tuple[float, int]:
    """Every triple by itself, averaged as the docstring says."""
    tokens = sorted(tokens)
    segments = token_frames(frames, tokens)
    low, high = np.triu_indices(len(tokens), k=1)
    distances = dict(
        zip(zip(low.tolist(), high.tolist(), strict=True), dtw_distances(segments, low, high), strict=True)
    )
    cells, triples = defaultdict(list), 0
    for i, a in enumerate(tokens):
        for j, b in enumerate(tokens):
            for k, x in enumerate(tokens):
                if i == k or a.label == b.label or a.label != x.label or a.speaker != b.speaker:
                    continue
                if (x.speaker != a.speaker) != across:
                    continue
                to_a, to_b = distances[min(i, k), max(i, k)], distances[min(j, k), max(j, k)]
                triples += 1
                key = (a.label, b.label, (a.speaker, x.speaker))
                cells[key].append(float(to_a > to_b) + 0.5 * float(to_a == to_b))
    values: dict = {key: np.mean(entries) for key, entries in cells.items()}
    by_phones = defaultdict(list)
    for key, value in values.items():
        by_phones[key[:-1]].append(value)
    means = [np.mean(entries) for entries in by_phones.values()]
    return (float(np.mean(means)) if means else math.nan), triples


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    kept=st.lists(st.booleans(), min_size=30, max_size=30).filter(lambda kept: sum(kept) > 5),
)
def test_equals_brute_force(seed, kept):
    frames, tokens = speech(seed)
    tokens = [token for token, keep in zip(tokens, kept, strict=True) if keep]
    report = abx_error(frames, tokens)
    for kind in ("within", "across"):
        expected, triples = brute_force(frames, tokens, kind == "across")
        assert report[kind]["triples"] == triples
        assert report[kind]["error"] == pytest.approx(expected, nan_ok=True)
        assert report[kind]["tokens"] == len(tokens)


def test_counts():
    within, across = errors_of(*speech())
    assert 0 < across["error"] < 0.5
    assert (across["phones"], across["speakers"], across["tokens"]) == (4, 3, 30)
    assert (within["phone_pairs"], across["phone_pairs"]) == (9, 12)  # no second AA within a speaker


def test_frames_that_tell_phones_apart_have_no_error():
    assert [report["error"] for report in errors_of(*speech(noise=0.0))] == [0, 0]


def test_random_frames_are_at_chance():
    frames, tokens = speech(speakers=6, per_phone=6)
    generator = torch.Generator().manual_seed(3)
    noise = {name: torch.randn(matrix.shape, generator=generator) for name, matrix in frames.items()}
    within, across = errors_of(noise, tokens)
    assert within["error"] == pytest.approx(0.5, abs=0.08)
    assert across["error"] == pytest.approx(0.5, abs=0.05)


def test_ties_count_one_half():
    frames, tokens = speech()
    alike = {name: torch.ones_like(matrix) for name, matrix in frames.items()}
    assert [report["error"] for report in errors_of(alike, tokens)] == [0.5, 0.5]


def test_scale_order_and_type_do_not_matter():
    frames, tokens = speech()
    report = abx_error(frames, tokens)
    scaled = {name: 5 * matrix.double() for name, matrix in frames.items()}
    assert abx_error(scaled, tokens[::-1]) == report


def test_speech_without_triples_gives_nan():
    frames, tokens = speech()
    within, across = errors_of(frames, [token for token in tokens if token.speaker == "s0"])
    assert math.isnan(across["error"])
    assert within["triples"] > 0
    one_phone = errors_of(frames, [token for token in tokens if token.label == "S"])
    assert all(math.isnan(report["error"]) for report in one_phone)
    assert errors_of(frames, [])[0]["tokens"] == 0


def test_balanced_takes_the_same_few_tokens_of_each_phone():
    _, tokens = speech(speakers=5, per_phone=4)
    kept = balanced(tokens, per_cell=2, max_speakers=3, seed=1)
    counts = defaultdict(int)
    for token in kept:
        counts[token.speaker, token.label] += 1
    assert len({speaker for speaker, _ in counts}) == 3
    assert all(count == (1 if label == "AA" else 2) for (_, label), count in counts.items())
    assert balanced(tokens[::-1], 2, 3, seed=1) == kept
    assert balanced(tokens, 2, 3, seed=2) != kept
