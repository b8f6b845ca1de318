"""Evaluation results in the Hub's own forms: the card's `model-index` and `.eval_results/*.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

from .evaluation import OWN, Result

# What SUPERB's tasks are in the Hub's terms: task, data set, its configuration and splits, name of the metric.
_LIBRISPEECH = ("openslr/librispeech_asr", "LibriSpeech")
_LIBRISPEECH_SPLITS = {
    "test-clean": ("clean", "test"),
    "dev-clean": ("clean", "validation"),
    "test-other": ("other", "test"),
    "dev-other": ("other", "validation"),
}
_HUB_TASKS = {
    ("asr", "wer"): ("automatic-speech-recognition", "Speech recognition (SUPERB)", "WER"),
    ("pr", "per"): ("phoneme-recognition", "Phoneme recognition (SUPERB)", "PER"),
    ("qbe", "mtwv"): ("query-by-example", "Query by example (SUPERB)", "MTWV"),
}


def _benchmarks(results: Sequence[Result]) -> Iterator[tuple[Result, tuple[str, str, str]]]:
    """This model's results by SUPERB's exact protocol. Quick ones never count as such."""
    for result in results:
        record = result.record
        if result.whose == OWN and record is not None and record["protocol"] == "superb":
            task = _HUB_TASKS.get((record["task"], result.metric["metric"]))
            if task:
                yield result, task


def _hub_data(result: Result) -> dict[str, Any] | None:
    """The Hub's names of the data that an ASR or PR result was measured on, `None` where the Hub has none."""
    split = _LIBRISPEECH_SPLITS.get(str(result.metric.get("split")))
    if result.record["task"] not in ("asr", "pr") or split is None:
        return None
    revision = (result.record.get("data") or {}).get("revision")
    known = isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision)
    return {"id": _LIBRISPEECH[0], "config": split[0], "split": split[1], "revision": revision if known else None}


def model_index(results: Sequence[Result]) -> list[EvalResult]:
    """Entries of the card's `model-index`: this model's results by SUPERB's exact protocol."""
    entries = []
    for result, (task, task_name, metric) in _benchmarks(results):
        data = _hub_data(result)
        split = result.metric.get("split") or ""
        entries.append(
            EvalResult(
                task_type=task,
                task_name=task_name,
                dataset_type=data["id"] if data else "quesst14",
                dataset_name=f"{_LIBRISPEECH[1]} {split}" if data else f"QUESST 2014, English {split}".strip(),
                dataset_config=data["config"] if data else None,
                dataset_split=data["split"] if data else split or None,
                dataset_revision=data["revision"] if data else None,
                metric_type=result.metric["metric"],
                metric_name=f"{metric} ({'%' if result.metric['unit'] == 'percent' else result.metric['unit']})"
                if result.metric.get("unit")
                else metric,
                metric_value=result.metric["value"],
            )
        )
    return entries


def hub_entries(results: Sequence[Result], source_url: str) -> list[EvalResultEntry]:
    """Entries of `.eval_results/librispeech_asr.yaml`: word error rates by SUPERB's exact protocol.

    The phone error rate is left out: the file names data set and configuration but no metric, so that the two could
    not be told apart.

    Args:
        results: from `read_results`.
        source_url: of the folder of records in the repository.
    """
    entries = []
    for result, (task, _, _) in _benchmarks(results):
        data = _hub_data(result)
        if data and task == "automatic-speech-recognition" and data["split"] == "test":
            entries.append(
                EvalResultEntry(
                    dataset_id=data["id"],
                    task_id=data["config"],
                    value=result.metric["value"],
                    dataset_revision=data["revision"],
                    date=result.record.get("written"),
                    source_url=source_url,
                    source_name="Evaluation records",
                    notes="WER in percent; SUPERB ASR: frozen encoder, weighted sum of layers, two BiLSTM layers "
                    "trained with CTC on train-clean-100, greedy decoding without a language model",
                )
            )
    return entries
