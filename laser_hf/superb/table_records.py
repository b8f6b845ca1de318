"""The records that tables are made of, and which row of a table each belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import located, portable, read_json
from .results import FILE_NAME, PROTOCOLS

TRAINED_NAME = "laser_config.json"
METHODS = {
    "base": "",
    "contentvec": "ContentVec",
    "spin": "SPIN",
    "score": "SCORE",
    "soft_dtw": "soft-DTW alone",
    "laser": "LASER",
}
"""What was done to an encoder, in the order of the paper's tables."""
BASES = {"facebook/hubert-base-ls960": "HuBERT base", "microsoft/wavlm-base": "WavLM base"}
PUBLISHED_ENCODERS = {"lengyue233/content-vec-best": ("HuBERT base", "contentvec")}
"""Encoders of others on the Hub: their rows. (ContentVec's own weights, converted for transformers.)"""
TEST_SPLITS = {"asr": "test-clean", "pr": "test-clean"}
_QUICK_TITLES = {
    "wer": "WER, %",
    "cer": "CER, %",
    "per": "PER, %",
    "mean_average_precision": "QbE mean average precision",
    "word_ap_across": "word discrimination AP, across speakers",
    "abx_across": "ABX-like error, across speakers",
    "abx_within": "ABX-like error, within speakers",
}


class RecordError(ValueError):
    """A record that cannot be read or placed; the message names the file."""


@dataclass(frozen=True)
class Row:
    """An encoder and what was done to it (a key of `METHODS`)."""

    base: str
    method: str

    @property
    def name(self) -> str:
        """As tables show it."""
        method = METHODS.get(self.method, self.method)
        return f"{self.base} + {method}" if method else self.base

    @staticmethod
    def parse(name: str) -> Row:
        """The row of a shown name; a name of one's own is an encoder of its own."""
        base, plus, method = (part.strip() for part in name.partition("+"))
        for key, title in METHODS.items():
            if plus and title.lower() == method.lower():
                return Row(base, key)
        return Row(name.strip(), "base")


@dataclass(frozen=True)
class Trained:
    """A training run."""

    row: Row
    path: str
    processed_hours: float
    hours: float


@dataclass(frozen=True)
class Evaluated:
    """One evaluation."""

    row: Row
    path: str
    task: str
    protocol: str
    metrics: list[Mapping[str, Any]]
    runs: int | None

    def cell(self, key: str) -> dict[str, Any] | None:
        """The SUPERB number of the metric `key`, in percent; `None` if the record has none on SUPERB's test set."""
        split = TEST_SPLITS.get(self.task)
        for metric in self.metrics:
            if metric["metric"] != key or metric["value"] is None:
                continue
            # MTWV is SUPERB's only on its own list of trials.
            if metric.get("trials", "superb") != "superb" or (split and metric["split"] != split):
                continue
            if self.task == "qbe" and metric["split"] == "dev":
                continue
            return self._cell(metric, 100 if metric["unit"] != "percent" else 1)
        return None

    def quick_cells(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Column key, title and cell of each quick metric that the tables know, of the record's own layer."""
        layer = self.metrics[0].get("layer")
        for metric in self.metrics:
            name, split = metric["metric"], metric["split"]
            if name not in _QUICK_TITLES or metric["value"] is None or metric.get("layer") != layer or split == "dev":
                continue
            cell = self._cell(metric, 1) | {"decimals": 2 if metric["unit"] == "percent" else 4}
            yield f"{self.task} {name} {split}", f"{_QUICK_TITLES[name]}, {split}", cell

    def _cell(self, metric: Mapping[str, Any], scale: float) -> dict[str, Any]:
        cell: dict[str, Any] = {"value": metric["value"] * scale, "protocol": self.protocol, "record": self.path}
        if metric.get("standard_deviation") is not None:
            cell |= {"standard_deviation": metric["standard_deviation"] * scale, "runs": self.runs}
        if "layer" in metric:
            cell["layer"] = metric["layer"]
        return cell


def find_records(path: Path) -> list[Path]:
    """Record files at or below `path`; below a folder with `results.json` only its summary counts.

    Raises:
        RecordError: nothing there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RecordError(f"{path} does not exist; expected {FILE_NAME}, {TRAINED_NAME} or a folder with them")
    found = list(_walk(path))
    if not found:
        raise RecordError(f"{path} holds neither {FILE_NAME} nor {TRAINED_NAME}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    if (folder / TRAINED_NAME).is_file():
        yield folder / TRAINED_NAME
    if (folder / FILE_NAME).is_file():
        yield folder / FILE_NAME
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(entry)


def read_records(files: Iterable[tuple[Path, Row | None]]) -> tuple[list[Evaluated], list[Trained]]:
    """Read and place records; a file given twice counts once.

    Args:
        files: each with the row it was assigned to, if any.

    Raises:
        RecordError: a file that is no JSON or no such record.
    """
    evaluated, trained = [], []
    unique = {file.resolve(): (file, row) for file, row in sorted(files, key=lambda entry: entry[1] is not None)}
    for file, row in unique.values():
        record = _read(file)
        try:
            if "base_model" in record:
                trained.append(
                    Trained(
                        row or trained_row(record),
                        portable(str(file)),
                        float(record["processed_hours"]),
                        float(record["wall_time_seconds"]) / 3600,
                    )
                )
                continue
            if record["protocol"] not in PROTOCOLS:
                raise RecordError(f"{file}: unknown protocol {record['protocol']!r}; expected {', '.join(PROTOCOLS)}")
            for metric in record["metrics"]:
                missing = {"metric", "value", "unit", "split"} - set(metric)
                if missing:
                    raise RecordError(f"{file}: a metric lacks {', '.join(sorted(missing))}")
            if not record["metrics"]:
                raise RecordError(f"{file}: no metrics")
            evaluated.append(
                Evaluated(
                    row or evaluated_row(record["model"], file),
                    portable(str(file)),
                    record["task"],
                    record["protocol"],
                    record["metrics"],
                    len(record["runs"]) if record.get("runs") else None,
                )
            )
        except KeyError as error:
            raise RecordError(f"{file} is no result record: it lacks {error}") from error
        except (TypeError, AttributeError) as error:
            raise RecordError(f"{file} is no result record: {error}") from error
    return evaluated, trained


def _read(file: Path) -> dict[str, Any]:
    try:
        record = read_json(file)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"cannot read {file}: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"{file} is no result record: expected a JSON object, got {type(record).__name__}")
    return record


def trained_row(record: Mapping[str, Any]) -> Row:
    """The row of a training run; LASER without its regulariser is soft-DTW alone."""
    method, name = record["method"], record["base_model"]["name"]
    if method == "laser" and record["recipe"]["objective"]["alpha"] == 0:
        method = "soft_dtw"
    return Row(BASES.get(name, name), method)


def evaluated_row(model: str, file: Path) -> Row:
    """The row of an evaluated model: by its training record where it has one, else as an encoder of its own."""
    folder = Path(located(model))
    candidates = [folder, *(parent for parent in file.resolve().parents if parent.name == folder.name)]
    for candidate in candidates:
        config = candidate / TRAINED_NAME
        if config.is_file():
            return trained_row(_read(config))
    if model in BASES:
        return Row(BASES[model], "base")
    if model in PUBLISHED_ENCODERS:
        return Row(*PUBLISHED_ENCODERS[model])
    # A local base encoder is named as its fine-tuned runs name it.
    return Row(folder.name if folder.is_dir() else model, "base")
