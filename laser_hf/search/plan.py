"""What a search is: what is varied, what is fixed, what is scored; and whether two of them are the same one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import SearchError
from .space import Choice, Dimension, Point, folder_of, grid, size_of, text_of

SAMPLERS = ("grid", "tpe")


@dataclass(frozen=True)
class Plan:
    """One search.

    Attributes:
        folder: where study, runs and tables go.
        preset: of train.py.
        fixed: further arguments of train.py, the same for all points.
        over: what is varied.
        sampler: "grid" trains all points, "tpe" draws `trials` of them, the later ones near good ones.
        trials: points of "tpe".
        seeds: every point is trained with each; empty for the preset's own.
        score: as JSON, `score.from_job` reads it.
        scored: definition of the score, from its `describe()`.
        recipe: what decides the result of all points alike.
        sampler_seed: of the points that "tpe" draws.
        retry_failed: train failed points again.
        keep_checkpoints: leave the checkpoints of finished runs.
    """

    folder: Path
    preset: str
    fixed: tuple[str, ...]
    over: tuple[Dimension, ...]
    score: dict[str, Any]
    scored: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    sampler: str = "grid"
    trials: int | None = None
    seeds: tuple[int, ...] = ()
    sampler_seed: int = 0
    retry_failed: bool = False
    keep_checkpoints: bool = False

    def __post_init__(self):
        if not self.over:
            raise SearchError("nothing is varied; give --over name=v1,v2,...")
        ranges = [dimension for dimension in self.over if not isinstance(dimension, Choice)]
        if self.sampler == "grid" and ranges:
            raise SearchError(
                f"--over {ranges[0]} is a range, and --sampler grid trains every value of a list: give a list "
                f"({ranges[0].name}=v1,v2,...), or use --sampler tpe --trials N"
            )
        if self.sampler == "grid" and self.trials is not None:
            raise SearchError(
                f"--trials is for --sampler tpe; the grid trains all its {int(size_of(self.over))} points"
            )
        if self.sampler == "tpe" and (self.trials is None or self.trials < 1):
            raise SearchError("--sampler tpe needs --trials N, how many points to train")
        if len(set(self.seeds)) < len(self.seeds):
            raise SearchError(f"--seeds {' '.join(map(str, self.seeds))} names a seed twice")

    @property
    def base(self) -> list[str]:
        """Arguments of train.py that all runs share."""
        return ["--preset", self.preset, *self.fixed]

    @property
    def names(self) -> list[str]:
        """Options that are varied."""
        return [dimension.name for dimension in self.over]

    @property
    def size(self) -> int:
        """Points that this search trains."""
        size = size_of(self.over)
        return int(size if self.trials is None else min(self.trials, size))

    def grid(self) -> list[Point]:
        """Its points, of a grid."""
        return grid(self.over)

    def runs(self, point: Point) -> list[tuple[int | None, Path]]:
        """Seed and folder of each run of a point."""
        several = len(self.seeds) > 1
        return [
            (seed, self.folder / "runs" / folder_of(point, seed if several else None)) for seed in self.seeds or (None,)
        ]

    def arguments(self, point: Point, seed: int | None, folder: Path | str) -> list[str]:
        """Arguments of train.py for one run; without `seed` that of preset and fixed options."""
        varied = [f"--{name}={text_of(value)}" for name, value in point.items()]
        return [*self.base, *varied, *([] if seed is None else [f"--seed={seed}"]), f"--output_dir={folder}"]

    def identity(self) -> dict[str, Any]:
        """What must not change while points are added to one study."""
        return {
            "over": [dimension.describe() for dimension in self.over],
            "sampler": {"name": self.sampler, **({"seed": self.sampler_seed} if self.sampler == "tpe" else {})},
            "seeds": list(self.seeds),
            "score": {key: value for key, value in self.scored.items() if key not in ("source", "chosen_on")},
            "recipe": self.recipe,
        }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words; values added to a grid are no change."""
    found = []
    old = {entry["name"]: entry for entry in before["over"]}
    new = {entry["name"]: entry for entry in now["over"]}
    may_grow = before["sampler"] == now["sampler"] and now["sampler"]["name"] == "grid"
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new or name not in old:
            found.append(f"--over {name} is {'new' if name in new else 'gone'}")
        elif old[name] != new[name]:
            grown = may_grow and set(old[name]["values"]) <= set(new[name]["values"])
            if not grown:
                found.append(f"--over {_over(old[name])} -> {_over(new[name])}")
    moved = set(old) ^ set(new)  # these have left or entered the recipe
    for part in ("sampler", "seeds", "score", "recipe"):
        was, is_now = _flat(before[part]), _flat(now[part])
        for path in sorted({*was, *is_now}):
            name = path.rpartition(".")[2]
            if was.get(path) != is_now.get(path) and not (part == "recipe" and name in moved):
                title = f"--{name}" if part == "recipe" else f"{part} {path}".strip()
                found.append(f"{title} {was.get(path)} -> {is_now.get(path)}")
    return found


def _over(entry: dict[str, Any]) -> str:
    if "values" in entry:
        return f"{entry['name']}={','.join(map(str, entry['values']))}"
    return f"{entry['name']}={entry['low']}:{entry['high']}{':log' if entry['log'] else ''}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{path}.{key}".lstrip("."))
    return flat
