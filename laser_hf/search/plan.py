"""What is searched: the options that vary, as Optuna's distributions, and what holds for every point."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ..errors import LaserError
from .score import Score

DATABASE, RECORD, TABLE, PICTURE = "study.db", "search.json", "search.md", "heatmap.png"
Value = int | float | str | bool
Point = dict[str, Value]
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]  # what is varied, by the name of the option
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(:log)?")
_OTHER = re.compile(r"[^A-Za-z0-9.+-]+")
_LONGEST_NAME = 150  # common file systems allow 255 bytes for a file name


@dataclass(frozen=True)
class Plan:
    """One search: `grid` trains all points, `tpe` draws `trials` of them, the later ones near good ones."""

    folder: Path  # of study, runs and tables
    preset: str  # with `fixed` what laser-hf train is given for all points
    fixed: tuple[str, ...]
    over: Space
    score: Score
    recipe: dict[str, Any] = field(default_factory=dict)  # what decides the result of all points alike
    sampler: str = "grid"
    trials: int | None = None
    seeds: tuple[int, ...] = ()  # every point is trained with each; empty for the preset's own

    def __post_init__(self) -> None:
        ranges = [describe(*item) for item in self.over.items() if not isinstance(item[1], CategoricalDistribution)]
        if self.sampler == "grid" and ranges:
            raise LaserError(f"--over {ranges[0]} is a range: give a list (name=v1,v2), or --sampler tpe --trials N")
        if (self.sampler == "tpe") != (self.trials is not None):
            raise LaserError("--sampler tpe needs --trials N, how many points to train; --sampler grid trains all")
        if len(set(self.seeds)) < len(self.seeds):
            raise LaserError(f"--seeds {' '.join(map(str, self.seeds))} names a seed twice")

    @property
    def size(self) -> int:
        """Points that this search trains; TPE ends early when a finite space is used up."""
        lists = [len(one.choices) for one in self.over.values() if isinstance(one, CategoricalDistribution)]
        whole = [one.high - one.low + 1 for one in self.over.values() if isinstance(one, IntDistribution)]
        size = math.prod(lists + whole) if len(lists + whole) == len(self.over) else math.inf
        return min(self.trials or size, size)

    def runs(self, point: Point) -> dict[Path, Point]:
        """The point with each seed, by the folder of the run."""
        runs = [{**point, "seed": seed} for seed in self.seeds] or [point]
        return {self.folder / "runs" / name_of(run): run for run in runs}

    def file(self, point: Point, ending: str) -> Path:
        """A file of a point beside its runs: `log`, `lock` or `worker`."""
        return self.folder / "runs" / f"{name_of(point)}.{ending}"

    def arguments(self, run: Point, folder: Path | str) -> list[str]:
        """Arguments of laser-hf train for a run in `folder`."""
        varied = [f"--{name}={text_of(value)}" for name, value in run.items()]
        return ["--preset", self.preset, *self.fixed, *varied, f"--output_dir={folder}"]

    def identity(self) -> dict[str, Any]:
        """What must stay while points are added to one folder; the lists of a grid may change."""
        over = sorted(self.over) if self.sampler == "grid" else sorted(describe(*item) for item in self.over.items())
        search = {"over": over, "sampler": self.sampler, "seeds": list(self.seeds)}
        return {"search": search, "score": self.score.definition(), **self.recipe}


def parse_over(texts: Iterable[str], typed: Callable[[str, str], Value]) -> Space:
    """Read `name=v1,v2,...` and `name=low:high[:log]`; a range whose ends are whole numbers holds only such.

    `typed` gives the value that an option of laser-hf train (name) takes from a text. `LaserError` from it, for a text
    of another form, a name given twice, or an empty or impossible range.
    """
    space: Space = {}
    for text in texts:
        name, equals, given = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not name or not given:
            raise LaserError(f"--over {text}: expected name=v1,v2,... or name=low:high[:log]")
        if name in space:
            raise LaserError(f"--over names {name} twice; give all its values at once: {name}=v1,v2,...")
        try:
            space[name] = _distribution(given, partial(typed, name))
        except LaserError as error:
            raise LaserError(f"--over {text}: {error}") from error
    return space


def _distribution(given: str, typed: Callable[[str], Value]) -> Distribution:
    found = _RANGE.fullmatch(given)
    ends = [typed(end) for end in found.group(1, 2)] if found else []
    if not ends or not {*map(type, ends)} <= {int, float}:  # values, one of which may be a text with a colon
        parts = [part.strip() for part in given.split(",")]
        if "" in parts:
            raise LaserError("there is nothing between two commas or at an end")
        values = tuple(dict.fromkeys(map(typed, parts)))
        if not all(math.isfinite(value) for value in values if isinstance(value, float)):
            raise LaserError("expected finite numbers")
        return CategoricalDistribution(values)
    (low, high), log = ends, bool(found[3])
    if not low < high < math.inf:
        raise LaserError(f"the range is empty, {low} is not below {high}")
    if log and low <= 0:
        raise LaserError("a logarithmic range begins above 0")
    return (IntDistribution if isinstance(low, int) else FloatDistribution)(low, high, log=log)


def text_of(value: Value) -> str:
    """`value` as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe(name: str, distribution: Distribution) -> str:
    """An option and what it takes, as `--over` has it."""
    if isinstance(distribution, CategoricalDistribution):
        return f"{name}={','.join(map(text_of, distribution.choices))}"
    return f"{name}={distribution.low}:{distribution.high}{':log' if distribution.log else ''}"


def grid(space: Space) -> list[Point]:
    """All combinations of lists of values; the last option varies fastest."""
    lists = [distribution.choices for distribution in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def name_of(point: Mapping[str, Value]) -> str:
    """File name of a point, readable and of it alone: `sigma-1_alpha-0.15`; with a digest if that is not enough."""
    texts = {name: text_of(value) for name, value in point.items()}
    readable = "_".join(f"{name}-{_OTHER.sub('-', text)}" for name, text in texts.items())
    if len(readable) <= _LONGEST_NAME and not any(_OTHER.search(text) for text in texts.values()):
        return readable
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]
    return f"{readable[: _LONGEST_NAME - 9]}_{digest}"
