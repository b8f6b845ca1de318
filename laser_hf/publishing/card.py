"""The model card: `model_cards/model_card.md.jinja` filled from the records of a run and from `facts`."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
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
from .facts import BASE, OTHER, OWN, Result, card_file, listed, matches, model_index, published_values

Values = Mapping[str, Any]
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_PLACEHOLDER = re.compile(r"\{[{%#]|[}%#]\}|\b(?:TODO|TBD|FIXME|XXX|None|undefined|nan)\b|(?i:more information needed)")


def render_card(
    record: Values, facts: Values, repo_id: str, config: Values, preprocessor: Values, results=(), plots=()
) -> str:
    """The model card as Markdown with YAML front matter.

    Args:
        record: `laser_config.json` of the run.
        facts: from `find_facts`.
        repo_id: where the model will be found.
        config, preprocessor: `config.json` and `preprocessor_config.json` of the exported encoder.
        results: from `read_results`.
        plots: paths of images in the repository.

    Raises:
        LaserError: a record or facts without something that the card must say.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "listed": listed, "duration": _duration, "code": code, "text": text}
    texts = json.loads(card_file("texts.json"))
    try:
        source, machine = record["data"]["source"], record["hardware"]
        hardware = text(", ".join(machine["gpus"]) or f"{machine['processor']}, {machine['cores']} cores, no GPU")
        given = {"record": record, "facts": facts, "config": config, "preprocessor": preprocessor, "repo_id": repo_id}
        card = environment.from_string(card_file("model_card.md.jinja")).render(
            given,
            metadata=_metadata(record, facts, repo_id, results),
            frame_milliseconds=1000 * math.prod(config["conv_stride"]) / preprocessor["sampling_rate"],
            trained_layers=sorted({int(number) for number in _LAYER.findall(" ".join(record["trained_parameters"]))}),
            trained_others=[code(name) for name in record["trained_parameters"] if not _LAYER.match(name)],
            source_name=_source_name(record["data"]),
            speech=next((entry for entry in texts["speech"] if matches(located(source), entry["match"])), None),
            hardware=hardware,
            settings=_settings(record, texts["settings"], hardware),
            held_out=_held_out(record, texts["held_out"]),
            results=_comparison(results, texts),
            others=[_words(result, texts) for result in results if result.whose == OTHER],
            evaluated=any(result.whose == OWN for result in results),
            published=published_values(facts["base_title"], record["method"], facts["method_title"]),
            plots={
                _url(plot): texts["plots"].get(Path(plot).stem, Path(plot).stem.replace("_", " ")) for plot in plots
            },
        )
    except (KeyError, TypeError, AttributeError, ValueError, jinja2.UndefinedError) as error:
        raise LaserError(f"the card cannot be filled: {type(error).__name__} {error}") from error
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"  # blocks that were left out leave their blank lines behind


def placeholders(card: str) -> list[str]:
    """What looks like a gap left in a card, each with its line number."""
    found, in_code = [], False
    for number, line in enumerate(card.splitlines(), 1):
        in_code ^= line.startswith("```")
        gaps = (match.group() for match in _PLACEHOLDER.finditer(line))
        found += [f"line {number}: {gap}" for gap in gaps if not (in_code and gap == "None")]  # a value in a program
    return found


def _metadata(record: Values, facts: Values, repo_id: str, results: Sequence[Result]) -> str:
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


def _settings(record: Values, labels: Values, hardware: str) -> list[tuple[str, Any]]:
    recipe, base, versions = record["recipe"], record["base_model"], record["versions"]
    revision = f" at revision {code(base['revision'])}" if base["revision"] else ""
    commit = f", commit {code(record['commit'])}" if record["commit"] else ""
    options = {**recipe["model"], **recipe["data"], **recipe["training"]}
    if options["seconds_per_update"]:
        options["pairs_per_update"] = None  # it has no effect then
    if options["coupled_weight_decay"]:
        options["optim"] = "Adam with L2 regularisation"  # it takes the place of what the Trainer makes
    names = recipe["perturbations"]["name"]
    rows = [
        ("base model", ("a local folder, " if base["local"] else "") + f"{code(base['name'])}{revision}"),
        ("parameters of the encoder", f"{base['parameters']:,}"),
        ("preset", code(record["preset"]) if record["preset"] else None),
        *_options(find_objective(record["method"]), recipe["objective"]),
        ("perturbation", ", ".join(map(code, names))),
        *(row for name in names for row in _options(find_perturbation(name), recipe["perturbations"])),
        *((label, _value(options[name] or None)) for name, label in labels.items()),
        ("precision", _value(record["precision"])),
        ("seed", record["seed"]),
        ("wall time", _duration(record["wall_seconds"])),
        ("hardware", hardware),
        ("code", text(f"laser_hf {versions['laser_hf']}") + commit),
        ("libraries", text(f"torch {versions['torch']}, transformers {versions['transformers']}")),
        ("finished", _value(record["written"])),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _options(plugin: type[Plugin], values: Values) -> list[tuple[str, Any]]:
    labels = {o.dest: f"{re.split(r'[;(]', o.help)[0].strip()} (`{o.dest}`)" for o in plugin.options}
    return [(label, _value(values.get(dest))) for dest, label in labels.items()]


def _value(value: Any) -> str | None:
    """A value of a record as Markdown; `None` if it is `None`."""
    if isinstance(value, dict):
        return ", ".join(f"{text(name)} {_value(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, map(_value, value)))
    return number(value) if isinstance(value, float) else None if value is None else text(value)


def text(value: Any) -> str:
    """A foreign text as Markdown that shows it: on one line, without markup, links or HTML."""
    return re.sub(r"([\\*\[\]|~])", r"\\\1", _line(value).replace("&", "&amp;").replace("<", "&lt;"))


def code(value: Any) -> str:
    """A foreign name as a code span, on one line and fit for a table."""
    return "`" + re.sub(r"\\*\|", r"\\|", _line(value)) + "`"


def _line(value: Any) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split()).replace("`", "'")


def _held_out(record: Values, labels: Values) -> list[tuple[str, str, str]]:
    terms = find_objective(record["method"]).term_labels
    labels = {"eval_loss": terms["total"], **{f"eval_{term}": label for term, label in terms.items()}, **labels}
    first, last = ({key: one["value"] for key, one in record[when].items()} for when in ("first", "last"))
    known = [key for key in labels if None not in (first.get(key), last.get(key))]
    return [(labels[key], number(first[key]), number(last[key])) for key in known]


def _words(result: Result, texts: Values) -> dict[str, str]:
    """A result in words; `text` is its value with unit and deviation."""
    metric, task, protocol = result.metric, result.record["task"], result.record.get("protocol")
    measure = texts["measures"].get(metric["metric"], metric["metric"].replace("_", " "))
    layer = f"layer {metric['layer']}" if metric.get("layer") is not None else None
    value, unit = number(metric["value"]), {"percent": " %", "fraction": ""}.get(metric["unit"], f" {metric['unit']}")
    deviation, runs = metric.get("standard_deviation"), result.record.get("runs")
    if deviation is not None and runs:
        value, unit = f"{value} ± {number(deviation)}", f"{unit} ({len(runs)} runs)"
    task = f"{texts['tasks'].get(task, task.replace('_', ' '))} ({texts['protocols'].get(protocol, protocol)})"
    measure = ", ".join(filter(None, (measure, metric["split"], layer)))
    words = {"task": task, "measure": measure, "text": (value + unit).strip(), "model": result.model}
    return {**{name: text(word) for name, word in words.items()}, "file": f"[{code(result.file)}]({_url(result.file)})"}


def _url(path: str) -> str:
    return urllib.parse.quote(path, errors="surrogateescape")


def _comparison(results: Sequence[Result], texts: Values) -> list[dict[str, Any]]:
    """Rows of this model beside its base model, if this model has any result."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        if result.whose != OTHER:
            words = _words(result, texts)
            row = rows.setdefault((words["task"], words["measure"]), {**words, OWN: [], BASE: [], "files": {}})
            row[result.whose].append(words["text"])
            row["files"][words["file"]] = None
    return list(rows.values()) if any(row[OWN] for row in rows.values()) else []


def _on_hub(data: Values) -> bool:
    # LibriSpeech/train-clean-5 could be either; records say which.
    return not data.get("local") and re.fullmatch(r"[\w.-]+/[\w.-]+", data["source"]) is not None


def _source_name(data: Values) -> str:
    source = data["source"]
    name = f"[{source}](https://huggingface.co/datasets/{source})"
    name = name if _on_hub(data) else f"the local folder {code(Path(source).name)}"
    return ", ".join([name, *(code(data[key]) for key in ("name", "split") if data.get(key))])


def number(value: float) -> str:
    """Four significant digits, without exponents for everyday sizes."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
