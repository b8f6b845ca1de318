"""What came out of a search: `search.json`, `search.md` and the command that trains the best point."""

from __future__ import annotations

import os
import shlex
import statistics
from pathlib import Path
from typing import Any

from ..records import portable, provenance, write_json
from .plan import Plan
from .results import Result
from .space import Point, label_of, text_of

RECORD, TABLE, PICTURE = "search.json", "search.md", "heatmap.png"


def ranked(results: list[Result]) -> list[Result]:
    """Best first; equal scores by their parameters; what has no score last, failed before running before waiting."""
    states = ("complete", "failed", "running", "waiting")

    def order(result: Result) -> tuple:
        point = tuple((isinstance(v, str), v) for v in result.params.values())
        return states.index(result.state), -(result.value or 0.0), point

    return sorted(results, key=order)


def deviation(result: Result) -> float | None:
    """Standard deviation over the seeds, with n - 1; `None` for a single seed."""
    return statistics.stdev(result.values) if len(result.values) > 1 else None


def best_command(plan: Plan, point: Point, output_dir: str = "outputs/best") -> str:
    """The command that trains a point by itself; with several seeds the first of them."""
    seed = plan.seeds[0] if plan.seeds else None
    return shlex.join(["python", "train.py", *map(portable, plan.arguments(point, seed, output_dir))])


def table(plan: Plan, results: list[Result]) -> str:
    """The Markdown of `search.md`: the same for the same results, whenever and in how many pieces they were made."""
    names, several = plan.names, len(plan.seeds) > 1
    rows = [["", *names, plan.scored["metric"], *(["std"] if several else [])]]
    for rank, result in enumerate(ranked(results), start=1):
        parameters = [text_of(result.params[name]) for name in names]
        if result.state == "complete":
            deviations = [f"{deviation(result):.4f}"] if several else []
            rows.append([str(rank), *parameters, f"{result.value:.4f}", *deviations])
        else:
            said = result.state + (f": {result.reason}" if result.reason else "")
            rows.append(["", *parameters, " ".join(said.split()).replace("|", "\\|"), *([""] if several else [])])
    lines = [
        f"# Search over {', '.join(names)}",
        "",
        f"Score: {plan.scored['name']} (`{plan.scored['metric']}`) of the last layer; higher is better.",
        f"Chosen on: {portable(plan.scored['chosen_on'])}.",
        f"Preset: `{plan.preset}`. Fixed: {_code(shlex.join(map(portable, plan.fixed)))}. Seeds: {_seeds(plan)}.",
        f"Sampler: {plan.sampler}, {plan.size} points ({', '.join(map(str, plan.over))}).",
        "",
        *_markdown(rows),
    ]
    best = best_of(results)
    if best is not None:
        folders = [folder.relative_to(plan.folder).as_posix() for _, folder in plan.runs(best.params)]
        lines += [
            "",
            f"Best: {label_of(best.params)}, trained in {', '.join(f'`{folder}`' for folder in folders)}. To train it "
            "by itself:",
            "",
            "```sh",
            best_command(plan, best.params),
            "```",
        ]
    return "\n".join(lines) + "\n"


def best_of(results: list[Result]) -> Result | None:
    """The first of the table, if any point has a score."""
    first = ranked(results)[:1]
    return first[0] if first and first[0].state == "complete" else None


def _code(text: str) -> str:
    return f"`{text}`" if text else "nothing"


def _seeds(plan: Plan) -> str:
    if not plan.seeds:
        return "the preset's own"
    return ", ".join(map(str, plan.seeds)) + (" (the score is their mean)" if len(plan.seeds) > 1 else "")


def _markdown(rows: list[list[str]]) -> list[str]:
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def record(plan: Plan, results: list[Result]) -> dict[str, Any]:
    """The content of `search.json`."""
    best = best_of(results)
    return {
        "search": portable({dimension.name: str(dimension).partition("=")[2] for dimension in plan.over}),
        "preset": plan.preset,
        "fixed": [portable(word) for word in plan.fixed],
        "recipe": plan.recipe,
        "sampler": {"name": plan.sampler, "trials": plan.trials, "seed": plan.sampler_seed},
        "seeds": list(plan.seeds),
        "score": portable(plan.scored),
        "points": [
            {
                "params": result.params,
                "state": result.state,
                "value": result.value,
                "std": deviation(result),
                "values": result.values,
                "reason": result.reason,
                "seconds": result.seconds,
                "runs": [folder.relative_to(plan.folder).as_posix() for _, folder in plan.runs(result.params)],
            }
            for result in ranked(results)
        ],
        "best": best and {"params": best.params, "value": best.value, "command": best_command(plan, best.params)},
        **provenance(),
    }


def write_table(plan: Plan, results: list[Result]) -> None:
    """`search.md`, whole or not at all."""
    replace_text(plan.folder / TABLE, table(plan, results))


def write_record(plan: Plan, results: list[Result]) -> None:
    """`search.json`."""
    write_json(plan.folder / RECORD, record(plan, results))


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    half = path.with_name(f".{path.name}.tmp")
    half.write_text(text)
    os.replace(half, path)
