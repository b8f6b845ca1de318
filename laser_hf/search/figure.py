"""The picture of a search: a line for one option, a heat map for two, several heat maps for three."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .plan import Plan
from .results import Result
from .space import Range, Value, is_number

_MOST_CELLS = 12  # values of an option in a heat map; more are drawn as dots
_MOST_PANELS = 6


def draw(plan: Plan, results: list[Result], path: Path) -> bool:
    """Draw the scores of a search; `False` if no point has one.

    One option: a line with the standard deviation over seeds. Two: a heat map. Three, where the one with fewest values
    has at most six: a heat map for each of those. Else the two with most values, each cell the best over the others.
    """
    scored = [result for result in results if result.value is not None]
    if not scored:
        return False
    names = sorted(plan.names, key=lambda name: -len(_values(results, name)))  # stable: else as on the command line
    figure = _line(plan, scored, names[0]) if len(names) == 1 else _maps(plan, scored, names)
    figure.suptitle(f"{plan.scored['name']}\n{plan.preset}, last layer", fontsize=10)
    half = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(half, dpi=110)
    plt.close(figure)
    os.replace(half, path)
    return True


def _values(results: Sequence[Result], name: str) -> list[Value]:
    """Different values of an option, numbers in order before texts."""
    found = {result.params[name] for result in results}
    return sorted(found, key=lambda value: (not is_number(value), value if is_number(value) else 0, str(value)))


def _text(value: Value) -> str:
    return f"{value:.4g}" if is_number(value) else str(value)


def _is_log(plan: Plan, name: str) -> bool:
    return any(isinstance(d, Range) and d.name == name and d.log for d in plan.over)


def _line(plan: Plan, scored: list[Result], name: str):
    from .report import deviation

    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")
    values = _values(scored, name)
    by_value = {result.params[name]: result for result in scored}
    numbers = all(is_number(value) for value in values)
    places = values if numbers else range(len(values))
    axis.errorbar(
        list(places),
        [by_value[value].value for value in values],
        yerr=[deviation(by_value[value]) or 0.0 for value in values],
        marker="o",
        capsize=3,
    )
    if not numbers:
        axis.set_xticks(list(places), [_text(value) for value in values])
    if _is_log(plan, name):
        axis.set_xscale("log")
    axis.set_xlabel(name)
    axis.set_ylabel(plan.scored["metric"])
    axis.grid(alpha=0.3)
    return figure


def _maps(plan: Plan, scored: list[Result], names: list[str]):
    low, high = min(result.value for result in scored), max(result.value for result in scored)
    columns, rows = names[:2]
    panels: list[tuple[str, list[Result]]] = [(_best_over(names[2:]), scored)]
    if len(names) == 3 and len(_values(scored, names[2])) <= _MOST_PANELS:
        panels = [
            (f"{names[2]} = {_text(value)}", [result for result in scored if result.params[names[2]] == value])
            for value in _values(scored, names[2])
        ]
    wide = min(3, len(panels))
    tall = math.ceil(len(panels) / wide)
    figure, axes = plt.subplots(tall, wide, figsize=(4.4 * wide + 1, 3.9 * tall), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    xs, ys = _values(scored, columns), _values(scored, rows)
    for axis, (title, results) in zip(axes.flat, panels, strict=False):
        if len(xs) > _MOST_CELLS or len(ys) > _MOST_CELLS:
            image = _dots(plan, axis, results, columns, rows, low, high)
        else:
            image = _cells(axis, results, (columns, xs), (rows, ys), low, high)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(columns)
        axis.set_ylabel(rows)
    figure.colorbar(image, ax=axes, label=plan.scored["metric"]).formatter.set_useOffset(False)
    return figure


def _best_over(others: list[str]) -> str:
    return f"best over {', '.join(others)}" if others else ""


def _cells(axis, results: list[Result], x: tuple[str, list[Value]], y: tuple[str, list[Value]], low, high):
    (columns, xs), (rows, ys) = x, y
    best = [[math.nan] * len(xs) for _ in ys]
    for result in results:
        i, j = ys.index(result.params[rows]), xs.index(result.params[columns])
        best[i][j] = max(result.value, -math.inf if math.isnan(best[i][j]) else best[i][j])
    image = axis.imshow(best, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for i, line in enumerate(best):
        for j, value in enumerate(line):
            if not math.isnan(value):
                dark = value < low + 0.6 * (high - low)
                axis.text(j, i, f"{value:.4f}", ha="center", va="center", color="w" if dark else "k", fontsize=8)
    axis.set_xticks(range(len(xs)), [_text(value) for value in xs])
    axis.set_yticks(range(len(ys)), [_text(value) for value in ys])
    return image


def _dots(plan: Plan, axis, results: list[Result], columns: str, rows: str, low, high):
    for name, scale in ((columns, axis.set_xscale), (rows, axis.set_yscale)):
        if _is_log(plan, name):
            scale("log")
    axis.grid(alpha=0.3)
    results = sorted(results, key=lambda result: result.value)  # the best on top
    places = [[_place(result.params[name]) for result in results] for name in (columns, rows)]
    return axis.scatter(*places, c=[result.value for result in results], cmap="viridis", vmin=low, vmax=high)


def _place(value: Value) -> int | float | str:
    return value if is_number(value) else str(value)
