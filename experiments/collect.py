"""Collect the results of the experiments into one record.

python -m experiments.collect outputs/experiments --qbe qbe
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from laser_hf.records import read_json, read_record, write_json

from . import words
from .plan import COMMON, MAX_SECONDS, POINTS, SEEDS, Point
from .run import DONE, folder
from .tables import draw

RECORD = Path(__file__).resolve().parent / "records" / "small_encoder.json"
FIGURE = Path(__file__).resolve().parent / "figures" / "curves.png"
REFERENCES = ("base", "laser")
"""Points that all others are compared with, word by word."""
CURVES = ("eval_soft_dtw", "eval_idm", "eval_frame_cosine", "eval_effective_rank")


def collect(output_dir: Path, seeds: list[int], queries: Path) -> dict[str, Any]:
    """Results of every point and seed that has finished, with commits, versions and hardware.

    Args:
        output_dir: as given to experiments.run.
        seeds: of the runs to look for.
        queries: the `queries.tsv` with the word of every query.
    """
    runs, about = [], {"commits": set(), "versions": [], "hardware": []}

    def note(record: dict[str, Any]) -> None:
        about["commits"].add(record["commit"])
        for key in ("versions", "hardware"):
            if record[key] not in about[key]:
                about[key].append(record[key])

    for one in POINTS:
        for seed in seeds:
            run = _run(folder(output_dir, one, seed), one, note)
            if run:
                runs.append({"point": one.name, "seed": seed, **run})
    return {
        "what": "experiments with the shipped encoder on Mini-LibriSpeech (experiments/plan.py)",
        "longest_utterance_seconds": MAX_SECONDS,
        "common_options": COMMON,
        "points": {one.name: {"preset": one.preset, "options": one.options} for one in POINTS},
        "runs": runs,
        "words": _by_words(output_dir, runs, words.words_of(queries)),
        **about,
        "commits": sorted(about["commits"]),
    }


def _by_words(output_dir: Path, runs: list[dict[str, Any]], of: dict[str, str]) -> dict[str, Any]:
    """Query by example on either half of the words as means over seeds, and differences from `REFERENCES`."""
    found = {}
    for one in POINTS:
        seeds = [run["seed"] for run in runs if run["point"] == one.name and "qbe" in run]
        scores = [folder(output_dir, one, seed) / "qbe" / "scores.tsv" for seed in seeds]
        if scores:
            found[one.name] = words.mean_over([words.precisions(path) for path in scores])
    points: dict[str, Any] = {}
    for name, precisions in found.items():
        points[name] = {
            **words.by_half(precisions, of),
            "against": {
                other: {
                    "all": words.difference(precisions, found[other], of),
                    "report": words.difference(precisions, found[other], of, "report"),
                }
                for other in REFERENCES
                if other in found and other != name
            },
        }
    halves = {half: len({word for word in of.values() if words.half_of(word) == half}) for half in words.HALVES}
    return {"halves": halves, "points": points}


def _run(where: Path, one: Point, note) -> dict[str, Any]:
    """Results of one point and seed, by stage."""
    found: dict[str, Any] = {}
    for stage in one.stages:
        if not (where / DONE[stage]).is_file():
            continue
        record = read_record(where / DONE[stage])
        note(record)
        if stage == "train":
            found[stage] = training(record, read_json(where / "encoder" / "training_log.json")["log"])
        else:
            found[stage] = {
                "protocol": record["protocol"],
                **{f"{entry['metric']} {entry['split']}": entry["value"] for entry in record["metrics"]},
                "command": record["command"],
            }
    return found


def training(record: dict[str, Any], log: list[dict[str, Any]]) -> dict[str, Any]:
    curves = {
        name: [[entry["step"], entry[name]] for entry in log if name in entry]
        for name in CURVES
        if any(name in entry for entry in log)
    }
    return {
        "method": record["method"],
        "updates": record["updates"],
        "processed_hours": record["processed_hours"],
        "skipped": record["data"]["skipped"],
        "collapse_at": record["collapse"]["fired_at"],
        "curves": curves,
        "command": record["command"],
    }


def main(argv: list[str] | None = None) -> None:
    """Write the record and draw its curves."""
    parser = argparse.ArgumentParser(prog="python -m experiments.collect", description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="as given to experiments.run")
    parser.add_argument("--qbe", type=Path, required=True, help="folder with queries.tsv, as given to experiments.run")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: %(default)s")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file to write")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="PNG of the collapse monitor's curves to write")
    arguments = parser.parse_args(argv)
    record = collect(arguments.output_dir, arguments.seeds, arguments.qbe / "queries.tsv")
    if not record["runs"]:
        sys.exit(f"nothing is finished in {arguments.output_dir}")
    write_json(arguments.record, record)
    draw(record, arguments.figure)
    print(f"{len(record['runs'])} runs -> {arguments.record}, {arguments.figure}")


if __name__ == "__main__":
    main()
