"""What is varied: lists of values and ranges as Optuna's distributions, the points they span, and their names."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ..errors import LaserError

Value = int | float | str | bool
Point = dict[str, Value]
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]
"""What is varied, by the name of the option."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(:log)?")
_OTHER = re.compile(r"[^A-Za-z0-9.+-]+")
_LONGEST_NAME = 150  # common file systems allow 255 bytes for a file name


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def text_of(value: Value) -> str:
    """`value` as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_over(texts: Iterable[str], typed: Callable[[str, str], Value]) -> Space:
    """Read `name=v1,v2,...` and `name=low:high[:log]`; a range whose ends are whole numbers holds only such.

    Args:
        texts: as given to `--over`.
        typed: (name, text) -> the value that train.py's option `name` takes from `text`; raises `LaserError` for a
            name or a text that it does not take.

    Raises:
        LaserError: a text of another form, a name given twice, or an empty or impossible range.
    """
    space: Space = {}
    for text in texts:
        name, equals, given = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not name or not given:
            raise LaserError(f"--over {text}: expected name=v1,v2,... or name=low:high[:log]")
        if name in space:
            raise LaserError(f"--over names {name} twice; give all its values at once: {name}=v1,v2,...")
        space[name] = _range(text, given, partial(typed, name)) or _values(text, given, partial(typed, name))
    return space


def _range(text: str, given: str, typed: Callable[[str], Value]) -> Distribution | None:
    found = _RANGE.fullmatch(given)
    ends = [typed(end) for end in found.group(1, 2)] if found else []
    if not ends or not all(map(is_number, ends)):
        return None  # values, or a text with a colon for an option that takes texts
    low, high = ends
    if low >= high:
        raise LaserError(f"--over {text}: the range is empty, {low} is not below {high}")
    if found[3] and low <= 0:
        raise LaserError(f"--over {text}: a logarithmic range begins above 0")
    kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
    return kind(low, high, log=bool(found[3]))


def _values(text: str, given: str, typed: Callable[[str], Value]) -> Distribution:
    parts = [part.strip() for part in given.split(",")]
    if "" in parts:
        raise LaserError(f"--over {text}: there is nothing between two commas or at an end")
    values = tuple(dict.fromkeys(map(typed, parts)))
    if not all(math.isfinite(value) for value in values if is_number(value)):
        raise LaserError(f"--over {text}: expected finite numbers")
    return CategoricalDistribution(values)


def describe(name: str, distribution: Distribution) -> str:
    """An option and what it takes, as `--over` has it."""
    if isinstance(distribution, CategoricalDistribution):
        return f"{name}={','.join(map(text_of, distribution.choices))}"
    return f"{name}={distribution.low}:{distribution.high}{':log' if distribution.log else ''}"


def size_of(space: Space) -> float:
    """Number of different points; infinite with a range of floats."""
    sizes = [
        len(one.choices)
        if isinstance(one, CategoricalDistribution)
        else one.high - one.low + 1
        if isinstance(one, IntDistribution)
        else math.inf
        for one in space.values()
    ]
    return math.prod(sizes)


def grid(space: Space) -> list[Point]:
    """All combinations of lists of values; the last option varies fastest."""
    products = itertools.product(*(distribution.choices for distribution in space.values()))
    return [dict(zip(space, values, strict=True)) for values in products]


def label_of(point: Mapping[str, Value]) -> str:
    """For people: `sigma=1 alpha=0.15`."""
    return " ".join(f"{name}={text_of(value)}" for name, value in point.items())


def name_of(point: Mapping[str, Value]) -> str:
    """File name of a point, readable and different for different points: `sigma-1_alpha-0.15`.

    If a value has anything but letters, digits and `.+-`, the rest is left out and a digest appended.
    """
    texts = {name: text_of(value) for name, value in point.items()}
    readable = "_".join(f"{name}-{_OTHER.sub('-', text)}" for name, text in texts.items())
    if len(readable) <= _LONGEST_NAME and not any(_OTHER.search(text) for text in texts.values()):
        return readable
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]
    return f"{readable[: _LONGEST_NAME - 9]}_{digest}"
