"""What a card says beside the record: facts from plugin classes, `model_cards/` and the user; evaluation results."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

from ..data import find_perturbation
from ..errors import LaserError
from ..objectives import find_objective
from ..records import located, read_json, read_record

Values = Mapping[str, Any]
OWN, BASE, SEED, OTHER = "own", "base", "seed", "other"
"""Whose a result is: of the model to be published, its base model, a run of its recipe with another seed, or others."""
SPEECH_KEYS = ("title", "licence", "languages", "dataset", "attribution", "limits")
_KEYS = (
    "base_model", "base_title", "base_url", "base_authors", "base_paper", "base_training_data", "licence",
    "licence_text", "languages", "speech", "method", "method_title", "summary", "citation", "title", "note", "tags",
)  # fmt: skip
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


def find_facts(record: Values, given: Values | None = None) -> dict[str, Any]:
    """What is known about base model, speech, method and perturbation of a run, or of a converted checkpoint.

    `record` is that of the run or the conversion; of a run that begins, its `method`, `base_model`, `data` and `recipe`
    do. `given` are facts from the user (`--facts`), in place of those known; `docs/publishing.md` lists the keys.
    `LaserError` for unknown keys, a base model of unknown licence, or a class that cannot be imported.
    """
    given, texts, base = _checked(given or {}), json.loads(card_file("texts.json")), record["base_model"]
    names = [given["base_model"]] if "base_model" in given else _names_of(record)
    known = _first(json.loads(card_file("bases.json"))["bases"], names)
    on_hub = given.get("base_model") or (None if base["local"] else base["name"])
    hub_id = known["match"][0] if known and "base_url" not in known else on_hub
    speech = given.get("speech") or _first(texts["speech"], [located(record["data"]["source"])])
    method = record.get("method") or given.get("method")
    perturbed = record["recipe"]["perturbations"] if "method" in record else {"name": []}
    plugins = [*([find_objective(method)] if method else ()), *map(find_perturbation, perturbed["name"])]
    facts: dict[str, Any] = {
        **dict.fromkeys(_KEYS),
        "base_model": hub_id,
        "base_url": f"https://huggingface.co/{hub_id}" if hub_id else None,
        "base_title": base["name"],
        "tags": [],
        **(known or {}),
        "speech": speech,
        "languages": speech["languages"] if speech else None if method else known and known["languages"],
        "method_papers": list(dict.fromkeys(p.paper for p in plugins if p.paper and (p.bibtex or p is plugins[0]))),
        "citation": "\n\n".join(dict.fromkeys(p.bibtex for p in plugins if p.bibtex)),
        "robust": next(filter(None, (find_perturbation(name).robust for name in perturbed["name"])), None),
        "changes": list(dict.fromkeys(change for name in perturbed["name"] for change in _changes(name, perturbed))),
    }
    if method:
        facts |= {"method_title": plugins[0].title or plugins[0].__name__, "summary": plugins[0].summary}
    facts |= given
    if not facts["licence"]:
        raise LaserError(
            f"nothing is known about the base model {base['name']!r}, above all its licence. Look it up and say it: "
            """echo '{"licence": "mit", "base_title": "My HuBERT"}' > facts.json, then give --facts facts.json """
            "(to laser-hf train: --hub_facts facts.json); docs/publishing.md lists the keys"
        )
    facts["licence_title"] = called = texts["licences"].get(facts["licence"], facts["licence"])
    usual, given_text = f"The base model is published under {called}; so are these weights.", facts["licence_text"]
    facts["licence_text"] = texts["licence_texts"].get(given_text, given_text) or usual
    aim = f" to be {facts['robust']}" if facts["robust"] else ""
    done = f"fine-tuned{aim} with {facts['method_title']}" if method else "converted for transformers"
    title = f"{facts['base_title']}, {done}"
    facts["title"] = facts["title"] or title[0].upper() + title[1:]
    return facts


def _checked(given: Values) -> dict[str, Any]:
    """`given` with lists where lists are meant; `LaserError` for keys that no card has."""
    speech = given.get("speech") or {}
    if not isinstance(speech, Mapping):
        raise LaserError(f"facts: speech must be an object with {', '.join(SPEECH_KEYS)}, got {speech!r}")
    for keys, known in ((given, _KEYS), (speech, SPEECH_KEYS)):
        if unknown := sorted(set(keys) - set(known)):
            raise LaserError(f"facts: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    if not speech:
        return dict(given)
    if not speech.get("title"):
        raise LaserError("facts: speech needs a title, such as the name of the corpus")
    languages = speech.get("languages") or []
    languages = [languages] if isinstance(languages, str) else languages
    return {**given, "speech": {**dict.fromkeys(SPEECH_KEYS), **speech, "languages": languages}}


def _names_of(record: Values) -> list[str]:
    """What the base model may be known by: its id, or of a folder its path, the id that it names, and its digest."""
    base, named = record["base_model"], None
    if not base["local"]:
        return [base["name"]]
    folder = located(record["recipe"]["model"]["model_name_or_path"] or "")
    with contextlib.suppress(LaserError):  # it may be elsewhere
        named = read_json(Path(folder) / "config.json", dict).get("_name_or_path")
    cached = re.sub(r"models--([\w.-]+?)--", r"\1/", folder)  # a folder of the Hub's cache
    digest = (record["recipe"].get("content") or {}).get("model_name_or_path")
    return [name for name in (cached, digest, named) if name]


def _first(entries: Iterable[Values], names: Sequence[str]) -> dict[str, Any] | None:
    """The first entry that matches one of the names: a Hub id or path that contains, as whole parts, one of its own."""
    for name in names:
        for entry in entries:
            if any(f"/{one}/" in f"/{name.strip('/')}/" for one in entry["match"]):
                return dict(entry)
    return None


def _changes(name: str, values: Values) -> Sequence[str]:
    found = plugin = find_perturbation(name)
    options = {option.dest: values[option.dest] for option in plugin.options if option.dest in values}
    with contextlib.suppress(ValueError, OSError, ImportError):  # its noise or its libraries may be elsewhere
        found = plugin(**plugin.checked(options))
    return found.changes or [plugin.title or plugin.__name__]


def listed(items: Sequence[Any]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def published_values(record: Values, base: str, method_title: str) -> list[dict[str, str]]:
    """What the literature reports for a run's recipe, if it is a paper's; both titles are as on the card."""
    texts = json.loads(card_file("texts.json"))
    if record.get("changed_from_preset") != [] or record["preset"] not in texts["published_presets"]:
        return []
    known = json.loads((importlib.resources.files("laser_hf") / "superb" / "published.json").read_text())
    models = {"base": base, record["method"]: f"{base} with {method_title}"}
    measures, rows = texts["published"], {}
    for entry in known["values"]:
        if entry["base"] == base and entry["method"] in models and entry["column"] in measures:
            source = known["sources"][entry["source"]]
            second = "" if entry["evidence"] == "read" else ", quoted second-hand"
            value = f"{entry['value']} {'%' if entry['unit'] == 'percent' else entry['unit']}"
            value = f"{entry['value'] / 100:.4f}" if entry["column"] == "mtwv" else value  # our records have a fraction
            row = {"model": models[entry["method"]], "measure": measures[entry["column"]], "value": value}
            row["source"] = f"[{source['title']}]({source['url']}), {entry['place']}{second}"
            # The same value may stand in several tables of a paper.
            rows.setdefault((row["model"], row["measure"]), row)
    return list(rows.values())


@dataclass(frozen=True)
class Result:
    """One measure, `metric`, of one model, which the table calls `model`, in the record of a `file`."""

    whose: str
    model: str
    file: str
    record: Values
    metric: Values


def read_results(
    files: Mapping[str, Path], digest: str, base_digest: str | None, base_name: str, names: Sequence[str]
) -> tuple[list[Result], list[str]]:
    """Results of all `files`, and the names of files that are no evaluation records.

    Files have their names in the repository, those of runs with other seeds `results/seed-N/...`. Digests are of the
    exported weights and of the base model's, if they can be had; the table calls it `base_name`. `names` are folder and
    repository of the model: a record that names them with another digest, and no revision, is a `LaserError`.
    """
    results, unread, own_paths = [], [], {Path(name).resolve() for name in names}
    for file, path in files.items():
        record: Values = {}
        with contextlib.suppress(LaserError):
            record = read_record(path)
        if not record.get("metrics"):
            unread.append(file)
            continue
        # What was measured of the base model in the same way may stand in the same record.
        for part in (record, record.get("base") or {}):
            found, model, revision = part.get("weights_sha256"), str(part.get("model")), part.get("model_revision")
            whose, called = OTHER, str(part.get("name") or (model if revision else Path(model).name))
            called += f" at {revision[:7]}" if revision else ""
            if found == digest:
                whose, called = OWN, "this model"
            elif found is not None and found == base_digest:
                whose, called = BASE, base_name
            elif part and (seed := re.match(r"results/seed-(\d+)/", file)):
                whose, called = SEED, f"seed {seed[1]}"
            elif part and not revision and Path(model).resolve() in own_paths:
                what = f"was made with other weights ({found[:12]}…, not {digest[:12]}…)" if found else "has no digest"
                raise LaserError(f"{file} names this model ({model}) but {what}; evaluate again, or remove it")
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
    """Entries of `.eval_results/librispeech_asr.yaml`: SUPERB's word error rates; those of phones would look alike."""
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
