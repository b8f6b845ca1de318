"""What --over means: values, ranges, points and file names."""

from __future__ import annotations

import itertools
import math
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from laser_hf.errors import LaserError
from laser_hf.search.plan import Plan, describe, grid, name_of, parse_over, text_of


def size_of(over, trials=None):
    return Plan(Path("x"), "demo", (), over, None, sampler="tpe" if trials else "grid", trials=trials).size


KINDS = {"sigma": int, "distance": str, "bf16": {"true": True, "false": False}.__getitem__}


def typed(name, text):
    """As train.py's options would; `alpha` and `margin` are floats."""
    try:
        return KINDS.get(name, float)(text)
    except (KeyError, ValueError) as error:
        raise LaserError(str(error)) from error


def test_values_and_ranges_are_read_with_the_types_of_the_options():
    over = parse_over(["sigma=1,2,5", "alpha=1e-3:1:log", "margin=-.5:1.5", "--distance=a:b"], typed)
    assert over == {
        "sigma": CategoricalDistribution((1, 2, 5)),
        "alpha": FloatDistribution(0.001, 1.0, log=True),
        "margin": FloatDistribution(-0.5, 1.5),
        "distance": CategoricalDistribution(("a:b",)),
    }
    assert [type(value) for value in over["sigma"].choices] == [int] * 3
    assert parse_over(["sigma=1:4"], typed) == {"sigma": IntDistribution(1, 4)}
    assert parse_over(["alpha=1,1.0,2"], typed) == {"alpha": CategoricalDistribution((1.0, 2.0))}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["sigma"], "expected name="),
        (["=1"], "expected name="),
        (["sigma="], "expected name="),
        (["sigma=1", "sigma=2"], "twice"),
        (["sigma=1", "--sigma=2:3"], "twice"),
        (["sigma=1,,2"], "nothing between two commas"),
        (["sigma=1,"], "nothing between two commas"),
        (["sigma=1.5"], "invalid literal"),
        (["sigma=5:1"], "range is empty"),
        (["alpha=0:1:log"], "begins above 0"),
        (["alpha=0:1:lin"], "could not convert"),
        (["alpha=1,nan"], "expected finite numbers"),
        (["alpha=inf"], "expected finite numbers"),
    ],
)
def test_other_forms_are_refused(texts, message):
    with pytest.raises(LaserError, match=message):
        parse_over(texts, typed)


# A text of an option, as a shell hands it over: no comma, which separates values, and nothing that is trimmed.
TEXTS = st.text(string.ascii_letters + string.digits + "_-./: ", min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)
VALUES = {
    "sigma": st.integers(-(10**9), 10**9),
    "alpha": st.floats(allow_nan=False, allow_infinity=False),
    "distance": TEXTS,
    "bf16": st.booleans(),
}
LISTS = st.fixed_dictionaries(
    {}, optional={name: st.lists(kind, min_size=1, max_size=4, unique=True) for name, kind in VALUES.items()}
).filter(bool)


@settings(deadline=None)
@given(LISTS)
def test_every_list_of_values_is_read_back(lists):
    texts = [f"{name}={','.join(map(text_of, values))}" for name, values in lists.items()]
    over = parse_over(texts, typed)
    assert {name: list(one.choices) for name, one in over.items()} == lists
    # What is written for people means the same.
    assert parse_over([describe(*item) for item in over.items()], typed) == over


@settings(deadline=None)
@given(LISTS)
def test_a_grid_is_every_combination_once_with_a_name_of_its_own(lists):
    over = {name: CategoricalDistribution(tuple(values)) for name, values in lists.items()}
    points = grid(over)
    assert size_of(over) == len(points)
    assert [tuple(point.values()) for point in points] == list(itertools.product(*lists.values()))
    names = {name_of(point) for point in points}
    assert len(names) == len(points)
    assert all(set(name) <= set(string.ascii_letters + string.digits + "_-.+") and len(name) <= 150 for name in names)


@settings(deadline=None)
@given(st.data())
def test_every_range_is_read_back(data):
    name, kind = data.draw(st.sampled_from(["sigma", "alpha"])), {"sigma": IntDistribution, "alpha": FloatDistribution}
    low, high = sorted(data.draw(st.tuples(VALUES[name], VALUES[name]).filter(lambda ends: ends[0] != ends[1])))
    log = data.draw(st.booleans()) and low > 0
    over = parse_over([f"{name}={low}:{high}{':log' if log else ''}"], typed)
    assert over == {name: kind[name](low, high, log=log)}
    assert parse_over([describe(*item) for item in over.items()], typed) == over
    assert size_of(over, trials=50) == min(50, high - low + 1 if name == "sigma" else math.inf)
    for text in (f"{name}={high}:{low}", f"{name}={low}:{low}"):
        with pytest.raises(LaserError, match="range is empty"):
            parse_over([text], typed)


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_text_is_read_or_refused_with_a_message(texts):
    try:
        over = parse_over(texts, typed)
    except LaserError:
        return
    assert len(over) == len(texts)
    for one in over.values():
        values = one.choices if isinstance(one, CategoricalDistribution) else (one.low, one.high)
        assert all(math.isfinite(value) for value in values if isinstance(value, float))


def test_sizes():
    assert size_of(parse_over(["sigma=1:4", "alpha=0.1,0.4"], typed), trials=9) == 8
    assert size_of(parse_over(["alpha=0.1:0.4"], typed), trials=9) == 9
    assert size_of(parse_over(["sigma=1:4", "alpha=0.1:0.4"], typed), trials=9) == 9


def test_names_are_readable_and_of_one_point():
    assert name_of({"sigma": 1, "alpha": 0.15, "learning_rate": 2e-05}) == "sigma-1_alpha-0.15_learning_rate-2e-05"
    assert name_of({"bf16": True}) == "bf16-true"
    awkward = [name_of({"train_data": text}) for text in ("a/b", "a b", "../a b", "a-b", "x" * 500)]
    assert len(set(awkward)) == len(awkward)
    assert name_of({"a": "1_b-2", "b": "3"}) != name_of({"a": "1", "b": "2_b-3"})
