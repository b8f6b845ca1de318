"""Alignment against dtw-python, pair by pair; the batched and the compiled way against each other."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from dtw import dtw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from laser_hf.superb.qbe import matching


def witness(distance) -> float:
    found = dtw(np.asarray(distance), step_pattern="asymmetric", open_begin=True, open_end=True, distance_only=True)
    return found.normalizedDistance


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
"""Documents of one and two frames, queries of one frame and longer than any document."""


def random_case(queries, documents, seed=0):
    size = sum(queries), sum(documents)
    return torch.from_numpy(np.random.default_rng(seed).exponential(size=size)), queries, documents


def pairs(distance, queries, documents):
    for rows in distance.split(queries):
        yield list(rows.split(documents, dim=1))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(queries=LENGTHS, documents=LENGTHS, seed=st.integers(0, 99))
def test_costs_equal_dtw_python(queries, documents, seed):
    distance, *_ = random_case(queries, documents, seed)
    expected = [[witness(matching.scale_rows(part)) for part in parts] for parts in pairs(distance, queries, documents)]
    for costs in (matching.alignment_costs, matching.batched_costs):
        np.testing.assert_allclose(costs(distance, queries, documents), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(costs(distance.float(), queries, documents), expected, rtol=0, atol=1e-6)


def test_threads_share_documents_without_a_difference(monkeypatch):
    distance, queries, documents = random_case([4, 1, 40, 12], [1, 9, 2, 30, 17, 5])
    alone = matching.alignment_costs(distance, queries, documents)
    for threads in (2, 5, 100):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(matching.alignment_costs(distance, queries, documents), alone)


def test_a_pair_costs_what_it_costs_alone():
    distance, queries, documents = random_case([4, 1, 40, 12], [1, 9, 2, 30, 17, 5])
    together = matching.alignment_costs(distance, queries, documents)
    for row, parts in enumerate(pairs(distance, queries, documents)):
        for column, part in enumerate(parts):
            assert together[row, column] == matching.alignment_costs(part, [len(part)], [part.shape[1]])[0, 0]


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match=r"distance is \(3, 4\), lengths ask for \(3, 5\)"):
        matching.alignment_costs(torch.rand(3, 4), [3], [5])
    with pytest.raises(ValueError, match="at least one frame"):
        matching.alignment_costs(torch.rand(3, 4), [3, 0], [4])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 31])
def test_extremes(width):
    row = np.random.default_rng(width).normal(size=width).astype(np.float32)
    assert matching._extremes(row) == (row.min(), row.max())


def test_distances_follow_their_definition():
    torch.manual_seed(0)
    query, document = torch.randn(4, 6), torch.randn(9, 6)
    cosine = F.cosine_similarity(query[:, None], document[None], dim=-1)
    units = F.normalize(query, dim=1), F.normalize(document, dim=1)
    raw = torch.exp(1 - cosine) - 1
    low, high = raw.amin(1, keepdim=True), raw.amax(1, keepdim=True)
    found = matching.scale_rows(matching.frame_distances(*units))
    torch.testing.assert_close(found, (raw - low) / (high - low), rtol=1e-4, atol=1e-5)


def test_unit_frames_are_normalised_first():
    frames = np.random.default_rng(0).normal(3, 2, size=(5, 4)).astype(np.float32)
    mean, deviation = np.array([3.0, 2, 1, 0]), np.array([1.0, 2, 3, 4])
    expected = (frames - mean) / deviation
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(matching.unit_frames(frames, mean, deviation), expected, atol=1e-6)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_scores_equal_dtw_python_on_frames(monkeypatch):
    torch.manual_seed(1)
    queries = [unit(n, 8) for n in (4, 5, 30, 12, 60, 1)]
    documents = [unit(n, 8) for n in (1, 2, 3, 40, 17, 25)]
    monkeypatch.setitem(matching._CELLS, "cpu", 88 * 35)  # several groups of queries
    scores = matching.match(queries, documents)
    for row, query in enumerate(queries):
        for column, document in enumerate(documents):
            if len(query) < 5:
                assert scores[row, column] == 0
                continue
            raw = matching.frame_distances(query, document)
            assert scores[row, column] == pytest.approx(-witness(matching.scale_rows(raw)), abs=1e-6)


def test_one_frame_documents_score_as_in_superb():
    """Their rows have no range; the clipped denominator makes every distance 0, the best."""
    torch.manual_seed(0)
    scores = matching.match([unit(7, 4)], [unit(1, 4), unit(30, 4)])
    assert scores[0, 0] == 0 > scores[0, 1]


def test_a_query_cut_from_a_document_finds_it():
    torch.manual_seed(0)
    documents = [unit(30 + 5 * n, 8) for n in range(5)]
    scores = matching.match([documents[3][10:22]], documents)
    assert scores[0].argmax() == 3
    assert scores[0, 3] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_path_has_the_cost_and_only_allowed_steps(seed):
    random = np.random.default_rng(seed)
    distance = random.random((int(random.integers(1, 12)), int(random.integers(1, 12))))
    cost, path = matching.best_path(distance)
    assert cost == pytest.approx(witness(distance), abs=1e-12)
    assert [i for i, _ in path] == list(range(len(distance)))
    assert sum(distance[i, j] for i, j in path) / len(distance) == pytest.approx(cost)
    columns = [j for _, j in path]
    assert all(0 <= after - before <= 2 for before, after in pairwise(columns))


@pytest.mark.gpu
def test_gpu_equals_cpu():
    torch.manual_seed(2)
    queries = [unit(n, 32) for n in (3, 5, 30, 12, 70)]
    documents = [unit(n, 32) for n in (1, 2, 3, 140, 17)]
    torch.testing.assert_close(
        matching.match(queries, documents, device="cuda"), matching.match(queries, documents), rtol=0, atol=1e-6
    )
