"""Evaluation records: whose they are, and the card's table of them.

A record belongs to the weights whose digest it carries, whatever their folder or repository is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..records import read_json
from .errors import PushError

OWN, BASE, OTHER = "own", "base", "other"

_TASKS = {"asr": "speech recognition", "pr": "phoneme recognition", "qbe": "query by example"}
_PROTOCOLS = {"superb": "SUPERB", "quick": "quick, not a SUPERB number"}
_MEASURES = {
    "wer": "word error rate (lower is better)",
    "cer": "character error rate (lower is better)",
    "per": "phone error rate (lower is better)",
    "mtwv": "maximum term-weighted value (higher is better)",
    "mean_average_precision": "mean average precision (higher is better)",
    "same_distance": "mean distance, same word",
    "different_distance": "mean distance, different words",
    "ratio": "same / different (lower is better)",
    "average_precision": "average precision (higher is better)",
    "chance": "average precision by chance",
}


@dataclass(frozen=True)
class Result:
    """One measure of one model.

    Attributes:
        whose: `OWN` (the model being published), `BASE` (its base model) or `OTHER`.
        model: how the table calls the model.
        text: value with its unit and, over several runs, its standard deviation.
        file: path of the record in the repository.
        record: the record itself, or `None` for a report that is not in the layout of evaluation records.
        metric: the entry of the record's `metrics`.
    """

    task: str
    protocol: str
    measure: str
    whose: str
    model: str
    text: str
    file: str
    record: Mapping[str, Any] | None = None
    metric: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """By what the records of a model are recognised.

    Attributes:
        digest: of the exported weights.
        base_digest: of the base model's, `None` where they are not to be had.
        base_name: how the table calls the base model.
        names: folder and repository of the model: a record that names them but has another digest is refused.
        finished: when the run ended (ISO 8601); reports without a digest must be younger.
    """

    digest: str
    base_digest: str | None
    base_name: str
    names: Sequence[str]
    finished: str


def read_results(files: Mapping[str, Path], identity: Identity) -> tuple[list[Result], list[str]]:
    """Results of all `files`, and the names of those that hold something else.

    Three layouts are read: one evaluation record (`task`, `protocol`, `model`, `weights_sha256`, `metrics`), several
    of them (`{"systems": [...]}`), and a report of the same measures `before` and `after` fine-tuning.

    Args:
        files: path of each file by its name in the repository.
        identity: of the model that is being published.

    Raises:
        PushError: a record that claims to be about this model, but was made with other weights.
    """
    results, unread = [], []
    for name, path in files.items():
        found = list(_read(read_json(path), name, identity))
        results += found
        if not found:
            unread.append(name)
    return results, unread


def _read(content: Any, file: str, identity: Identity) -> Iterator[Result]:
    if not isinstance(content, dict):
        return
    if isinstance(content.get("systems"), list):
        for record in content["systems"]:
            yield from _read(record, file, identity)
    elif isinstance(content.get("before"), dict) and isinstance(content.get("after"), dict):
        yield from _read_report(content, file, identity)
    elif {"task", "protocol", "model", "metrics"} <= content.keys():
        whose, model = _attribute(content, file, identity)
        for metric in content["metrics"]:
            if not isinstance(metric.get("value"), int | float):
                continue
            where = [str(metric[key]) if key == "split" else f"{key} {metric[key]}"
                     for key in ("split", "layer") if metric.get(key) not in (None, "")]  # fmt: skip
            yield Result(
                task=_TASKS.get(content["task"], str(content["task"]).replace("_", " ")),
                protocol=_PROTOCOLS.get(content["protocol"], str(content["protocol"])),
                measure=", ".join([_measure(metric["metric"]), *where]),
                whose=whose,
                model=model,
                text=_text(metric, content),
                file=file,
                record=content,
                metric=metric,
            )


def _read_report(content: Mapping[str, Any], file: str, identity: Identity) -> Iterator[Result]:
    digest, written = content.get("weights_sha256"), content.get("written")
    if digest not in (None, identity.digest):
        raise PushError(f"{file} is about other weights than these (its weights_sha256 differs); measure again")
    if digest is None and (not written or written < identity.finished):
        raise PushError(
            f"{file} was written ({written or 'when, it does not say'}) before the run was finished "
            f"({identity.finished}): it is about other weights. Remove it, or measure again"
        )
    for whose, model, when in ((BASE, identity.base_name, "before"), (OWN, "this model", "after")):
        for key, value in content[when].items():
            if isinstance(value, float):
                yield Result(str(content.get("task", "")), "", _measure(key), whose, model, number(value), file)


def _attribute(record: Mapping[str, Any], file: str, identity: Identity) -> tuple[str, str]:
    digest, model = record.get("weights_sha256"), str(record["model"])
    if digest == identity.digest:
        return OWN, "this model"
    if _comparable(model) in {_comparable(name) for name in identity.names}:
        what = "has no weights_sha256" if digest is None else f"was made with other weights ({digest[:12]}…)"
        raise PushError(
            f"{file} names this model ({model}) but {what}; these weights are {identity.digest[:12]}…. "
            "Evaluate again, or remove it"
        )
    if digest is not None and digest == identity.base_digest:
        return BASE, identity.base_name
    return OTHER, str(record.get("name") or Path(model).name or "not named")


def _comparable(name: str) -> str:
    """Folders by their absolute path, whatever way they were written; Hub ids as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _measure(name: str) -> str:
    return _MEASURES.get(name, name.replace("_", " "))


def _text(metric: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    text = number(metric["value"])
    unit = {"percent": " %", "fraction": ""}.get(metric.get("unit", ""), f" {metric.get('unit', '')}".rstrip())
    deviation, runs = metric.get("standard_deviation"), record.get("runs")
    if isinstance(deviation, int | float) and runs:
        count = len(runs) if isinstance(runs, list | dict) else runs
        return f"{text} ± {number(deviation)}{unit} ({count} runs)"
    return text + unit


def number(value: float) -> str:
    """Four significant digits, without exponents for everyday sizes."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def comparison(results: Sequence[Result]) -> list[dict[str, str]]:
    """Rows of this model beside its base model: `task`, `protocol`, `measure`, `own`, `base`, `files`."""
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for result in results:
        if result.whose != OTHER:
            row = rows.setdefault((result.task, result.protocol, result.measure), {OWN: [], BASE: [], "files": []})
            row[result.whose].append(result.text)
            if result.file not in row["files"]:
                row["files"].append(result.file)
    return [
        {
            "task": f"{task} ({protocol})" if protocol else task,
            "measure": measure,
            "own": "; ".join(row[OWN]) or "not measured",
            "base": "; ".join(row[BASE]) or "not measured",
            "files": row["files"],
        }
        for (task, protocol, measure), row in rows.items()
    ]


def others(results: Sequence[Result]) -> list[dict[str, str]]:
    """Rows of models other than this one and its base: `task`, `measure`, `model`, `text`, `file`."""
    return [
        {
            "task": f"{r.task} ({r.protocol})" if r.protocol else r.task,
            "measure": r.measure,
            "model": r.model,
            "text": r.text,
            "file": r.file,
        }
        for r in results
        if r.whose == OTHER
    ]
