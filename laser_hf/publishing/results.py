"""Evaluation records: whose they are, and the Hub's own forms of them.

A record belongs to the weights whose digest it carries, whatever their folder or repository is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

from ..errors import LaserError
from ..records import read_record

OWN, BASE, OTHER = "own", "base", "other"

# The Hub's names: task type, task, metric.
_HUB_TASKS = {
    ("asr", "wer"): ("automatic-speech-recognition", "Speech recognition (SUPERB)", "WER"),
    ("pr", "per"): ("phoneme-recognition", "Phoneme recognition (SUPERB)", "PER"),
    ("qbe", "mtwv"): ("query-by-example", "Query by example (SUPERB)", "MTWV"),
}
_LIBRISPEECH = "openslr/librispeech_asr"
_SPLITS = {
    "test-clean": ("clean", "test"),
    "dev-clean": ("clean", "validation"),
    "test-other": ("other", "test"),
    "dev-other": ("other", "validation"),
}


@dataclass(frozen=True)
class Result:
    """One measure of one model.

    Attributes:
        whose: `OWN` (the model to be published), `BASE` (its base model) or `OTHER`.
        model: how the table calls the model.
        file: path of the record in the repository.
        record: the record.
        metric: the entry of its `metrics`.
    """

    whose: str
    model: str
    file: str
    record: Mapping[str, Any]
    metric: Mapping[str, Any]


def read_results(
    files: Mapping[str, Path], digest: str, base_digest: str | None, base_name: str, names: Sequence[str]
) -> tuple[list[Result], list[str]]:
    """Results of all `files`, and the names of files that are no evaluation records.

    Args:
        files: path of each file by its name in the repository.
        digest: of the exported weights.
        base_digest: of the base model's, `None` if they cannot be had.
        base_name: how the table calls the base model.
        names: folder and repository of the model: a record that names them but has another digest is refused.

    Raises:
        LaserError: a record that names this model, but was made with other weights.
    """
    results, unread = [], []
    for file, path in files.items():
        try:
            record = read_record(path)
        except LaserError:
            record = {}
        if not record.get("metrics"):
            unread.append(file)
            continue
        # What was measured of the base model in the same way may stand in the same record.
        for part in (record, record.get("base") or {}):
            found, model = part.get("weights_sha256"), str(part.get("model"))
            whose, called = OTHER, str(part.get("name") or Path(model).name)
            if found == digest:
                whose, called = OWN, "this model"
            elif part and _comparable(model) in {_comparable(name) for name in names}:
                what = f"was made with other weights ({found[:12]}…)" if found else "has no weights_sha256"
                raise LaserError(
                    f"{file} names this model ({model}) but {what}; these weights are {digest[:12]}…. Evaluate again, "
                    "or remove it"
                )
            elif found is not None and found == base_digest:
                whose, called = BASE, base_name
            metrics = (metric for metric in part.get("metrics", ()) if isinstance(metric["value"], int | float))
            results += [Result(whose, called, file, record, metric) for metric in metrics]
    return results, unread


def _comparable(name: str) -> str:
    """Folders by their absolute path, Hub ids as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _benchmarks(results: Sequence[Result]) -> Iterator[tuple[Result, tuple[str, str, str], dict[str, Any]]]:
    """This model's results by SUPERB's exact protocol with the Hub's names of task and data."""
    for result in results:
        task = _HUB_TASKS.get((result.record["task"], result.metric["metric"]))
        if result.whose != OWN or result.record.get("protocol") != "superb" or not task:
            continue
        split, revision = result.metric["split"], str(result.record["data"].get("revision"))
        data = {"type": "quesst14", "name": f"QUESST 2014, English {split}".strip(), "split": split}
        if result.record["task"] != "qbe" and split in _SPLITS:
            config, hub_split = _SPLITS[split]
            data = {"type": _LIBRISPEECH, "name": f"LibriSpeech {split}", "config": config, "split": hub_split}
            data["revision"] = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None
        yield result, task, data


def model_index(results: Sequence[Result]) -> list[EvalResult]:
    """Entries of the card's `model-index`: this model's results by SUPERB's exact protocol."""
    return [
        EvalResult(
            task_type=task,
            task_name=task_name,
            **{f"dataset_{key}": value for key, value in data.items()},
            metric_type=result.metric["metric"],
            metric_name=f"{metric} ({result.metric['unit'].replace('percent', '%')})",
            metric_value=result.metric["value"],
        )
        for result, (task, task_name, metric), data in _benchmarks(results)
    ]


def hub_entries(results: Sequence[Result], source_url: str) -> list[EvalResultEntry]:
    """Entries of `.eval_results/librispeech_asr.yaml`: word error rates by SUPERB's exact protocol.

    The phone error rate is left out: the file names data set and configuration but no metric, so the two could not be
    told apart.

    Args:
        results: from `read_results`.
        source_url: of the folder of records in the repository.
    """
    return [
        EvalResultEntry(
            dataset_id=data["type"],
            task_id=data["config"],
            value=result.metric["value"],
            dataset_revision=data["revision"],
            date=result.record.get("written"),
            source_url=source_url,
            source_name="Evaluation records",
            notes="WER in percent; SUPERB ASR: frozen encoder, weighted sum of layers, two BiLSTM layers trained with "
            "CTC on train-clean-100, greedy decoding without a language model",
        )
        for result, (task, _, _), data in _benchmarks(results)
        if task == "automatic-speech-recognition" and data["split"] == "test" and "config" in data
    ]
