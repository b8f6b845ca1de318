"""What --over means: values, ranges, points and folder names."""

from __future__ import annotations

import itertools

import pytest

from laser_hf.search import SearchError
from laser_hf.search.space import Choice, Range, draw_new, folder_of, grid, key_of, parse_over, size_of


def typed(name, text):
    try:
        return {"sigma": int, "distance": str, "bf16": bool}.get(name, float)(text)
    except ValueError as error:
        raise SearchError(str(error)) from error


def test_values_and_ranges_are_read_with_the_types_of_the_options():
    over = parse_over(["sigma=1,2,5", "alpha=1e-3:1:log", "margin=-.5:1.5", "--distance=a:b"], typed)
    assert over == (
        Choice("sigma", (1, 2, 5)),
        Range("alpha", 0.001, 1.0, True),
        Range("margin", -0.5, 1.5),
        Choice("distance", ("a:b",)),
    )
    assert [type(value) for value in over[0].values] == [int] * 3
    assert parse_over(["sigma=1:4"], typed)[0].whole
    assert not over[1].whole
    assert parse_over(["alpha=1,1.0,2"], typed) == (Choice("alpha", (1.0, 2.0)),)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["sigma"], "expected name="),
        (["=1"], "expected name="),
        (["sigma="], "expected name="),
        (["sigma=1", "sigma=2"], "twice"),
        (["sigma=1,,2"], "nothing between two commas"),
        (["sigma=1.5"], "invalid literal"),
        (["sigma=5:1"], "range is empty"),
        (["alpha=0:1:log"], "begins above 0"),
        (["alpha=0:1:lin"], "could not convert"),
    ],
)
def test_other_forms_are_refused(texts, message):
    with pytest.raises(SearchError, match=message):
        parse_over(texts, typed)


def test_a_grid_is_every_combination_once():
    over = parse_over(["sigma=1,2,5", "alpha=0.1,0.4", "margin=1"], typed)
    points = grid(over)
    assert size_of(over) == len(points) == 6
    assert {tuple(point.values()) for point in points} == set(itertools.product((1, 2, 5), (0.1, 0.4), (1.0,)))
    assert size_of(parse_over(["sigma=1:4", "alpha=0.1,0.4"], typed)) == 8
    assert size_of(parse_over(["alpha=0.1:0.4"], typed)) == float("inf")


def test_new_points_are_drawn_until_none_is_left():
    over = parse_over(["sigma=1:4", "alpha=0.1,0.4"], typed)
    taken = set()
    for seed in range(8):
        point = draw_new(over, taken, seed)
        assert point == draw_new(over, taken, seed)
        assert key_of(point) not in taken
        taken.add(key_of(point))
    wide = parse_over(["alpha=0.01:1:log", "sigma=1:9"], typed)
    drawn = [draw_new(wide, set(), seed) for seed in range(400)]
    assert all(0.01 <= point["alpha"] <= 1 and point["sigma"] in range(1, 10) for point in drawn)
    assert 0.4 < sum(point["alpha"] < 0.1 for point in drawn) / 400 < 0.6  # half of a logarithmic range


def test_folder_names_are_readable_and_of_one_point():
    assert folder_of({"sigma": 1, "alpha": 0.15, "learning_rate": 2e-05}) == "sigma-1_alpha-0.15_learning_rate-2e-05"
    assert folder_of({"sigma": 1}, seed=3) == "sigma-1_seed-3"
    assert folder_of({"bf16": True}) == "bf16-true"
    awkward = [folder_of({"train_data": text}) for text in ("a/b", "a b", "../a b", "a-b", "x" * 500)]
    assert len(set(awkward)) == len(awkward)
    assert not any("/" in name or len(name) > 150 for name in awkward)
