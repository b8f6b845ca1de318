"""`demo`, `plots`, `superb table` and `convert`: damaged records, missing files, models of another kind, own inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from laser_hf.records import TRAINING_RECORD

from ..lab import Fault, Lab, Outcome
from . import superb_qbe

Change = Callable[[Lab], Any]


def _plots(change: Change, *more: str) -> Callable[[Lab], Outcome]:
    """Finish a run, change something, draw it."""

    def provoke(lab: Lab) -> Outcome:
        lab.train()
        change(lab)
        return lab.run("plots", lab.out, *more)

    return provoke


def _broken(name: str, text: str, *words: str) -> Callable[[Lab], Outcome]:
    """Give a command a folder with nothing but a damaged record."""

    def provoke(lab: Lab) -> Outcome:
        lab.out.mkdir()
        (lab.out / name).write_text(text)
        return lab.run(*words, lab.out)

    return provoke


def _other_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert", "architectures": ["BertModel"]}))


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _table(change: Change, *more: str) -> Callable[[Lab], Outcome]:
    """Search once, change the record, make tables of it."""

    def provoke(lab: Lab) -> Outcome:
        superb_qbe.make(lab)
        lab.run(*superb_qbe.argv(lab))
        change(lab)
        return lab.run("superb", "table", lab.out, *more)

    return provoke


def _results(lab: Lab) -> Path:
    return lab.out / "results.json"


def _checkpoint(lab: Lab) -> Path:
    """The encoder as S3PRL saves one that was fine-tuned."""
    path = lab.path / "states-1.ckpt"
    if not path.exists():
        weights = {f"model.{name}": tensor for name, tensor in load_file(lab.encoder / "model.safetensors").items()}
        torch.save({"Upstream": weights, "Step": 1}, path)
    return path


def _convert(change: Change, *more: str, out: str = "out", base: str | None = "encoder") -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        path = _checkpoint(lab)
        change(lab)
        source = ["--base", base] if base else []
        return lab.run("convert", path, *source, "--output_dir", lab.path / out, *more)

    return provoke


def _drawn(lab: Lab, outcome: Outcome) -> str | None:
    return None if list((lab.out / "plots").glob("*.png")) else "nothing was drawn"


def _foreign_kept(lab: Lab, outcome: Outcome) -> str | None:
    return None if (lab.out / "model.safetensors").read_bytes() == b"somebody's" else "a foreign model was overwritten"


def _demo(lab: Lab) -> Outcome:
    lab.out.mkdir()
    for name in ("config.json", "model.safetensors"):
        (lab.out / name).write_text("somebody's")
    return lab.run("demo", "--output_dir", lab.out, "--max_steps", "1")


def _write(name: str, text: str) -> Change:
    return lambda lab: (lab.path / name).write_text(text)


NOTHING: Change = lambda lab: None  # noqa: E731
RECORD = TRAINING_RECORD

FAULTS = [
    # plots
    Fault(1, "plots: no such run", lambda lab: lab.run("plots", lab.path / "nowhere"), says=("nowhere",)),
    Fault(1, "plots: a cut record", _plots(lambda lab: _cut(lab.out / RECORD, 100)), says=(RECORD,)),
    Fault(1, "plots: an empty record", _broken(RECORD, "", "plots"), says=(RECORD,), quick=True),
    Fault(
        1, "plots: a record without its recipe", _plots(lambda lab: _edit(lab.out / RECORD, recipe={})), says=(RECORD,)
    ),
    Fault(
        1, "plots: a cut log", _plots(lambda lab: _cut(lab.out / "training_log.json", 50)), 0, ("training_log",), _drawn
    ),
    Fault(1, "plots: no log", _plots(lambda lab: (lab.out / "training_log.json").unlink()), 0, ("log",), _drawn),
    Fault(
        1,
        "plots: cut weights",
        _plots(lambda lab: _cut(lab.out / "model.safetensors", 500)),
        0,
        ("safetensors",),
        _drawn,
    ),
    Fault(
        5,
        "plots: --base of another type",
        _plots(lambda lab: _other_type(lab.encoder), "--base", "encoder"),
        0,
        ("bert",),
        _drawn,
    ),
    Fault(
        6,
        "plots: word times in Latin-1",
        _plots(
            lambda lab: (lab.path / "w.tsv").write_bytes(
                "utterance\tword\tstart_seconds\tduration_seconds\né\té\t0\t1\n".encode("latin-1")
            ),
            "--data",
            "speech",
            "--alignments",
            "w.tsv",
        ),
        0,
        ("w.tsv, line 2",),
        _drawn,
    ),
    Fault(
        7,
        "plots: --output without a picture's ending",
        lambda lab: (lab.train(), lab.run("plots", lab.out, "--output", "curves.xyz"))[-1],
        says=("curves.xyz",),
    ),
    Fault(
        7,
        "plots: an unknown utterance",
        _plots(NOTHING, "--data", "speech", "--utterance", "none"),
        0,
        ("none",),
        _drawn,
    ),
    # table
    Fault(1, "table: no such record", lambda lab: lab.run("superb", "table", "nowhere.json"), says=("nowhere.json",)),
    Fault(
        1,
        "table: a cut record",
        _broken("results.json", '{"schema_version": 2, "task": "qbe", "metr', "superb", "table"),
        says=("results.json",),
        quick=True,
    ),
    Fault(1, "table: an empty record", _table(lambda lab: _cut(_results(lab), 0)), says=("results.json",)),
    Fault(
        1, "table: a record that is a list", _table(lambda lab: _results(lab).write_text("[1]")), says=("results.json",)
    ),
    Fault(
        1,
        "table: a value that is null",
        _table(
            lambda lab: _edit(
                _results(lab),
                metrics=[
                    {"metric": "mean_average_precision", "value": None, "unit": "fraction", "split": "test", "layer": 3}
                ],
            )
        ),
        says=("results.json", "value"),
    ),
    Fault(
        1,
        "table: a value that is text",
        _table(
            lambda lab: _edit(
                _results(lab),
                metrics=[
                    {
                        "metric": "mean_average_precision",
                        "value": "0.5",
                        "unit": "fraction",
                        "split": "test",
                        "layer": 3,
                    }
                ],
            )
        ),
        says=("results.json", "value"),
    ),
    Fault(
        1,
        "table: not UTF-8",
        _table(lambda lab: _results(lab).write_bytes(b'{"task": "\xe9"}')),
        says=("results.json",),
    ),
    Fault(
        3,
        "table: --output is one of the records",
        _table(NOTHING, "--output", "out/results.json"),
        says=("--output", "results.json"),
        judge=lambda lab, outcome: None if "metrics" in _results(lab).read_text() else "record lost",
    ),
    Fault(4, "table: a folder without records", lambda lab: lab.run("superb", "table", lab.speech), says=("speech",)),
    Fault(7, "table: --output is a folder", _table(NOTHING, "--output", "speech"), says=("speech",)),
    # convert
    Fault(
        1,
        "conversion: no such file",
        lambda lab: lab.run("convert", "x.ckpt", "--base", "encoder", "--output_dir", "out"),
        says=("x.ckpt",),
    ),
    Fault(1, "conversion: text for a checkpoint", _convert(_write("states-1.ckpt", "hello")), says=("states-1.ckpt",)),
    Fault(5, "conversion: --base of another type", _convert(lambda lab: _other_type(lab.encoder)), says=("bert",)),
    Fault(
        5,
        "conversion: --base without a config",
        _convert(lambda lab: (lab.encoder / "config.json").unlink()),
        says=("encoder",),
    ),
    # demo
    Fault(3, "demo: the folder holds somebody's model", _demo, says=("--output_dir",), judge=_foreign_kept),
]
