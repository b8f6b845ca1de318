"""Query by example word by word, against scipy's bootstrap and hand-counted halves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments import words
from laser_hf.errors import LaserError
from laser_hf.superb.qbe.report import write_scores

QUERIES = {f"q{i}": f"word{i // 2}" for i in range(40)}  # two queries a word


def test_halves_are_of_words_and_do_not_depend_on_the_set():
    halves = {word: words.half_of(word) for word in QUERIES.values()}
    assert set(halves.values()) == set(words.HALVES)
    assert words.half_of("mister") == words.half_of("mister")
    found = {query: float(words.half_of(word) == "report") for query, word in QUERIES.items()}
    assert words.by_half(found, QUERIES) == {"choose": 0.0, "report": 1.0}


def test_precisions_of_a_written_table(tmp_path):
    scores = np.array([[3.0, 2.0, np.nan, 1.0], [1.0, 2.0, 3.0, 4.0]])
    targets = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
    write_scores(tmp_path / "scores.tsv", scores, ["a", "b"], ["1", "2", "3", "4"], targets)
    # a: targets at ranks one and three of three trials; b: at rank three of four.
    assert words.precisions(tmp_path / "scores.tsv") == pytest.approx({"a": (1 + 2 / 3) / 2, "b": 1 / 3})


def test_mean_over_seeds():
    assert words.mean_over([{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]) == {"a": 0.5, "b": 1.0}


@pytest.mark.parametrize("half", [None, "report"])
def test_interval_is_that_of_scipy_over_words(half):
    generator = np.random.default_rng(1)
    effect = {word: generator.normal(0.1, 0.3) for word in set(QUERIES.values())}
    other = {query: generator.random() for query in QUERIES}
    found = {query: other[query] + effect[word] for query, word in QUERIES.items()}
    mean, low, high = words.difference(found, other, QUERIES, half)
    # Equally many queries a word, all with its effect: resampling words is resampling their effects.
    sample = [value for word, value in effect.items() if half in (None, words.half_of(word))]
    witness = stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert mean == pytest.approx(np.mean(sample))
    assert (low, high) == pytest.approx(tuple(witness), abs=0.01)
    # Taken for independent, the queries would seem to be twice as many: the interval must not be that narrow.
    narrow = stats.bootstrap((sample + sample,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert high - low > 1.2 * (narrow.confidence_interval.high - narrow.confidence_interval.low)


def test_words_of_a_table(tmp_path):
    table = tmp_path / "queries.tsv"
    table.write_text("query\taudio\tword\nq1\ta.wav\tlittle\n")
    assert words.words_of(table) == {"q1": "little"}
    table.write_text("query\taudio\nq1\ta.wav\n")
    with pytest.raises(LaserError, match="no column word in the first line"):
        words.words_of(table)


def test_comparison_of_one_seed_and_one_grouping_is_that_of_scipy():
    sample = np.random.default_rng(3).normal(0.1, 0.3, 30)
    found = words.compare(sample[None, :], [f"w{i}" for i in range(30)])
    witness = stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.effect == pytest.approx(sample.mean())
    assert (found.low, found.high) == pytest.approx(tuple(witness), abs=0.01)


def test_comparison_doubts_an_effect_of_one_speaker():
    """40 queries of four speakers; all of the effect is one speaker's."""
    speakers = [f"s{i % 4}" for i in range(40)]
    names = [f"w{i}" for i in range(40)]
    differences = np.tile(np.where(np.arange(40) % 4 == 0, 0.4, 0.0), (3, 1))
    assert words.compare(differences, names).p < 0.01
    assert words.compare(differences, speakers, names).p > 0.3
    same = words.compare(np.full((3, 40), 0.1), speakers, names)
    assert (same.effect, same.low, same.high, same.p) == pytest.approx((0.1, 0.1, 0.1, 2e-4))


def test_comparison_doubts_an_effect_of_one_seed():
    differences = np.zeros((3, 40))
    differences[1] = 0.4
    assert words.compare(differences, [f"w{i}" for i in range(40)]).p > 0.3


def test_holm():
    # By hand: 0.01 x 4; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.5 x 1.
    assert words.holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert words.holm([0.9, 0.8]) == [1.0, 1.0]
