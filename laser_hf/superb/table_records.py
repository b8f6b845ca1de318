"""One flat list of measured numbers from every record that the project writes, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LaserError
from ..records import PROTOCOLS, RESULTS, TRAINING_RECORD, located, portable, read_record

BASES = {"facebook/hubert-base-ls960": "HuBERT base", "microsoft/wavlm-base": "WavLM base"}
PUBLISHED_ENCODERS = {"lengyue233/content-vec-best": ("HuBERT base", "contentvec")}
"""Rows of other people's encoders on the Hub. (ContentVec's own weights, converted for transformers.)"""


@dataclass(frozen=True)
class Row:
    """A base encoder and the method it was fine-tuned with; `base` for none."""

    base: str
    method: str


@dataclass(frozen=True)
class Number:
    """One measured number of the row `row`; `task` to `split` are as in the record."""

    row: Row
    task: str
    protocol: str  # empty for training
    metric: str
    value: float | None
    unit: str
    split: str
    record: str  # its path
    reported: bool = True  # of the layer that the record reports first
    first: bool = False  # the record's primary metric
    layer: int | None = None  # hidden state it was measured on, if the record says so
    trials: str | None = None  # of query by example, `superb` or `subset`
    deviation: float | None = None  # standard deviation over `runs`, if there were several
    runs: int | None = None


def find_records(path: Path) -> list[Path]:
    """Record files at or below `path`.

    Below a folder with `results.json` only this summary counts. In a folder called `results`, such as that of the demo,
    every record counts whatever its name. `LaserError` if there is none.
    """
    if path.is_file():
        return [path]
    if found := list(_walk(path)) if path.is_dir() else []:
        return found
    what = f"holds neither {RESULTS} nor {TRAINING_RECORD}" if path.is_dir() else "does not exist"
    raise LaserError(f"{path} {what}; expected a record, or a folder with some")


def _walk(folder: Path) -> Iterator[Path]:
    if (folder / TRAINING_RECORD).is_file():
        yield folder / TRAINING_RECORD
    if (folder / RESULTS).is_file():
        yield folder / RESULTS
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(entry)
        elif folder.name == "results" and entry.suffix == ".json" and _is_evaluation(entry):
            yield entry


def _is_evaluation(file: Path) -> bool:
    try:
        return bool(read_record(file).get("metrics"))
    except LaserError:
        return False


def read_numbers(files: Iterable[tuple[Path, Row | None]]) -> list[Number]:
    """All numbers of some record files, each with the row it was assigned to, if any; a file given twice counts once.

    `LaserError` for a file that is no record, or a record without numbers.
    """
    numbers: list[Number] = []
    unique = {file.resolve(): (file, row) for file, row in sorted(files, key=lambda entry: entry[1] is not None)}
    for file, row in unique.values():
        record, path = read_record(file), portable(str(file))
        try:
            if record["task"] == "training":
                hours = {"processed_hours": record["processed_hours"], "time": record["wall_seconds"] / 3600}
                about = (row or trained_row(record), "training", "")
                numbers += [Number(*about, name, value, "hours", "train", path) for name, value in hours.items()]
                continue
            if record["task"] == "search":
                raise LaserError(f"{file} is the record of a search, whose table is search.md; give its runs' records")
            if not record.get("metrics"):
                raise LaserError(f"{file} has no metrics: its task is {record['task']}")
            if record["protocol"] not in PROTOCOLS:
                raise LaserError(f"{file}: unknown protocol {record['protocol']!r}; expected {', '.join(PROTOCOLS)}")
            numbers += _evaluation(record, row or evaluated_row(record["model"], file), path)
            if "base" in record:
                base = {"task": record["task"], "protocol": record["protocol"], **record["base"]}
                numbers += _evaluation(base, evaluated_row(base["model"], file), path)
        except (KeyError, TypeError, AttributeError) as error:
            raise LaserError(f"{file} is no record of its task: it lacks {error}") from error
    return numbers


def _evaluation(record: Mapping[str, Any], row: Row, path: str) -> Iterator[Number]:
    first, runs = record["metrics"][0], len(record.get("runs") or ()) or None
    for metric in record["metrics"]:
        named = (metric[key] for key in ("metric", "value", "unit", "split"))
        reported, is_first = metric.get("layer") == first.get("layer"), metric is first
        known = (metric.get(key) for key in ("layer", "trials", "standard_deviation"))
        yield Number(row, record["task"], record["protocol"], *named, path, reported, is_first, *known, runs)


def trained_row(record: Mapping[str, Any]) -> Row:
    """The row of a training run; LASER without its regulariser is soft-DTW alone."""
    method, name = record["method"], record["base_model"]["name"]
    if method == "laser" and record["recipe"]["objective"]["alpha"] == 0:
        method = "soft_dtw"
    return Row(BASES.get(name, name), method)


def evaluated_row(model: str, file: Path) -> Row:
    """The row of an evaluated model: by its training record if it has one, else as an encoder of its own."""
    folder = Path(located(model))
    candidates = [folder, *(parent for parent in file.resolve().parents if parent.name == folder.name)]
    for candidate in candidates:
        if (candidate / TRAINING_RECORD).is_file():
            return trained_row(read_record(candidate / TRAINING_RECORD))
    if model in BASES:
        return Row(BASES[model], "base")
    if model in PUBLISHED_ENCODERS:
        return Row(*PUBLISHED_ENCODERS[model])
    # A local base encoder is named as its fine-tuned runs name it.
    return Row(folder.name if folder.is_dir() else model, "base")
