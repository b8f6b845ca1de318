"""The model card: `model_cards/model_card.md.jinja` filled from the records of a run and from `facts`."""

from __future__ import annotations

import json
import math
import re
import statistics
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from ..data import find_perturbation
from ..errors import LaserError
from ..objectives import find_objective
from ..plugins import Plugin
from .facts import BASE, OTHER, OWN, SEED, Result, Values, card_file, listed, model_index, published_values

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_PLACEHOLDER = re.compile(r"\{[{%#]|[}%#]\}|\b(?:TODO|TBD|FIXME|XXX|None|undefined|nan)\b|(?i:more information needed)")


def render_card(
    record: Values, facts: Values, repo_id: str, config: Values, preprocessor: Values, results=(), plots=()
) -> str:
    """The model card as Markdown with YAML front matter.

    `record` is that of the run or conversion, `facts` come from `find_facts` and `results` from `read_results`;
    `config` and `preprocessor` are the exported JSON files, `plots` the paths of images in the repository.
    `LaserError` for a record or facts without something that the card must say.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "listed": listed, "duration": _duration}
    environment.filters |= {"code": code, "text": text, "count": _count}
    texts = json.loads(card_file("texts.json"))
    try:
        machine, rows = record["hardware"], _comparison(results, texts, f"seed {record['seed']} (this model)")
        given = {"record": record, "facts": facts, "config": config, "preprocessor": preprocessor, "repo_id": repo_id}
        given |= _of_training(record, facts, texts) if record["task"] == "training" else {"published": []}
        order = [*texts["plots"], *sorted(Path(plot).stem for plot in plots)]
        address = re.match(r".*?(https?://[^\s,]+)", (facts["method_papers"] or [""])[0])
        card = environment.from_string(card_file("model_card.md.jinja")).render(
            given,
            metadata=_metadata(record, facts, repo_id, results),
            toolkit=texts["toolkit"],
            method_url=address and address[1],
            millions=number(record["base_model"]["parameters"] / 1e6),
            frame_milliseconds=1000 * math.prod(config["conv_stride"]) / preprocessor["sampling_rate"],
            hardware=text(", ".join(machine["gpus"]) or f"{machine['processor']}, {machine['cores']} cores, no GPU"),
            about_speaker="speaker" in " ".join(facts["changes"]),
            results=[row for row in rows if row[OWN]] and [row for row in rows if row[OWN] or row[BASE]],
            seeds=[row for row in rows if "mean" in row],
            seed_names=rows[0]["names"] if rows else [],
            others=[_words(result, texts) for result in results if result.whose == OTHER],
            evaluated=any(result.whose == OWN for result in results),
            plots={
                _url(plot): texts["plots"].get(Path(plot).stem, Path(plot).stem.replace("_", " "))
                for plot in sorted(plots, key=lambda plot: order.index(Path(plot).stem))
            },
        )
    except (KeyError, TypeError, AttributeError, ValueError, jinja2.UndefinedError) as error:
        raise LaserError(f"the card cannot be filled: {type(error).__name__} {error}") from error
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"  # blocks that were left out leave their blank lines behind


def _of_training(record: Values, facts: Values, texts: Values) -> dict[str, Any]:
    """What the card of a training run says besides what every card says."""
    names, data, terms = record["trained_parameters"], record["data"], find_objective(record["method"]).term_labels
    hub, local = "[{0}](https://huggingface.co/datasets/{0})", f"the local folder {code(Path(data['source']).name)}"
    source = hub.format(data["source"]) if _on_hub(data) else local
    labels = {"eval_loss": terms["total"], **{f"eval_{term}": label for term, label in terms.items()}}
    labels |= texts["held_out"]
    first, last = ({key: one["value"] for key, one in record[when].items()} for when in ("first", "last"))
    known = [key for key in labels if None not in (first.get(key), last.get(key))]
    return {
        "trained_layers": sorted({int(number) for number in _LAYER.findall(" ".join(names))}),
        "trained_others": [code(name) for name in names if not _LAYER.match(name)],
        "source_name": ", ".join([source, *(code(data[key]) for key in ("name", "split") if data.get(key))]),
        "licences": texts["licences"],
        "settings": _settings(record, texts["settings"]),
        "held_out": [(labels[key], number(first[key]), number(last[key])) for key in known],
        "published": published_values(record, facts["base_title"], facts["method_title"]),
    }


def placeholders(card: str) -> list[str]:
    """What looks like a gap left in a card, each with its line number."""
    found, in_code = [], False
    for number, line in enumerate(card.splitlines(), 1):
        in_code ^= line.startswith("```")
        gaps = _PLACEHOLDER.findall(line)
        found += [f"line {number}: {gap}" for gap in gaps if not (in_code and gap == "None")]  # a value in a program
    return found


def _metadata(record: Values, facts: Values, repo_id: str, results: Sequence[Result]) -> str:
    entries, data = model_index(results), record["data"]
    corpus = (facts["speech"] or {}).get("dataset") or (data["source"] if _on_hub(data) else None)
    method, kind = record.get("method") or facts["method"] or "", record["base_model"]["model_type"]
    tags = [method.rpartition(":")[2], "speech", "self-supervised", kind, facts["robust"], *facts["tags"]]
    return ModelCardData(
        language=facts["languages"] or None,
        license=facts["licence"],
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[tag for tag in tags if tag],
        base_model=facts["base_model"],
        datasets=[corpus] if corpus else None,
        metrics=sorted({entry.metric_type for entry in entries}) or None,
        model_name=repo_id.split("/")[-1] if entries else None,
        eval_results=entries or None,
        **({"base_model_relation": "finetune"} if facts["base_model"] else {}),
    ).to_yaml()


def _settings(record: Values, labels: Values) -> list[tuple[str, Any]]:
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
        ("preset", code(record["preset"]) if record["preset"] else None),
        *_options(find_objective(record["method"]), recipe["objective"]),
        ("perturbation", ", ".join(map(code, names))),
        *(row for name in names for row in _options(find_perturbation(name), recipe["perturbations"])),
        *((label, _value(options[name] or None)) for name, label in labels.items()),
        ("precision", _value(record["precision"])),
        ("seed", record["seed"]),
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


def _words(result: Result, texts: Values) -> dict[str, str]:
    """A result in words; `text` is its value with unit and deviation."""
    metric, task, protocol = result.metric, result.record["task"], result.record.get("protocol")
    measure = texts["measures"].get(metric["metric"], metric["metric"].replace("_", " "))
    layer = f"layer {metric['layer']}" if metric.get("layer") is not None else None
    value, unit = number(metric["value"]), {"percent": " %", "fraction": ""}.get(metric["unit"], f" {metric['unit']}")
    deviation, runs = metric.get("standard_deviation"), result.record.get("runs")
    if deviation is not None and runs:
        value, unit = f"{value} ± {deviation:.2g}", f"{unit} ({_count(len(runs), 'run')})"
    task = f"{texts['tasks'].get(task, task.replace('_', ' '))} ({texts['protocols'].get(protocol, protocol)})"
    measure = ", ".join(filter(None, (measure, metric["split"], layer, *_subsets(result.record, metric))))
    words = {"task": task, "measure": measure, "text": (value + unit).strip(), "model": result.model}
    return {**{name: text(word) for name, word in words.items()}, "file": f"[{code(result.file)}]({_url(result.file)})"}


def _subsets(record: Values, metric: Values) -> list[str]:
    """What a number leaves out of its test set, and the part of a training set that a head was trained on."""
    data, recipe, found = record["data"], record["recipe"], []
    tests = data.get("test") or [data]
    test = next((one for one in tests if one.get("split") == metric["split"]), tests[0])
    skipped = test.get("skipped") or {}
    sizes = (one if isinstance(one, int) else len(one) for one in skipped.values())
    missing = skipped["utterances"] if "utterances" in skipped else sum(sizes)
    if recipe.get("max_utterances") and test.get("utterances"):
        found.append(f"only {_count(test['utterances'], 'utterance')}")
    elif missing:
        found.append(f"without {_count(missing, 'skipped utterance')}")
    if metric.get("trials") == "subset" and (full := data.get("collection")):
        found.append(f"only {data['queries']} of {_count(full['queries_with_target'], 'query', 'queries')}")
    head = data.get("head_training") or (recipe.get("max_train_utterances") and data.get("train"))
    return [*found, *([f"head trained on {_count(head['utterances'], 'utterance')}"] if head else [])]


def _url(path: str) -> str:
    return urllib.parse.quote(path, errors="surrogateescape")


def _comparison(results: Sequence[Result], texts: Values, own_seed: str) -> list[dict[str, Any]]:
    """Rows of this model, its base model and, with `names`, `values` and `mean`, of runs with other seeds."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    names = [own_seed, *dict.fromkeys(result.model for result in results if result.whose == SEED)]
    for result in (result for result in results if result.whose != OTHER):
        words = _words(result, texts)
        new = {**words, OWN: [], BASE: [], SEED: [], "files": {}, "of": {}, "names": names}
        row = rows.setdefault((words["task"], words["measure"]), new)
        row[result.whose].append(words["text"])
        if result.whose != BASE:
            row["of"][own_seed if result.whose == OWN else result.model] = (result.metric["value"], words["text"])
        row["files"][words["file"]] = None
    for row in rows.values():
        row["values"] = [row["of"].get(name, (None, "not measured"))[1] for name in names]
        if len(found := [value for value, _ in row["of"].values()]) > 1:
            mean, unit = number(statistics.fmean(found)), " %" if "%" in row["text"] else ""
            row["mean"] = f"{mean} ± {statistics.stdev(found):.2g}{unit} ({len(found)} seeds)"
    return list(rows.values())


def _on_hub(data: Values) -> bool:
    # LibriSpeech/train-clean-5 could be either; records say which.
    return not data.get("local") and re.fullmatch(r"[\w.-]+/[\w.-]+", data["source"]) is not None


def number(value: float) -> str:
    """Four significant digits, without exponents for everyday sizes."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def _count(value: float, one: str, many: str | None = None) -> str:
    """`1 update`, `2,500 updates`."""
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return _count(round(seconds), "second")
    return _count(round(seconds / 60), "minute") if seconds < 5400 else f"{seconds / 3600:.1f} hours"
