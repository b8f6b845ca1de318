"""Searches: kills, damage, other content, two at once, options, and nothing done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from laser_hf.records import read_json

from ..kills import KillPlan
from ..lab import Fault, Lab, Outcome, digest

OVER = ("--over", "sigma=1,2")


def argv(lab: Lab, *more: str | Path, over: tuple[str, ...] = OVER, preset: str = "lab.json") -> list[str | Path]:
    """A search over two short runs, scored on the shipped speech."""
    fixed = ("--", "--use_cpu", "--max_steps", "2", "--save_steps", "1", "--warmup_steps", "1")
    return ["search", "--preset", lab.path / preset, *over, "--output_dir", lab.out, *more, *fixed]


def result(lab: Lab) -> dict[str, Any]:
    """Table, points without their seconds, and weights."""
    record = read_json(lab.out / "search.json")
    points = [{name: value for name, value in point.items() if name != "seconds"} for point in record["points"]]
    found = {"search.md": (lab.out / "search.md").read_text(), "points": points, "best": record["best"]}
    weights = sorted(lab.out.glob("runs/*/model.safetensors"))
    return found | {file.parent.name: digest(file) for file in weights}


def _search(*more: str, change: Callable[[Lab], Any] | None = None, **how: Any) -> Callable[[Lab], Outcome]:
    """Change something and search."""

    def provoke(lab: Lab) -> Outcome:
        if change is not None:
            change(lab)
        return lab.run(*argv(lab, *more, **how))

    return provoke


def _again(change: Callable[[Lab], Any], *more: str, halfway: bool = False, **how: Any) -> Callable[[Lab], Outcome]:
    """Search, to the end or until the first point has its score; change something; search again."""

    def provoke(lab: Lab) -> Outcome:
        first = lab.out / "runs" / "sigma-1" / "score.json"
        lab.run(*argv(lab), kill_when=first.is_file if halfway else None)
        change(lab)
        return lab.run(*argv(lab, *more, **how))

    return provoke


def _cut(name: str, keep: float) -> Callable[[Lab], Any]:
    def change(lab: Lab) -> None:
        path = lab.out / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return change


def two_points(lab: Lab, outcome: Outcome) -> str | None:
    states = [point["state"] for point in read_json(lab.out / "search.json")["points"]]
    return None if states == ["complete"] * 2 else f"points are {states}"


def _both_at_once(lab: Lab) -> Outcome:
    """The same command twice; the other process is a fork of this one."""
    other = os.fork()
    if other == 0:
        status = 1
        try:
            status = lab.run(*argv(lab)).status
        finally:
            os._exit(status)
    outcome = lab.run(*argv(lab))
    _, status = os.waitpid(other, 0)
    outcome.status = outcome.status or os.waitstatus_to_exitcode(status)
    return outcome


def _each_trained_once(lab: Lab, outcome: Outcome) -> str | None:
    logs = [path.read_text() for path in sorted(lab.out.glob("runs/*.log"))]
    trained = [text.count("seconds of training") for text in logs]
    return two_points(lab, outcome) or (None if trained == [1, 1] else f"points were trained {trained} times")


def _other_base(lab: Lab) -> None:
    file = lab.encoder / "model.safetensors"
    weights = load_file(file)
    save_file(
        {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in weights.items()}, file, {"format": "pt"}
    )


def _untouched(lab: Lab, outcome: Outcome) -> str | None:
    names = {path.name for path in lab.encoder.iterdir()}
    return None if {"config.json", "model.safetensors"} <= names and "study.db" not in names else f"it holds {names}"


FAULTS = [
    *(
        Fault(1, f"search: {what}", _again(change), status=0, says=says, judge=two_points, quick=quick)
        for what, change, says, quick in (
            ("study.db cut in half", _cut("study.db", 0.5), ("study.db is damaged",), False),
            ("study.db of 0 bytes", _cut("study.db", 0), (), False),
            ("search.json cut in half", _cut("search.json", 0.5), (), False),
            ("a score cut in half", _cut("runs/sigma-1/score.json", 0.5), (), False),
        )
    ),
    Fault(
        1,
        "search: recipe.json cut in half",
        _again(_cut("recipe.json", 0.5)),
        status=1,
        says=("recipe.json is damaged", "--overwrite_output_dir"),
    ),
    Fault(
        1,
        "search: a finished point without its score has a truncated record",
        _again(
            lambda lab: (
                (lab.out / "study.db").unlink(),
                (lab.out / "runs/sigma-1/score.json").unlink(),
                _cut("runs/sigma-1/laser_config.json", 0.5)(lab),
            )
        ),
        status=0,
        says=("sigma-1: failed: cannot read", "1 of 2 points failed", "--retry_failed"),
    ),
    Fault(
        3,
        "search: base model edited between two points",
        _again(_other_base, halfway=True),
        status=0,
        says=("1 of 2 points failed", "content of --model_name_or_path has changed since sigma-1 was trained"),
    ),
    Fault(
        3,
        "search: --output_dir is the base model's folder",
        lambda lab: lab.run("search", "--preset", lab.path / "lab.json", *OVER, "--output_dir", lab.encoder),
        status=1,
        says=("choose a folder of its own",),
        judge=_untouched,
    ),
    Fault(
        3,
        "search: --output_dir holds a training run",
        lambda lab: (lab.train(), lab.run(*argv(lab, "--overwrite_output_dir")))[1],
        status=1,
        says=("holds a run of another command",),
    ),
    Fault(3, "search: two at once in one folder", _both_at_once, status=0, judge=_each_trained_once),
    Fault(
        4,
        "search: every point fails",
        _search(change=lambda lab: [path.write_bytes(b"") for path in lab.speech.rglob("*.flac")]),
        status=1,
        says=("error: no point has a score", "--retry_failed"),
    ),
    *(
        Fault(7, f"search: {' '.join(words)}", _search(*words), status=2, says=(says,), quick=quick)
        for words, says, quick in (
            (("--jobs", "0"), "jobs must be at least 1", True),
            (("--sampler", "tpe", "--trials", "0"), "trials must be at least 1", False),
            (("--sampler", "tpe", "--trials", "-1"), "trials must be at least 1", False),
            (("--seeds", "-1"), "seed must be from 0 to", False),
        )
    ),
    Fault(7, "search: --output_dir ", _search("--output_dir", ""), status=1, says=("--output_dir is empty",)),
    *(
        Fault(7, f"search: --over {over}", _search(over=("--over", over)), status=1, says=(f"--over {over}",))
        for over in (
            "alpha=nan,1",
            "alpha=-1,1",
            "sigma=0,1",
            "learning_rate=-1e-3,1e-3",
            "margin=inf",
            "max_steps=0,2",
        )
    ),
    Fault(
        8,
        "superb table is given a search",
        lambda lab: (lab.run(*argv(lab)), lab.run("superb", "table", lab.out / "search.json"))[1],
        says=("search.json", "search.md"),
    ),
]

KILLS = [KillPlan("search, two points", argv, result, 10)]
