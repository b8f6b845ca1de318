"""Record, tests and tables of the second round, as `PLAN.md` fixes them.

python -m experiments.second outputs/experiments --qbe qbe
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from laser_hf.data.files import read_table
from laser_hf.records import read_json, read_record, write_json

from . import words
from .collect import training
from .plan import DEV_SPLIT, SECOND, TEST_SPLIT, Point
from .run import DONE, folder, seeds_of
from .tables import spread, table

RECORD = Path(__file__).resolve().parent / "records" / "second_round.json"
ENCODERS = ("plain", "shipped")
TESTS = (
    ("T1", "LASER, alpha 1, above the encoder as it is", "{}-laser-1-perturbed", "{}"),
    ("T2", "LASER, alpha 1, above the same with equal views", "{}-laser-1-perturbed", "{}-laser-1-equal"),
    ("T3", "LASER, alpha 1, above IDM alone, alpha 1", "{}-laser-1-perturbed", "{}-idm-1-perturbed"),
    ("T4", "LASER, alpha 1: speaker accuracy below the encoder as it is", "{}-laser-1-perturbed", "{}"),
)
"""Primary tests: number, claim, point, point that it is compared with."""
SMALL = 0.05
NOT_RUN = "Not run yet."
Record = dict[str, Any]


def collect(output_dir: Path, queries: Path) -> Record:
    """Results of every run of the second round that has finished, and the tests on them.

    Args:
        output_dir: as given to experiments.run.
        queries: the `queries.tsv` with word, speaker and recording of every query.
    """
    rows = {row["query"]: row for _, row in read_table(queries, ("query", "word", "speaker", "audio"))}
    sets = {
        name: [query for query, row in rows.items() if f"/{split}/" in f"/{row['audio']}"]
        for name, split in (("report", TEST_SPLIT), ("choose", DEV_SPLIT))
    }
    about: Record = {"commits": [], "versions": [], "hardware": []}
    runs = []
    for one in SECOND:
        for seed in one.seeds:
            found = {}
            for stage in one.stages:
                if seed not in seeds_of(one, stage, list(one.seeds)):
                    continue
                path = folder(output_dir, one, seed) / DONE[stage]
                if path.is_file():
                    record = read_record(path)
                    found[stage] = _stage(stage, record, path.parent, sets)
                    for key in about:
                        value = record[key.removesuffix("s") if key == "commits" else key]
                        if value not in about[key]:
                            about[key].append(value)
            if found:
                runs.append({"point": one.name, "seed": seed, **found})
    report = [{key: rows[query][key] for key in ("query", "word", "speaker")} for query in sets["report"]]
    record = {"what": "second round of experiments (experiments/PLAN.md)", "queries": report, "runs": runs, **about}
    return record | {"tests": tests(record)}


def _stage(stage: str, record: Record, where: Path, sets: dict[str, list[str]]) -> Record:
    """What the record of one stage holds of the plan's measures, of the last layer where nothing else is said."""
    metrics = record.get("metrics", [])
    if stage == "train":
        found = training(record, read_json(where / "training_log.json")["log"])
        return {key: value for key, value in found.items() if key != "command"}  # with paths of a machine
    if stage == "qbe":
        found = words.precisions(where / "scores.tsv")
        means = {name: float(np.mean([found[query] for query in sets[name]])) for name in sets}
        all_queries = next(one["value"] for one in metrics if one["metric"] == "mean_average_precision")
        precisions = [round(found[query], 6) for query in sets["report"]]
        return means | {"all": all_queries, "precisions": precisions}
    if stage == "sid":
        names = {"last_layer_accuracy": "last_layer", "accuracy": "weighted"}
        values = {names[one["metric"]]: one["value"] for one in reversed(metrics) if one["metric"] in names}
        return values | {"right": record["last_layer_right"], "chance": record["chance"]}
    if stage == "layers":
        by_layer: dict[str, dict[int, Any]] = {}
        for one in metrics:
            if one["metric"] in ("mean_average_precision", "perturbed_mean_average_precision"):
                by_layer.setdefault(one["metric"], {})[one["layer"]] = one["value"]
        return {name: [values[layer] for layer in sorted(values)] for name, values in by_layer.items()}
    if stage == "words":
        last = max(one["layer"] for one in metrics)
        return {one["metric"]: one["value"] for one in metrics if one["layer"] == last}
    return {one["metric"]: one["value"] for one in metrics if one["split"] == TEST_SPLIT}


def runs_of(record: Record, point: str, stage: str) -> dict[int, Record]:
    """Results of a stage by seed."""
    return {run["seed"]: run[stage] for run in record["runs"] if run["point"] == point and stage in run}


def differences(record: Record, stage: str, key: str, point: str, other: str) -> np.ndarray | None:
    """Values `(seeds, items)` of one point minus those of another with the same seed, or with its only one.

    `None` if there is no such pair of runs. Items are queries, or stretches of speech grouped by speaker.
    """
    first, second = runs_of(record, point, stage), runs_of(record, other, stage)
    if len(second) == 1 and stage == "qbe" and not any(one.trained for one in SECOND if one.name == other):
        second = dict.fromkeys(first, *second.values())
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return np.array([np.subtract(_values(first[seed], key), _values(second[seed], key)) for seed in seeds])


def _values(found: Record, key: str) -> list[float]:
    if key == "precisions":
        return found[key]
    return [100 * right / every for _, (right, every) in sorted(found[key].items())]


def compare(record: Record, test: str, point: str, other: str) -> words.Comparison | None:
    """The difference of two points in the measure of a test, `None` without runs."""
    stage, key = ("sid", "right") if test == "T4" else ("qbe", "precisions")
    found = differences(record, stage, key, point, other)
    if found is None:
        return None
    if test == "T4":
        return words.compare(found, sorted(next(iter(runs_of(record, point, stage).values()))["right"]))
    return words.compare(found, *([query[key] for query in record["queries"]] for key in ("speaker", "word")))


def tests(record: Record) -> list[Record]:
    """The primary tests whose runs are there, with Holm's correction over all eight."""
    found = []
    for encoder in ENCODERS:
        for number, claim, point, other in TESTS:
            comparison = compare(record, number, point.format(encoder), other.format(encoder))
            if comparison:
                seeds = len(differences(record, "qbe", "precisions", point.format(encoder), other.format(encoder)))
                found.append({"test": number, "encoder": encoder, "claim": claim, "seeds": seeds, **vars(comparison)})
    # A test that was not made counts as one that failed.
    missing = len(ENCODERS) * len(TESTS) - len(found)
    corrected = words.holm([one["p"] for one in found] + [1.0] * missing)
    for one, p in zip(found, corrected, strict=False):
        sign = -1 if one["test"] == "T4" else 1
        one |= {"holm": p, "holds": p < SMALL and sign * one["effect"] > 0}
    return found


def tests_table(record: Record) -> str:
    """The primary tests and their verdicts."""
    rows = []
    for one in record["tests"]:
        digits, unit = (1, " points") if one["test"] == "T4" else (4, "")
        effect = f"{one['effect']:+.{digits}f}{unit} ({one['low']:+.{digits}f} … {one['high']:+.{digits}f})"
        p = [f"{one[key]:.4f}" for key in ("p", "holm")]
        verdict = "**holds**" if one["holds"] else "not shown"
        rows.append([one["test"], one["encoder"], one["claim"], effect, *p, str(one["seeds"]), verdict])
    header = ["", "encoder", "claim", "difference (95 %)", "p", "p, corrected", "seeds", "verdict"]
    return table(header, rows)


def design_table(record: Record, encoder: str) -> str:
    """Every method and kind of views on one encoder."""
    rows = []
    for one in SECOND:
        qbe = runs_of(record, one.name, "qbe")
        if "design" not in one.tables or one.encoder != encoder or not qbe:
            continue
        comparison = compare(record, "T1", one.name, encoder) if one.name != encoder else None
        sid, discrimination = (runs_of(record, one.name, stage) for stage in ("sid", "words"))
        trained = runs_of(record, one.name, "train")
        rows.append(
            [
                one.label, one.group, _mean(qbe, "report", 4), _interval(comparison), _mean(qbe, "choose", 4),
                _mean(discrimination, "word_ap_across", 4), _mean(discrimination, "abx_across", 4),
                _mean(sid, "last_layer", 1), _relative(trained, "eval_soft_dtw"), _relative(trained, "eval_idm"),
                ", ".join("no" if run["collapse_at"] is None else str(run["collapse_at"]) for run in trained.values()),
                str(len(qbe)),
            ]
        )  # fmt: skip
    header = [
        "", "views", "QbE, MAP, test-other", "against the encoder as it is (95 %)", "QbE, MAP, held-out clean",
        "words across speakers, AP", "ABX error across speakers", "speaker accuracy, %", "held-out soft-DTW, × start",
        "held-out IDM, × start", "alarm at update", "seeds",
    ]  # fmt: skip
    return table(header, rows)


def _mean(found: dict[int, Record], key: str, digits: int) -> str:
    return spread([one[key] for one in found.values() if key in one], digits)


def _interval(comparison: words.Comparison | None) -> str:
    if comparison is None:
        return ""
    return f"{comparison.effect:+.4f} ({comparison.low:+.4f} … {comparison.high:+.4f})"


def _relative(trained: dict[int, Record], name: str) -> str:
    """The last held-out value over that before the first update; nothing where that is zero but for rounding."""
    ends = [(curve[0][1], curve[-1][1]) for one in trained.values() if (curve := one["curves"].get(name))]
    return spread([last / first for first, last in ends if first > 1e-3 * last], 2)


def heads_table(record: Record) -> str:
    """Phone and character error rates, precision by layer and with perturbed queries: one seed."""
    rows = []
    for one in SECOND:
        layers = runs_of(record, one.name, "layers")
        rates = [_mean(runs_of(record, one.name, stage), key, 1) for stage, key in (("pr", "per"), ("asr", "cer"))]
        if not layers and not any(rates):
            continue
        found = next(iter(layers.values()), {})
        by_layer = " / ".join(f"{value:.3f}" for value in found.get("mean_average_precision", []))
        last = [f"{found[key][-1]:.4f}" for key in ("perturbed_mean_average_precision",) if key in found] or [""]
        rows.append([one.encoder, one.label, one.group, *rates, by_layer, *last])
    header = [
        "encoder", "", "views", "PER, %", "CER, %", "QbE, MAP by hidden state (all queries)",
        "perturbed queries, last",
    ]  # fmt: skip
    return table(header, rows) if rows else NOT_RUN


def rates_table(record: Record) -> str:
    """LASER at alpha 1 on `plain` by learning rate and updates, one seed."""
    rows = []
    for one in SECOND:
        qbe = runs_of(record, one.name, "qbe")
        if "rates" in one.tables and qbe:
            interval = _interval(compare(record, "T1", one.name, one.encoder))
            rows.append([one.label, one.group, _mean(qbe, "choose", 4), _mean(qbe, "report", 4), interval])
    header = [
        "learning rate", "updates", "QbE, MAP, held-out clean (to choose on)", "QbE, MAP, test-other",
        "against the encoder as it is (95 %)",
    ]  # fmt: skip
    return table(header, rows) if rows else NOT_RUN


def how(record: Record) -> str:
    """Hardware and commits of the runs, and the cells of the plan that have fewer seeds than planned."""
    hardware = "; ".join(sorted({f"{one['processor']}, {one['cores']} cores" for one in record["hardware"]}))
    commits = ", ".join(f"`{commit[:10]}`" for commit in record["commits"])
    counts = {one.name: len(runs_of(record, one.name, "qbe")) for one in SECOND}
    none, fewer = ([one for one in SECOND if _short(one, counts[one.name], some)] for some in (False, True))
    text = f"{hardware}. Commits {commits}; ± is the standard deviation over seeds."
    text += f" Not run: {_names(none)}." if none else " Every cell of the plan was run."
    return text + (f" Fewer seeds than planned: {_names(fewer)}." if fewer else "")


def _short(one: Point, runs: int, some: bool) -> bool:
    return 0 < runs < len(one.seeds) and one.trained if some else runs == 0


def _names(points: Sequence[Point]) -> str:
    return ", ".join(f"`{one.name}`" for one in points)


TABLES = {
    "tests": tests_table,
    "plain": lambda record: design_table(record, "plain"),
    "shipped": lambda record: design_table(record, "shipped"),
    "heads": heads_table,
    "rates": rates_table,
    "how": how,
}


def main(argv: list[str] | None = None) -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.second", description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="as given to experiments.run")
    parser.add_argument("--qbe", type=Path, required=True, help="folder with queries.tsv, as given to experiments.run")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file to write")
    arguments = parser.parse_args(argv)
    record = collect(arguments.output_dir, arguments.qbe / "queries.tsv")
    if not record["runs"]:
        sys.exit(f"nothing is finished in {arguments.output_dir}")
    write_json(arguments.record, record)
    print(f"{len(record['runs'])} runs -> {arguments.record}\n{tests_table(record)}")


if __name__ == "__main__":
    main()
