"""Tables and pictures of the experiments, made from their record."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .plan import POINTS, Point

Runs = list[dict[str, Any]]
QBE = "mean_average_precision test"
TEST = "test-other-100"


def runs_of(record: dict[str, Any], one: Point) -> Runs:
    """The runs of a point, by seed."""
    return [run for run in record["runs"] if run["point"] == one.name]


def values(runs: Runs, stage: str, key: str) -> list[float]:
    """One value from each run that has it."""
    return [run[stage][key] for run in runs if key in run.get(stage, {})]


def spread(found: Sequence[float], digits: int) -> str:
    """Mean, and the sample standard deviation of several values; empty without values."""
    if not found:
        return ""
    mean = f"{statistics.mean(found):.{digits}f}"
    return mean if len(found) < 2 else f"{mean} ± {statistics.stdev(found):.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def curve_end(runs: Runs, name: str, digits: int) -> str:
    """Last value of a held-out curve, over the seeds."""
    ends = [run["train"]["curves"][name][-1][1] for run in runs if name in run.get("train", {}).get("curves", {})]
    return spread(ends, digits)


def collapse_table(record: dict[str, Any]) -> str:
    """Like the paper's Table 3."""
    rows = []
    for one in POINTS:
        runs = runs_of(record, one)
        if "collapse" not in one.tables or not runs:
            continue
        fired = [run["train"]["collapse_at"] for run in runs if "train" in run]
        alarm = "" if not fired else ", ".join("no" if step is None else f"update {step}" for step in fired)
        rows.append(
            [
                one.label,
                spread(values(runs, "qbe", QBE), 4),
                curve_end(runs, "eval_soft_dtw", 1),
                curve_end(runs, "eval_frame_cosine", 2),
                curve_end(runs, "eval_effective_rank", 1),
                alarm,
            ]
        )
    header = [
        "", "QbE, mean average precision", "held-out soft-DTW", "mean cosine of frames", "effective rank",
        "collapse alarm, by seed",
    ]  # fmt: skip
    return table(header, rows)


def methods_table(record: dict[str, Any]) -> str:
    """Like the paper's Tables 1 and 2."""
    rows = []
    for one in POINTS:
        runs = runs_of(record, one)
        if "methods" not in one.tables or not runs:
            continue
        rows.append(
            [
                one.method or one.label,
                spread(values(runs, "train", "processed_hours"), 2),
                spread(values(runs, "pr", f"per {TEST}"), 2),
                spread(values(runs, "asr", f"wer {TEST}"), 1),
                spread(values(runs, "asr", f"cer {TEST}"), 1),
                spread(values(runs, "qbe", QBE), 4),
                " / ".join(str(sum(stage in run for run in runs)) for stage in ("pr", "asr", "qbe")),
            ]
        )
    header = [
        "", "hours processed", "PER, %", "WER, %", "CER, %", "QbE, mean average precision", "runs: PER / WER / QbE",
    ]  # fmt: skip
    return table(header, rows)


def sensitivity_table(record: dict[str, Any]) -> str:
    """What changes with one value of the recipe; differences are between runs with the same seed."""
    rows = []
    for one in POINTS:
        runs = [run for run in runs_of(record, one) if QBE in run.get("qbe", {})]
        if not one.group or not runs:
            continue
        differences = paired(record, one, "laser", "qbe", QBE)
        rows.append(
            [
                one.group,
                "" if one.name == "laser" else one.label,
                spread(values(runs, "qbe", QBE), 4),
                "" if one.name == "laser" else signed(differences),
                over_words(record, one.name, "laser"),
                curve_end(runs, "eval_frame_cosine", 2),
                curve_end(runs, "eval_effective_rank", 0),
                str(len(runs)),
            ]
        )
    header = [
        "varied (preset)", "value", "QbE, mean average precision", "against the preset", "the same, 95 % over words",
        "mean cosine of frames", "effective rank", "runs",
    ]  # fmt: skip
    return table(header, rows)


def signed(differences: Sequence[float], digits: int = 4) -> str:
    """Mean difference, and its standard error over several."""
    if not differences:
        return ""
    mean = f"{statistics.mean(differences):+.{digits}f}"
    if len(differences) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(differences) / math.sqrt(len(differences)):.{digits}f}"


def paired(record: dict[str, Any], one: Point, other: str, stage: str, key: str) -> list[float]:
    """Differences of one value between runs of two points that have the same seed."""
    reference = {run["seed"]: run.get(stage, {}) for run in record["runs"] if run["point"] == other}
    return [
        run[stage][key] - reference[run["seed"]][key]
        for run in runs_of(record, one)
        if key in run.get(stage, {}) and key in reference.get(run["seed"], {})
    ]


def gains_table(record: dict[str, Any]) -> str:
    """Error rates minus those of the encoder as it is, with CTC heads of the same seed; lower is better."""
    rows = [
        [
            one.method or one.label,
            *(
                signed(paired(record, one, "base", stage, f"{rate} {TEST}"), 2)
                for stage, rate in (("pr", "per"), ("asr", "wer"), ("asr", "cer"))
            ),
        ]
        for one in POINTS
        if "methods" in one.tables and one.trained and runs_of(record, one)
    ]
    return table(["against the encoder as it is, CTC heads with the same seed", "PER, %", "WER, %", "CER, %"], rows)


def words_table(record: dict[str, Any]) -> str:
    """Both halves of the words, best on the first half first, and the difference from the encoder as it is."""
    rows = []
    for one in POINTS:
        found = record["words"]["points"].get(one.name)
        if found:
            name = one.method or (one.label if one.name == "laser" or not one.group else f"{one.group}: {one.label}")
            row = [name, f"{found['choose']:.4f}", f"{found['report']:.4f}"]
            row += [over_words(record, one.name, "base", part) for part in ("report", "all")]
            rows.append((found["choose"], row))
    halves = record["words"]["halves"]
    header = [
        "", f"words to choose on ({halves['choose']})", f"words to report on ({halves['report']})",
        "these against the encoder as it is", "all words against it",
    ]  # fmt: skip
    return table(header, [row for _, row in sorted(rows, key=lambda pair: -pair[0])])


def over_words(record: dict[str, Any], name: str, other: str, part: str = "all") -> str:
    """Difference of two points with its 95 % interval over words, in bold if that leaves out zero."""
    found = record["words"]["points"].get(name, {}).get("against", {}).get(other)
    if not found:
        return ""
    mean, low, high = found[part]
    text = f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def how(record: dict[str, Any]) -> str:
    """Seeds, hardware and commits of the runs."""
    hardware = "; ".join(sorted({f"{one['processor']}, {one['cores']} cores" for one in record["hardware"]}))
    seeds = sorted({run["seed"] for run in record["runs"]})
    commits = ", ".join(f"`{commit[:10]}`" for commit in record["commits"])
    return (
        f"Seeds {', '.join(map(str, seeds))}; ± is the standard deviation over seeds, of differences the standard "
        f"error. {hardware}. Commits {commits}."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "collapse": collapse_table,
    "methods": methods_table,
    "gains": gains_table,
    "sensitivity": sensitivity_table,
    "words": words_table,
    "how": how,
}


def draw(record: dict[str, Any], path: Path) -> None:
    """Held-out curves of the points of the collapse table, one line for each seed."""
    from laser_hf import figures

    panels = {
        "eval_soft_dtw": "normalised soft-DTW (held out)",
        "eval_frame_cosine": "mean pairwise cosine of frames",
        "eval_effective_rank": "effective rank of frames",
    }
    figure, axes = figures.new_figure(1, len(panels))
    shown = [one for one in POINTS if "collapse" in one.tables and one.trained]
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        for one, colour in zip(shown, figures.LINE_COLOURS, strict=False):
            curves = [run["train"]["curves"][name] for run in runs_of(record, one) if name in run["train"]["curves"]]
            for index, curve in enumerate(curves):
                label_once = one.label if index == 0 else None
                axis.plot(*zip(*curve, strict=True), color=colour, marker=".", label=label_once)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figures.save(figure, path, "The shipped encoder on Mini-LibriSpeech, four speakers held out; one line a seed")
