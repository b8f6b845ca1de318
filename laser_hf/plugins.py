"""What an objective or a perturbation says about itself, and how one is found by name or import path."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from .errors import LaserError


@dataclass(frozen=True)
class Option:
    """One option of an objective or a perturbation.

    Attributes:
        name: keyword argument of the class.
        default: value if it is not given.
        help: one line for `--help`, without the default.
        kind: type of one value: `float`, `int`, `str` or `bool`; by default that of `default` (or of its items).
        many: the value is a list.
        low, high, above: smallest and largest value, and one that it must exceed; numbers are always finite.
        choices: the values allowed, if they can be listed.
        flag: name on the command line and in presets, by default `name`.
    """

    name: str
    default: Any
    help: str
    kind: type | None = None
    many: bool = False
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    flag: str | None = None

    @property
    def dest(self) -> str:
        """Name on the command line, in presets and in recipes."""
        return self.flag or self.name

    @property
    def type(self) -> type:
        """Type of one value."""
        if self.kind is not None:
            return self.kind
        return type(self.default[0]) if self.many else type(self.default)

    @property
    def range(self) -> str:
        """The range in words, such as `at least 1`; empty if every value is allowed."""
        limits = {"above": self.above, "at least": self.low, "at most": self.high}
        bounds = [f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None]
        if self.low is not None and self.high is not None:
            bounds = [f"from {self.low:.10g} to {self.high:.10g}"]
        return ", ".join(bounds + [f"one of {', '.join(self.choices)}"] * bool(self.choices))

    def __call__(self, text: str) -> Any:
        """A text from the command line as a value: an option is a `type` for argparse, whose help shows its range."""
        try:
            return self._check_one(text)
        except LaserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    def check(self, value: Any) -> Any:
        """`value` in the option's type; `LaserError` if it has another type or lies outside the range."""
        if value is None and self.default is None:
            return None
        if not self.many:
            return self._check_one(value)
        values = value.split(",") if isinstance(value, str) else value  # a text from name=value
        if not isinstance(values, Sequence) or not values:
            raise LaserError(f"{self.dest} must be a list with at least one value, got {value!r}")
        return [self._check_one(one) for one in values]

    def _check_one(self, value: Any) -> Any:
        try:
            number = _parse(value, self.type)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise LaserError(f"{self.dest} must be {_TYPE_WORDS[self.type]}, got {value!r}") from None
        inside = not self.choices or number in self.choices
        if self.type in (int, float):
            low, high = (side if side is not None else number for side in (self.low, self.high))
            inside = math.isfinite(number) and low <= number <= high and (self.above is None or number > self.above)
        if not inside:
            raise LaserError(f"{self.dest} must be {self.range or 'a finite number'}, got {value!r}")
        return number


_TYPE_WORDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def _parse(value: Any, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[str(value).lower()]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise TypeError
    number = kind(float(value) if kind is int else value)
    if kind is int and number != float(value):
        raise ValueError
    return number


def value(default: Any, text: str, **bounds: Any) -> Any:
    """A dataclass field that is an option: its default, help, and bounds as `Option` has them."""
    return field(default=default, metadata={"help": text, **bounds})


def field_options(kind: type) -> list[Option]:
    """The options of a dataclass with `value`s, by the names that they have on the command line."""
    return [Option(f"--{one.name}", one.default, **one.metadata) for one in fields(kind)]


class Plugin:
    """What can be chosen by name or import path.

    Attributes:
        name: short name on the command line and in records.
        title: name in tables, cards and plots, such as `LASER`.
        summary: one sentence for `--help` and cards.
        paper: authors, title, venue and year in one line; empty if there is none.
        bibtex: the BibTeX entry of the paper.
        options: what can be set.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()
    needs: ClassVar[tuple[tuple[str, ...], ...]] = ()  # methods that a class of one's own writes, one of each group

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the class: checked `values`, by `Option.dest`, and defaults; `LaserError` if wrong."""
        known = {option.dest: option for option in cls.options}
        if unknown := sorted(set(values) - set(known)):
            takes = ", ".join(known) or "no options"
            raise LaserError(f"{cls.name or cls.__name__} has no option {', '.join(unknown)}; it takes {takes}")
        return {o.name: o.check(values[o.dest]) if o.dest in values else o.default for o in cls.options}


_P = TypeVar("_P", bound=Plugin)

NOISE_ROBUST_PAPER = (
    "Meghanani, Cost-effective Self-supervised Fine-tuning for Noise Robust Speech Representations, released code "
    "at https://github.com/Trikaldarshi/nr-ssft"
)
"""Of the perturbation `noise` and of the objective `mse_idm`."""
NOISE_ROBUST_BIBTEX = """\
@misc{meghanani_nrssft,
  title        = "Cost-effective Self-supervised Fine-tuning for Noise Robust Speech Representations",
  author       = "Meghanani, Amit",
  howpublished = "https://github.com/Trikaldarshi/nr-ssft"
}"""


def find_plugin(name: str, base: type[_P], shipped: Mapping[str, type[_P]]) -> type[_P]:
    """One of `shipped`, or the class `package.module:Class` derived from `base`; `LaserError` if there is none."""
    if name in shipped:
        return shipped[name]
    kind, (module, colon, cls) = base.__name__.lower(), name.partition(":")
    if not colon:
        known = ", ".join(sorted(shipped))
        raise LaserError(f"unknown {kind} {name!r}; shipped are {known}, or give your own as package.module:Class")
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise LaserError(f"cannot import the {kind} {name!r}: {error}. Is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise LaserError(f"{name!r} is no {base.__module__}.{base.__name__}: derive the class from it")
    for methods in base.needs:
        if all(getattr(found, method) is getattr(base, method) for method in methods):
            raise LaserError(f"{name!r} is no complete {kind}: it lacks {' or '.join(methods)} (docs/extending.md)")
    return found


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package: a name of `modules` is looked up in its module on first use, which may be slow."""

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name], package), name)

    return find


def parse_assignments(pairs: Sequence[str]) -> dict[str, str]:
    """`["alpha=0.4", ...]` as texts by name, which are given once; `Plugin.checked` gives them their types."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise LaserError(f"expected name=value, got {pair!r}")
        if name in values:
            raise LaserError(f"{name} is given twice")
        values[name] = value
    return values
