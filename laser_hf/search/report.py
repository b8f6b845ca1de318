"""What came out of a search: a table, a record, a picture, and the command that trains the best point."""

from __future__ import annotations

import shlex
from typing import Any

from optuna.trial import FrozenTrial

from ..records import new_record, portable
from .plan import PICTURE, Plan, Point, describe, text_of


def ranked(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Best first, equal scores by their parameters; what has no score last, failed before running."""
    by_point = sorted(trials, key=lambda trial: [(isinstance(value, str), value) for value in trial.params.values()])
    return sorted(by_point, key=lambda trial: (trial.value is None, trial.state.name, -(trial.value or 0.0)))


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The first of the table, if any point has a score."""
    return next((trial for trial in ranked(trials) if trial.value is not None), None)


def best_command(plan: Plan, point: Point) -> str:
    """The command that trains a point by itself; with several seeds the first of them."""
    run, *_ = plan.runs(point).values()
    return shlex.join(["laser-hf", "train", *map(portable, plan.arguments(run, "outputs/best"))])


def table(plan: Plan, trials: list[FrozenTrial]) -> str:
    """The Markdown of `search.md`: the same for the same results, whenever and in how many pieces they were made."""
    several = len(plan.seeds) > 1
    head = ["", *plan.over, plan.score.metric["metric"], *["std"] * several]
    rows = [head, ["---"] * len(head)]
    for rank, trial in enumerate(ranked(trials), start=1):
        said = [f"{score:.4f}" for score in (trial.value, trial.user_attrs.get("std")) if score is not None]
        if not said:
            reason = f"failed: {trial.user_attrs['reason']}" if trial.state.name == "FAIL" else "running"
            rank, said = "", [" ".join(reason.split()).replace("|", "\\|"), *[""] * several]
        rows.append([str(rank), *(text_of(trial.params[name]) for name in plan.over), *said])
    fixed = shlex.join(map(portable, plan.fixed))
    seeds = ", ".join(map(str, plan.seeds)) + (" (the score is their mean)" if several else "")
    lines = [
        f"# Search over {', '.join(plan.over)}\n",
        f"Score: {plan.score.title} (`{plan.score.metric['metric']}`) of the last layer; higher is better.",
        f"Chosen on: {portable(plan.score.chosen_on)}.",
        f"Preset: `{plan.preset}`. Fixed: {f'`{fixed}`' if fixed else 'nothing'}. Seeds: {seeds or 'of the preset'}.",
        f"Sampler: {plan.sampler}, {plan.size} points ({', '.join(describe(*item) for item in plan.over.items())}).\n",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if best := best_of(trials):
        folders = ", ".join(f"`runs/{folder.name}`" for folder in plan.runs(best.params))
        values = " ".join(f"{name}={text_of(value)}" for name, value in best.params.items())
        lines.append(f"\nBest: {values}, trained in {folders}. To train it by itself:\n")
        lines += ["```sh", best_command(plan, best.params), "```"]
    return "\n".join(lines) + "\n"


def record(plan: Plan, trials: list[FrozenTrial]) -> dict[str, Any]:
    """The content of `search.json`."""
    best, points = best_of(trials), []
    for trial in ranked(trials):
        about = {"params": trial.params, "state": trial.state.name.lower(), "value": trial.value, **trial.user_attrs}
        points.append(about | {"runs": [f"runs/{folder.name}" for folder in plan.runs(trial.params)]})
    return new_record(
        "search",
        recipe=plan.recipe,
        data=plan.score.data,
        seed=None,
        wall_seconds=sum(point.get("seconds", 0.0) for point in points),
        search={name: describe(name, distribution).partition("=")[2] for name, distribution in plan.over.items()},
        sampler={"name": plan.sampler, "trials": plan.trials},
        seeds=list(plan.seeds),
        preset=plan.preset,
        fixed=list(plan.fixed),
        score={**plan.score.definition(), "title": plan.score.title, "chosen_on": plan.score.chosen_on},
        points=points,
        best=best and {"params": best.params, "value": best.value, "command": best_command(plan, best.params)},
    )


def draw(plan: Plan, trials: list[FrozenTrial]) -> None:
    """The picture: a heat map of a grid over several options, otherwise a panel of dots for each option."""
    import pandas

    from .. import figures

    frame = pandas.DataFrame([{**trial.params, "value": trial.value} for trial in trials if trial.value is not None])
    if frame.empty:
        return
    metric = plan.score.metric["metric"]
    if plan.sampler == "grid" and len(plan.over) > 1:
        columns, rows, *others = sorted(plan.over, key=lambda name: -len(plan.over[name].choices))
        cells = frame.pivot_table("value", rows, columns, aggfunc="max")
        figure, axis = figures.new_figure(size=(max(5.4, 1 + cells.shape[1]), max(4.0, 1 + 0.6 * cells.shape[0])))
        image = axis.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
        for i, j in zip(*cells.notna().to_numpy().nonzero(), strict=True):
            colour = "w" if image.norm(cells.iat[i, j]) < 0.6 else "k"
            axis.text(j, i, f"{cells.iat[i, j]:.4f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(cells.shape[1]), map(text_of, cells.columns))
        axis.set_yticks(range(cells.shape[0]), map(text_of, cells.index))
        axis.set(xlabel=columns, ylabel=rows, title=f"best over {', '.join(others)}" if others else "")
        figure.colorbar(image, label=metric).formatter.set_useOffset(False)
    else:
        figure, (axes,) = figures.new_figure(1, len(plan.over), squeeze=False, sharey=True)
        for axis, (name, one) in zip(axes, plan.over.items(), strict=True):
            values = frame[name].map(text_of) if hasattr(one, "choices") else frame[name]
            dots = axis.scatter(values, frame["value"], c=frame.index, cmap="Blues", edgecolors="grey")
            axis.set(xlabel=name, xscale="log" if getattr(one, "log", False) else axis.get_xscale())
        axes[0].set_ylabel(metric)
        axes[0].yaxis.get_major_formatter().set_useOffset(False)
        figure.colorbar(dots, label="point")
    figures.save(figure, plan.folder / PICTURE, f"{plan.score.title}\n{plan.preset}, last layer")
