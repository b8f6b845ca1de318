import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_hf.data import find_perturbation
from laser_hf.errors import LaserError
from laser_hf.objectives import find_objective
from laser_hf.plugins import Option, Plugin, find_plugin, parse_assignments


class Thing(Plugin):
    name = "thing"
    options = (
        Option("alpha", 0.4, "weight", low=0),
        Option("steps", [1.0, 2.0], "list", many=True, flag="pitch_steps"),
        Option("count", 1, "frames", low=1),
        Option("folder", None, "folder", kind=str),
        Option("kind", "a", "which", choices=("a", "b")),
        Option("on", True, "switch"),
        Option("gamma", 0.1, "smoothing", above=0),
    )


class Other(Thing):
    name = "other"


def test_defaults_and_types():
    assert Thing.checked({}) == {
        "alpha": 0.4, "steps": [1.0, 2.0], "count": 1, "folder": None, "kind": "a", "on": True, "gamma": 0.1,
    }  # fmt: skip
    texts = {"alpha": "1", "pitch_steps": "3,-4", "count": "7", "folder": "x", "kind": "b", "on": "false"}
    assert Thing.checked(texts) | {"gamma": 0} == {
        "alpha": 1.0, "steps": [3.0, -4.0], "count": 7, "folder": "x", "kind": "b", "on": False, "gamma": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": float("inf")}, "count must be a whole number"),
        ({"alpha": -1}, "at least 0"),
        ({"alpha": math.nan}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"alpha": "x"}, "a number"),
        ({"alpha": True}, "a number"),
        ({"count": 1.5}, "whole number"),
        ({"count": 0}, "at least 1"),
        ({"gamma": 0}, "above 0"),
        ({"kind": "c"}, "one of a, b"),
        ({"pitch_steps": []}, "at least one value"),
        ({"pitch_steps": 3}, "a list"),
        ({"on": "maybe"}, "true or false"),
        ({"folder": 3}, "a text"),
        ({"beta": 1}, "it takes alpha, pitch_steps"),
        ({"steps": [1]}, "no option steps"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(LaserError, match=message):
        Thing.checked(values)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_as_text(value):
    if value >= 0:
        assert Thing.checked({"alpha": repr(value)})["alpha"] == value
    else:
        with pytest.raises(LaserError):
            Thing.checked({"alpha": repr(value)})


def test_finding(tmp_path, monkeypatch):
    (tmp_path / "my_plugins.py").write_text(
        "from laser_hf.plugins import Plugin\nclass Mine(Plugin):\n    name = 'mine'\nclass NotOne: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shipped = {"thing": Thing, "other": Other}
    assert find_plugin("other", Plugin, shipped) is Other
    assert find_plugin("my_plugins:Mine", Plugin, shipped).name == "mine"
    for name, message in [
        ("thong", "shipped are other, thing"),
        ("my_plugins:Absent", "cannot import"),
        ("no_such_module:X", "PYTHONPATH"),
        ("my_plugins:NotOne", "derive the class"),
        (":X", "cannot import"),
    ]:
        with pytest.raises(LaserError, match=message):
            find_plugin(name, Plugin, shipped)


def test_assignments():
    assert parse_assignments(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(LaserError):
            parse_assignments(wrong)


@pytest.mark.parametrize(
    ("find", "text", "message"),
    [
        (find_perturbation, "draw = lambda self, rng: {}", "no complete perturbation: it lacks apply or apply_batch"),
        (find_perturbation, "apply = lambda self, waveform: waveform", "it lacks draw"),
        (find_objective, "name = 'mine'", "no complete objective: it lacks terms"),
    ],
)
def test_a_class_without_its_methods_is_refused_by_name(tmp_path, monkeypatch, find, text, message):
    base = "laser_hf.data:Perturbation" if find is find_perturbation else "laser_hf.objectives:Objective"
    module, name = base.split(":")
    (tmp_path / "half_done.py").write_text(f"from {module} import {name}\n\nclass Mine({name}):\n    {text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_done", raising=False)
    with pytest.raises(LaserError, match=message):
        find("half_done:Mine")
