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
    """One measured number.

    Attributes:
        row: whose it is.
        task, protocol: of the record; the protocol of training is empty.
        metric, value, unit, split: as in the record.
        record: path of the record.
        reported: whether it is of the layer that the record reports first.
        first: whether it is the record's primary metric.
        layer: hidden state it was measured on, if the record says so.
        trials: of query by example, `superb` or `subset`.
        deviation: standard deviation over runs; `None` of a single run.
        runs: how many.
    """

    row: Row
    task: str
    protocol: str
    metric: str
    value: float | None
    unit: str
    split: str
    record: str
    reported: bool = True
    first: bool = False
    layer: int | None = None
    trials: str | None = None
    deviation: float | None = None
    runs: int | None = None


def find_records(path: Path) -> list[Path]:
    """Record files at or below `path`.

    Below a folder with `results.json` only this summary counts. In a folder called `results`, such as that of the demo,
    every record counts whatever its name.

    Raises:
        LaserError: nothing there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LaserError(f"{path} does not exist; expected {RESULTS}, {TRAINING_RECORD} or a folder with them")
    found = list(_walk(path))
    if not found:
        raise LaserError(f"{path} holds neither {RESULTS} nor {TRAINING_RECORD}")
    return found


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
    """All numbers of some records; a file given twice counts once.

    Args:
        files: each with the row it was assigned to, if any.

    Raises:
        LaserError: a file that is no record, or a record without numbers.
    """
    numbers: list[Number] = []
    unique = {file.resolve(): (file, row) for file, row in sorted(files, key=lambda entry: entry[1] is not None)}
    for file, row in unique.values():
        record = read_record(file)
        try:
            if record["task"] == "training":
                numbers += _training(record, row or trained_row(record), portable(str(file)))
                continue
            if not record.get("metrics"):
                raise LaserError(f"{file} has no metrics: its task is {record['task']}")
            if record["protocol"] not in PROTOCOLS:
                raise LaserError(f"{file}: unknown protocol {record['protocol']!r}; expected {', '.join(PROTOCOLS)}")
            numbers += _evaluation(record, row or evaluated_row(record["model"], file), portable(str(file)))
            if "base" in record:
                base = {"task": record["task"], "protocol": record["protocol"], **record["base"]}
                numbers += _evaluation(base, evaluated_row(base["model"], file), portable(str(file)))
        except (KeyError, TypeError, AttributeError) as error:
            raise LaserError(f"{file} is no record of its task: it lacks {error}") from error
    return numbers


def _training(record: Mapping[str, Any], row: Row, path: str) -> Iterator[Number]:
    hours = {"processed_hours": record["processed_hours"], "time": record["wall_seconds"] / 3600}
    return (Number(row, "training", "", name, value, "hours", "train", path) for name, value in hours.items())


def _evaluation(record: Mapping[str, Any], row: Row, path: str) -> Iterator[Number]:
    first = record["metrics"][0]
    for metric in record["metrics"]:
        yield Number(
            row,
            record["task"],
            record["protocol"],
            metric["metric"],
            metric["value"],
            metric["unit"],
            metric["split"],
            path,
            reported=metric.get("layer") == first.get("layer"),
            first=metric is first,
            layer=metric.get("layer"),
            trials=metric.get("trials"),
            deviation=metric.get("standard_deviation"),
            runs=len(record["runs"]) if record.get("runs") else None,
        )


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
