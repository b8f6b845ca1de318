"""What a card says beside the training record: facts from plugin classes and `model_cards/`, and evaluation results."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

from ..data import find_perturbation
from ..errors import LaserError
from ..objectives import find_objective
from ..records import located, read_record

_DEFAULTS = {"base_url": None, "base_authors": None, "base_paper": None, "languages": ["en"], "note": None, "tags": []}
OWN, BASE, OTHER = "own", "base", "other"
# The Hub's names: task type, task, metric.
_HUB_TASKS = {
    ("asr", "wer"): ("automatic-speech-recognition", "Speech recognition (SUPERB)", "WER"),
    ("pr", "per"): ("phoneme-recognition", "Phoneme recognition (SUPERB)", "PER"),
    ("qbe", "mtwv"): ("query-by-example", "Query by example (SUPERB)", "MTWV"),
}


def card_file(name: str) -> str:
    """The text of a file of `model_cards/`: in the installed package, or beside it in a checkout."""
    package = importlib.resources.files("laser_hf")
    found = package / "model_cards" / name
    return (found if found.is_file() else package.parent / "model_cards" / name).read_text(encoding="utf-8")


def find_facts(record: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is known about the base model and the method of a run.

    Args:
        record: `laser_config.json` of the run.
        given: facts from the user, in place of those known.

    Returns:
        The entry of `bases.json`; `title`; `method_title`, `method_paper`, `summary` and `citation` of the objective;
        `changes`, what the two views differ in.

    Raises:
        LaserError: an unknown base model, and therefore no known licence; a class that cannot be imported.
    """
    base = record["base_model"]
    name = located(record["recipe"]["model"]["model_name_or_path"]) if base["local"] else base["name"]
    known = (entry for entry in json.loads(card_file("bases.json"))["bases"] if matches(name, entry["match"]))
    objective, perturbed = find_objective(record["method"]), record["recipe"]["perturbations"]
    facts = {
        **_DEFAULTS,
        **next(known, {}),
        "method_title": objective.title or objective.__name__,
        "method_paper": objective.paper,
        "summary": objective.summary,
        "citation": objective.bibtex,
        "changes": listed(dict.fromkeys(change for name in perturbed["name"] for change in _changes(name, perturbed))),
        **(given or {}),
    }
    needed = ("base_title", "base_training_data", "licence", "licence_text")
    if missing := ", ".join(key for key in needed if not facts.get(key)):
        raise LaserError(
            f"nothing is known about the base model {base['name']!r}, above all its licence. Write a JSON file with "
            f"the keys of an entry of model_cards/bases.json (missing: {missing}) and give it with --facts"
        )
    title = facts["base_title"]
    facts.setdefault("title", f"{title[0].upper()}{title[1:]}, fine-tuned with {facts['method_title']}")
    return facts


def matches(name: str, known: Sequence[str]) -> bool:
    """Whether a Hub id or path ends in, or contains, one of the known ones."""
    return any(f"/{one}/" in f"/{name.strip('/')}/" for one in known)


def _changes(name: str, values: Mapping[str, Any]) -> Sequence[str]:
    plugin = find_perturbation(name)
    options = {option.dest: values[option.dest] for option in plugin.options if option.dest in values}
    try:
        changes = plugin(**plugin.checked(options)).changes
    except (ValueError, OSError, ImportError):  # its noise or its libraries may be elsewhere
        changes = plugin.changes
    return changes or [plugin.title or plugin.__name__]


def listed(items: Sequence[Any]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def published_values(base: str, method: str, method_title: str) -> list[dict[str, str]]:
    """What the literature reports for a base model (its title) and a method: `model`, `measure`, `value`, `source`."""
    known = json.loads((importlib.resources.files("laser_hf") / "superb" / "published.json").read_text())
    models = {"base": base, method: f"{base} with {method_title}"}
    measures, rows = json.loads(card_file("texts.json"))["published"], {}
    for entry in known["values"]:
        if entry["base"] == base and entry["method"] in models and entry["column"] in measures:
            source = known["sources"][entry["source"]]
            second = "" if entry["evidence"] == "read" else ", quoted second-hand"
            row = {"model": models[entry["method"]], "measure": measures[entry["column"]]}
            row["value"] = f"{entry['value']} {'%' if entry['unit'] == 'percent' else entry['unit']}"
            row["source"] = f"[{source['title']}]({source['url']}), {entry['place']}{second}"
            # The same value may stand in several tables of a paper.
            rows.setdefault((row["model"], row["measure"]), row)
    return list(rows.values())


@dataclass(frozen=True)
class Result:
    """One measure of one model.

    Attributes:
        whose: `OWN` (the model to be published), `BASE` (its base model) or `OTHER`.
        model: how the table calls the model.
        file: path of the record in the repository.
        record, metric: the record, and one of its `metrics`.
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
        digest, base_digest: of the exported weights and of the base model's (`None` if they cannot be had).
        base_name: how the table calls the base model.
        names: folder and repository of the model: a record that names them but has another digest is refused.

    Raises:
        LaserError: a record that names this model, but was made with other weights.
    """
    results, unread, own_paths = [], [], {Path(name).resolve() for name in names}
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
            elif part and Path(model).resolve() in own_paths:
                what = f"was made with other weights ({found[:12]}…, not {digest[:12]}…)" if found else "has no digest"
                raise LaserError(f"{file} names this model ({model}) but {what}; evaluate again, or remove it")
            elif found is not None and found == base_digest:
                whose, called = BASE, base_name
            metrics = (metric for metric in part.get("metrics", ()) if isinstance(metric["value"], int | float))
            results += [Result(whose, called, file, record, metric) for metric in metrics]
    return results, unread


def model_index(results: Sequence[Result]) -> list[EvalResult]:
    """Entries of the card's `model-index`: this model's results by SUPERB's exact protocol."""
    entries = []
    for result in results:
        record, metric, split = result.record, result.metric, result.metric["split"]
        hub_task = _HUB_TASKS.get((record["task"], metric["metric"]))
        if result.whose != OWN or record.get("protocol") != "superb" or not hub_task:
            continue
        data = {"type": "quesst14", "name": f"QUESST 2014, English {split}".strip(), "split": split}
        if record["task"] != "qbe" and (part := re.fullmatch("(test|dev)-(clean|other)", split)):
            data = {"type": "openslr/librispeech_asr", "name": f"LibriSpeech {split}", "config": part[2]}
            data["split"] = part[1].replace("dev", "validation")
            revision = re.fullmatch(r"[0-9a-f]{40}", str(record["data"].get("revision")))
            data["revision"] = revision and revision.group()
        data = {f"dataset_{key}": value for key, value in data.items()}
        task = {"task_type": hub_task[0], "task_name": hub_task[1], "metric_type": metric["metric"]}
        name = f"{hub_task[2]} ({metric['unit'].replace('percent', '%')})"
        entries.append(EvalResult(**task, **data, metric_name=name, metric_value=metric["value"]))
    return entries


def hub_entries(results: Sequence[Result], source_url: str) -> list[EvalResultEntry]:
    """Entries of `.eval_results/librispeech_asr.yaml`: word error rates by SUPERB's exact protocol.

    The phone error rate is left out: the file names data set and configuration but no metric, so the two could not be
    told apart. `source_url` is that of the folder of records in the repository.
    """
    notes = (
        "WER in percent; SUPERB ASR: frozen encoder, weighted sum of layers, two BiLSTM layers trained with CTC on "
        "train-clean-100, greedy decoding without a language model"
    )
    source = {"source_url": source_url, "source_name": "Evaluation records", "notes": notes}
    return [
        EvalResultEntry(e.dataset_type, e.dataset_config, e.metric_value, e.dataset_revision, date=date, **source)
        for e, date in ((e, result.record.get("written")) for result in results for e in model_index([result]))
        if e.metric_type == "wer" and e.dataset_split == "test" and e.dataset_config
    ]
