"""The model card: `model_cards/model_card.md.jinja` filled from the records of a run and from `facts`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from ..data import find_perturbation
from ..errors import LaserError
from ..objectives import find_objective
from ..plugins import Plugin
from ..records import located
from .facts import card_file, listed, matches, published_values
from .results import BASE, OTHER, OWN, Result, model_index

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_PLACEHOLDER = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|#\}|\b(?:TODO|TBD|FIXME|XXX|None|undefined|nan)\b|(?i:more information needed)"
)


def render_card(
    record: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    repo_id: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    results: Sequence[Result] = (),
    plots: Sequence[str] = (),
) -> str:
    """The model card as Markdown with YAML front matter.

    Args:
        record: `laser_config.json` of the run.
        facts: from `find_facts`.
        repo_id: where the model will be found.
        config: `config.json` of the exported encoder.
        preprocessor: `preprocessor_config.json` of the exported encoder.
        results: from `read_results`.
        plots: paths of images in the repository.

    Raises:
        LaserError: a record or facts without something that the card must say.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"number": number, "listed": listed, "duration": _duration}
    texts = json.loads(card_file("texts.json"))
    try:
        source = record["data"]["source"]
        card = environment.from_string(card_file("model_card.md.jinja")).render(
            record=record,
            facts=facts,
            repo_id=repo_id,
            config=config,
            preprocessor=preprocessor,
            metadata=_metadata(record, facts, repo_id, results),
            frame_milliseconds=1000 * math.prod(config["conv_stride"]) / preprocessor["sampling_rate"],
            trained_layers=sorted({int(number) for number in _LAYER.findall(" ".join(record["trained_parameters"]))}),
            trained_others=[f"`{name}`" for name in record["trained_parameters"] if not _LAYER.match(name)],
            source_name=_source_name(record["data"]),
            speech=next((entry for entry in texts["speech"] if matches(located(source), entry["match"])), None),
            hardware=_hardware(record["hardware"]),
            settings=_settings(record, texts["settings"]),
            held_out=_held_out(record, texts["held_out"]),
            results=_comparison(results, texts),
            others=[_words(result, texts) for result in results if result.whose == OTHER],
            evaluated=any(result.whose == OWN for result in results),
            published=published_values(facts["base_title"], record["method"], facts["method_title"]),
            plots={plot: texts["plots"].get(Path(plot).stem, Path(plot).stem.replace("_", " ")) for plot in plots},
        )
    except (KeyError, TypeError, AttributeError, jinja2.UndefinedError) as error:
        raise LaserError(f"the card cannot be filled: {type(error).__name__} {error}") from error
    # Blocks that were left out leave their blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", card).rstrip("\n") + "\n"


def placeholders(card: str) -> list[str]:
    """What looks like a gap left in a card, each with its line number."""
    found, in_code = [], False
    for line_number, line in enumerate(card.splitlines(), 1):
        in_code ^= line.startswith("```")
        found += [
            f"line {line_number}: {match.group()}"
            for match in _PLACEHOLDER.finditer(line)
            if not (in_code and match.group() == "None")  # in a program `None` is a value
        ]
    return found


def _metadata(record: Mapping[str, Any], facts: Mapping[str, Any], repo_id: str, results: Sequence[Result]) -> str:
    base, entries = record["base_model"], model_index(results)
    return ModelCardData(
        language=facts["languages"],
        license=facts["licence"],
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[record["method"].rpartition(":")[2], "speech", "self-supervised", *facts["tags"]],
        base_model=None if base["local"] else base["name"],
        datasets=[record["data"]["source"]] if _on_hub(record["data"]) else None,
        metrics=sorted({entry.metric_type for entry in entries}) or None,
        model_name=repo_id.split("/")[-1] if entries else None,
        eval_results=entries or None,
    ).to_yaml()


def _settings(record: Mapping[str, Any], labels: Mapping[str, str]) -> list[tuple[str, Any]]:
    recipe, base, versions = record["recipe"], record["base_model"], record["versions"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    options = {**recipe["model"], **recipe["data"], **recipe["training"]}
    if options["seconds_per_update"]:
        options["pairs_per_update"] = None  # it has no effect then
    if options["coupled_weight_decay"]:
        options["optim"] = "Adam with L2 regularisation"  # it takes the place of what the Trainer makes
    names = recipe["perturbations"]["name"]
    rows = [
        ("base model", ("a local folder, " if base["local"] else "") + f"`{base['name']}`{revision}"),
        ("parameters of the encoder", f"{base['parameters']:,}"),
        ("preset", f"`{record['preset']}`" if record["preset"] else None),
        *_options(find_objective(record["method"]), recipe["objective"]),
        ("perturbation", ", ".join(f"`{name}`" for name in names)),
        *(row for name in names for row in _options(find_perturbation(name), recipe["perturbations"])),
        *((label, options[name] or None) for name, label in labels.items()),
        ("precision", record["precision"]),
        ("seed", record["seed"]),
        ("wall time", _duration(record["wall_seconds"])),
        ("hardware", _hardware(record["hardware"])),
        ("code", f"laser_hf {versions['laser_hf']}" + (f", commit `{record['commit']}`" if record["commit"] else "")),
        ("libraries", f"torch {versions['torch']}, transformers {versions['transformers']}"),
        ("finished", record["written"]),
    ]
    return [(name, _value(value)) for name, value in rows if value is not None]


def _options(plugin: type[Plugin], values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{re.split(r'[;(]', o.help)[0].strip()} (`{o.dest}`)", values.get(o.dest)) for o in plugin.options]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name} {_value(one)}" for name, one in value.items()]
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return number(value) if isinstance(value, float) else str(value)


def _held_out(record: Mapping[str, Any], labels: Mapping[str, str]) -> list[tuple[str, str, str]]:
    first, last = record["first"], record["last"]
    terms = {f"eval_{term}": label for term, label in find_objective(record["method"]).term_labels.items()}
    terms = {"eval_loss": terms["eval_total"], **terms}
    return [
        (label, number(first[key]["value"]), number(last[key]["value"]))
        for key, label in {**terms, **labels}.items()
        if None not in (first.get(key, {}).get("value"), last.get(key, {}).get("value"))
    ]


def _words(result: Result, texts: Mapping[str, Any]) -> dict[str, str]:
    """A result in words: `task`, `measure`, `text` (value with unit and deviation), `model`, `file`."""
    metric, task, protocol = result.metric, result.record["task"], result.record.get("protocol")
    measure = texts["measures"].get(metric["metric"], metric["metric"].replace("_", " "))
    layer = f"layer {metric['layer']}" if metric.get("layer") is not None else None
    value, unit = number(metric["value"]), {"percent": " %", "fraction": ""}.get(metric["unit"], f" {metric['unit']}")
    deviation, runs = metric.get("standard_deviation"), result.record.get("runs")
    if deviation is not None and runs:
        value, unit = f"{value} ± {number(deviation)}", f"{unit} ({len(runs)} runs)"
    return {
        "task": f"{texts['tasks'].get(task, task.replace('_', ' '))} ({texts['protocols'].get(protocol, protocol)})",
        "measure": ", ".join(filter(None, (measure, metric["split"], layer))),
        "text": (value + unit).strip(),
        "model": result.model,
        "file": result.file,
    }


def _comparison(results: Sequence[Result], texts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of this model beside its base model, if this model has any result."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results if any(result.whose == OWN for result in results) else ():
        if result.whose != OTHER:
            words = _words(result, texts)
            row = rows.setdefault((words["task"], words["measure"]), {**words, OWN: [], BASE: [], "files": {}})
            row[result.whose].append(words["text"])
            row["files"][result.file] = None
    return list(rows.values())


def _on_hub(data: Mapping[str, Any]) -> bool:
    # LibriSpeech/train-clean-5 could be either; records say which.
    return not data.get("local") and re.fullmatch(r"[\w.-]+/[\w.-]+", data["source"]) is not None


def _source_name(data: Mapping[str, Any]) -> str:
    source = data["source"]
    name = f"[{source}](https://huggingface.co/datasets/{source})"
    parts = [name if _on_hub(data) else f"the local folder `{Path(source).name}`"]
    return ", ".join([*parts, *(f"`{data[key]}`" for key in ("name", "split") if data.get(key))])


def _hardware(hardware: Mapping[str, Any]) -> str:
    return ", ".join(hardware["gpus"]) or f"{hardware['processor']}, {hardware['cores']} cores, no GPU"


def number(value: float) -> str:
    """Four significant digits, without exponents for everyday sizes."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
