"""One flat list of measured numbers from every record that the project writes, and whose they are."""

from __future__ import annotations

import contextlib
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
    """One measured number of the row `row`."""

    row: Row
    task: str  # as in the record
    protocol: str  # likewise; empty for training
    record: str  # its path
    entry: Mapping[str, Any]  # of the record's metrics: `metric`, `value`, `unit`, `split` and what else is known
    reported: bool = True  # of the layer that the record reports first
    first: bool = False  # the record's primary metric
    runs: int | None = None  # if there were several


def find_records(path: Path) -> list[Path]:
    """Record files at or below `path`.

    Below a folder with `results.json` only this summary counts. In a folder called `results`, such as that of the demo,
    every record counts whatever its name. `LaserError` if there is none.
    """
    found = [path] if path.is_file() else list(_walk(path)) if path.is_dir() else []
    if not found:
        what = f"holds neither {RESULTS} nor {TRAINING_RECORD}" if path.is_dir() else "does not exist"
        raise LaserError(f"{path} {what}; expected a record, or a folder with some")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    yield from (file for file in (folder / TRAINING_RECORD, folder / RESULTS) if file.is_file())
    if (folder / RESULTS).is_file():
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(entry)
        elif folder.name == "results" and entry.suffix == ".json":
            with contextlib.suppress(LaserError):  # no record
                if read_record(entry).get("metrics"):
                    yield entry


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
                entries = [{"metric": name, "value": value, "unit": "hours"} for name, value in hours.items()]
                numbers += [Number(row or trained_row(record), "training", "", path, entry) for entry in entries]
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
    first, about = record["metrics"][0], (row, record["task"], record["protocol"], path)
    for entry in record["metrics"]:
        if all(entry[key] is not None for key in ("metric", "value", "unit", "split")):
            reported = entry.get("layer") == first.get("layer")
            yield Number(*about, entry, reported, entry is first, len(record.get("runs") or ()) or None)


def trained_row(record: Mapping[str, Any]) -> Row:
    """The row of a training run; LASER without its regulariser is soft-DTW alone."""
    method, name = record["method"], record["base_model"]["name"]
    if method == "laser" and record["recipe"]["objective"]["alpha"] == 0:
        method = "soft_dtw"
    return Row(BASES.get(name, name), method)


def evaluated_row(model: str, file: Path) -> Row:
    """The row of an evaluated model: by its training record if it has one, else as an encoder of its own."""
    folder = Path(located(model))
    for candidate in (folder, *(parent for parent in file.resolve().parents if parent.name == folder.name)):
        if (candidate / TRAINING_RECORD).is_file():
            return trained_row(read_record(candidate / TRAINING_RECORD))
    # A local base encoder is named as its fine-tuned runs name it.
    own = (BASES.get(model) or (folder.name if folder.is_dir() else model), "base")
    return Row(*PUBLISHED_ENCODERS.get(model, own))
