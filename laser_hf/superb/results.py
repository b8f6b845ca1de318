"""The record of one evaluation: `results.json`, the same layout for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..encoders import SpeechEncoder
from ..records import portable, provenance, tensors_digest, write_json

FILE_NAME = "results.json"
PROTOCOLS = ("superb", "quick")


def describe_model(name: str, encoder: SpeechEncoder | None = None) -> dict[str, Any]:
    """How a record names a model: `name` (hub id, folder, or a kind of features), revision, digest of the weights.

    The digest ties a result to weights whatever their folder is called.
    """
    described: dict[str, Any] = {"model": portable(str(name)), "model_revision": None, "weights_sha256": None}
    if encoder is not None:
        described["model_revision"] = encoder.revision
        described["weights_sha256"] = tensors_digest(encoder.model.state_dict())
    return described


def write_results(
    output_dir: str | Path,
    *,
    task: str,
    protocol: str,
    model: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    hyper_parameters: Mapping[str, Any],
    seed: int | None,
    wall_seconds: float,
    **more: Any,
) -> dict[str, Any]:
    """Write `results.json` into `output_dir` and return it.

    Args:
        output_dir: folder of this evaluation.
        task: "asr", "pr", "qbe" or "probe".
        protocol: "superb" (the exact recipe) or "quick", so that a quick number is never taken for a SUPERB one.
        model: from `describe_model`.
        metrics: each with `metric`, `value`, `unit` ("percent", "fraction", "") and `split`; the first one is the
            task's primary metric and is repeated at the top level. May carry more, such as `layer`.
        data: what was trained and tested on: source, splits, revision, counts, what was skipped and why.
        hyper_parameters: everything that decides the result.
        seed: of this run; `None` when nothing is random.
        wall_seconds: of the whole command.
        more: further entries, such as `layer_weights`, `runs` and `standard_deviation`.

    Raises:
        ValueError: an unknown protocol, or a metric without one of its four entries.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    for metric in metrics:
        missing = {"metric", "value", "unit", "split"} - set(metric)
        if missing:
            raise ValueError(f"the metric {dict(metric)} lacks {', '.join(sorted(missing))}")
    record = {
        "task": task,
        "protocol": protocol,
        **model,
        **metrics[0],
        "metrics": list(metrics),
        "data": portable(dict(data)),
        "hyper_parameters": portable(dict(hyper_parameters)),
        "seed": seed,
        **more,
        "wall_seconds": round(wall_seconds, 1),
        **provenance(),
    }
    write_json(Path(output_dir) / FILE_NAME, record)
    return record
