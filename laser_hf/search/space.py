"""What is varied: lists of values and ranges, the points they span, and how a point is named."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import SearchError

Value = int | float | str | bool
Point = dict[str, Value]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(:log)?")
_LONGEST_NAME = 150  # a folder's name holds 255 bytes on common file systems
_MOST_LISTED = 100_000  # points of a finite space that are listed to draw from those left


@dataclass(frozen=True)
class Choice:
    """An option with a list of values."""

    name: str
    values: tuple[Value, ...]

    @property
    def size(self) -> float:
        return len(self.values)

    @property
    def numeric(self) -> bool:
        return all(is_number(value) for value in self.values)

    def draw(self, generator: random.Random) -> Value:
        return generator.choice(self.values)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "values": list(self.values)}

    def __str__(self) -> str:
        return f"{self.name}={','.join(text_of(value) for value in self.values)}"


@dataclass(frozen=True)
class Range:
    """An option that takes any number from `low` to `high`, both included; whole numbers if both are."""

    name: str
    low: int | float
    high: int | float
    log: bool = False
    numeric = True

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> float:
        return self.high - self.low + 1 if self.whole else math.inf

    @property
    def values(self) -> Sequence[Value]:
        """Of a range of whole numbers."""
        return range(int(self.low), int(self.high) + 1)

    def draw(self, generator: random.Random) -> Value:
        if self.whole:
            return generator.randint(int(self.low), int(self.high))
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "low": self.low, "high": self.high, "log": self.log}

    def __str__(self) -> str:
        return f"{self.name}={self.low}:{self.high}{':log' if self.log else ''}"


Dimension = Choice | Range


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def text_of(value: Value) -> str:
    """`value` as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_over(texts: Iterable[str], typed: Callable[[str, str], Value]) -> tuple[Dimension, ...]:
    """Read `name=v1,v2,...` and `name=low:high[:log]`.

    Args:
        texts: as given to `--over`.
        typed: (name, text) -> the value that train.py's option `name` takes from `text`; raises `SearchError` for a
            name or a text that it does not take.

    Raises:
        SearchError: a text of another form, a name that comes twice, or an empty or impossible range.
    """
    dimensions: dict[str, Dimension] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not name or not given:
            raise SearchError(f"--over {text}: expected name=v1,v2,... or name=low:high[:log]")
        if name in dimensions:
            raise SearchError(f"--over names {name} twice; give all its values at once: {name}=v1,v2,...")
        dimensions[name] = _range(name, given, typed) or _choice(name, given, typed)
    return tuple(dimensions.values())


def _range(name: str, given: str, typed: Callable[[str, str], Value]) -> Range | None:
    found = _RANGE.fullmatch(given)
    if found is None:
        return None
    low, high = typed(name, found[1]), typed(name, found[2])
    if not is_number(low) or not is_number(high):
        return None  # of a text option: a text with a colon
    if low >= high:
        raise SearchError(f"--over {name}={given}: the range is empty, {low} is not below {high}")
    if found[3] and low <= 0:
        raise SearchError(f"--over {name}={given}: a logarithmic range begins above 0")
    return Range(name, low, high, bool(found[3]))


def _choice(name: str, given: str, typed: Callable[[str, str], Value]) -> Choice:
    parts = [part.strip() for part in given.split(",")]
    if "" in parts:
        raise SearchError(f"--over {name}={given}: there is nothing between two commas or at an end")
    return Choice(name, tuple(dict.fromkeys(typed(name, part) for part in parts)))


def size_of(dimensions: Iterable[Dimension]) -> float:
    """Different points; infinite with a range of floats."""
    return math.prod(dimension.size for dimension in dimensions)


def grid(dimensions: Sequence[Dimension]) -> list[Point]:
    """All points of a finite space; the last dimension varies fastest."""
    names = [dimension.name for dimension in dimensions]
    products = itertools.product(*(dimension.values for dimension in dimensions))
    return [dict(zip(names, values, strict=True)) for values in products]


def draw_new(dimensions: Sequence[Dimension], taken: Collection[str], seed: int) -> Point:
    """A random point whose `key_of` is not among `taken`, which must leave one."""
    generator = random.Random(seed)
    if size_of(dimensions) <= _MOST_LISTED:
        return generator.choice([point for point in grid(dimensions) if key_of(point) not in taken])
    while True:
        point = {dimension.name: dimension.draw(generator) for dimension in dimensions}
        if key_of(point) not in taken:
            return point


def key_of(point: Mapping[str, Value]) -> str:
    """The same text for the same point."""
    return json.dumps(dict(point), sort_keys=True)


def label_of(point: Mapping[str, Value]) -> str:
    """For people: `sigma=1 alpha=0.15`."""
    return " ".join(f"{name}={_short(value)}" for name, value in point.items())


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else text_of(value)


def folder_of(point: Mapping[str, Value], seed: int | None = None) -> str:
    """Folder name of a run, readable and different for different points: `sigma-1_alpha-0.15`.

    Args:
        point: its parameters.
        seed: added where a point is trained with several.
    """
    parts = {**point, **({} if seed is None else {"seed": seed})}
    full = "_".join(f"{name}-{text_of(value)}" for name, value in parts.items())
    plain = re.sub(r"[^\w.+-]+", "-", full, flags=re.ASCII)
    if plain == full and len(full) <= _LONGEST_NAME:
        return full
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return f"{plain[: _LONGEST_NAME - 9]}_{digest}"
