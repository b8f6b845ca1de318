"""What came out of a search: a table, a record, a picture, and the command that trains the best point."""

from __future__ import annotations

import shlex
import statistics
import warnings
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ..records import new_record, portable, write_json
from .space import Point, describe, label_of, text_of
from .study import PICTURE, RECORD, TABLE, Plan, SharedStudy


def write_report(study: SharedStudy) -> str:
    """Write the table, and when every point is done the record and the picture; return the table."""
    trials, folder = study.trials(), study.plan.folder
    text = table(study.plan, trials)
    with study.locked():
        (folder / TABLE).write_text(text, encoding="utf-8")
        if study.finished:
            write_json(folder / RECORD, record(study.plan, trials))
            draw(study.plan, trials)
    return text


def ranked(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Best first, equal scores by their parameters; what has no score last, failed before running."""

    def order(trial: FrozenTrial) -> tuple:
        point = tuple((isinstance(value, str), value) for value in trial.params.values())
        return trial.value is None, trial.state.name, -(trial.value or 0.0), point

    return sorted(trials, key=order)


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The first of the table, if any point has a score."""
    return next((trial for trial in ranked(trials) if trial.value is not None), None)


def deviation(trial: FrozenTrial) -> float | None:
    """Standard deviation over the seeds, with n - 1; `None` for a single seed."""
    values = trial.user_attrs.get("values", [])
    return statistics.stdev(values) if len(values) > 1 else None


def best_command(plan: Plan, point: Point, output_dir: str = "outputs/best") -> str:
    """The command that trains a point by itself; with several seeds the first of them."""
    seed = plan.seeds[0] if plan.seeds else None
    return shlex.join(["python", "train.py", *map(portable, plan.arguments(point, seed, output_dir))])


def table(plan: Plan, trials: list[FrozenTrial]) -> str:
    """The Markdown of `search.md`: the same for the same results, whenever and in how many pieces they were made."""
    several = len(plan.seeds) > 1
    rows = [["", *plan.over, plan.score.metric["metric"], *(["std"] if several else [])]]
    rows.append(["---"] * len(rows[0]))
    for rank, trial in enumerate(ranked(trials), start=1):
        cells = [text_of(trial.params[name]) for name in plan.over]
        if trial.value is not None:
            rows.append([str(rank), *cells, f"{trial.value:.4f}", *([f"{deviation(trial):.4f}"] if several else [])])
        else:
            said = {"FAIL": f"failed: {trial.user_attrs.get('reason')}"}.get(trial.state.name, "running")
            rows.append(["", *cells, " ".join(said.split()).replace("|", "\\|"), *([""] if several else [])])
    fixed = shlex.join(map(portable, plan.fixed))
    seeds = ", ".join(map(str, plan.seeds)) + (" (the score is their mean)" if several else "")
    lines = [
        f"# Search over {', '.join(plan.over)}",
        "",
        f"Score: {plan.score.title} (`{plan.score.metric['metric']}`) of the last layer; higher is better.",
        f"Chosen on: {portable(plan.score.chosen_on)}.",
        f"Preset: `{plan.preset}`. Fixed: {f'`{fixed}`' if fixed else 'nothing'}. Seeds: {seeds or 'of the preset'}.",
        f"Sampler: {plan.sampler}, {plan.size} points ({', '.join(describe(*item) for item in plan.over.items())}).",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    best = best_of(trials)
    if best is not None:
        folders = [f"`{folder.relative_to(plan.folder).as_posix()}`" for _, folder in plan.runs(best.params)]
        lines += ["", f"Best: {label_of(best.params)}, trained in {', '.join(folders)}. To train it by itself:"]
        lines += ["", "```sh", best_command(plan, best.params), "```"]
    return "\n".join(lines) + "\n"


def record(plan: Plan, trials: list[FrozenTrial]) -> dict[str, Any]:
    """The content of `search.json`."""
    best = best_of(trials)
    points = [
        {
            "params": trial.params,
            "state": trial.state.name.lower(),
            "value": trial.value,
            "std": deviation(trial),
            **trial.user_attrs,
            "runs": [folder.relative_to(plan.folder).as_posix() for _, folder in plan.runs(trial.params)],
        }
        for trial in ranked(trials)
    ]
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
    from .. import figures

    scored = [trial for trial in trials if trial.value is not None]
    if not scored:
        return
    title = f"{plan.score.title}\n{plan.preset}, last layer"
    if plan.sampler == "grid" and len(plan.over) > 1:
        figure = _heat_map(plan, scored)
    else:
        study = optuna.create_study(direction="maximize")
        study.add_trials(scored)
        with warnings.catch_warnings(), figures.plt.style.context([]):
            warnings.simplefilter("ignore")  # the function is experimental, and one value alone has no width
            axes = optuna.visualization.matplotlib.plot_slice(study, target_name=plan.score.metric["metric"])
        first = axes.flat[0] if len(plan.over) > 1 else axes
        first.yaxis.get_major_formatter().set_useOffset(False)
        if first is axes:  # a single panel has its title, several have that of the figure
            axes.set_title(title, fontsize=11)
            title = ""
        figure = first.figure
    figures.save(figure, plan.folder / PICTURE, title)


def _heat_map(plan: Plan, scored: list[FrozenTrial]):
    """The two options with most values; each cell is the best over the others."""
    import pandas

    from .. import figures

    columns, rows, *others = sorted(plan.over, key=lambda name: -len(plan.over[name].choices))
    frame = pandas.DataFrame([{**trial.params, "value": trial.value} for trial in scored])
    cells = frame.pivot_table("value", rows, columns, aggfunc="max")
    figure, axis = figures.new_figure(size=(max(5.4, 1 + cells.shape[1]), max(4.0, 1 + 0.6 * cells.shape[0])))
    image = axis.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    for i, j in zip(*cells.notna().to_numpy().nonzero(), strict=True):
        dark = image.norm(cells.iat[i, j]) < 0.6
        axis.text(j, i, f"{cells.iat[i, j]:.4f}", ha="center", va="center", color="w" if dark else "k", fontsize=8)
    axis.set_xticks(range(cells.shape[1]), map(text_of, cells.columns))
    axis.set_yticks(range(cells.shape[0]), map(text_of, cells.index))
    axis.set(xlabel=columns, ylabel=rows, title=f"best over {', '.join(others)}" if others else "")
    figure.colorbar(image, label=plan.score.metric["metric"]).formatter.set_useOffset(False)
    return figure
