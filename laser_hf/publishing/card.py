"""The model card: a template filled from the records of a run and from facts files, never from memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from ..records import located, read_json
from .evaluation import OWN, Result, comparison, model_index, number, others

# Of the held-out quantities in a record, those that a reader can make use of.
_HELD_OUT = {
    "eval_loss": "loss",
    "eval_soft_dtw": "soft-DTW term",
    "eval_idm": "temporal regularisation (IDM) term",
    "eval_frame_cosine": "mean cosine of frame pairs",
    "eval_effective_rank": "effective rank of the frames",
}
_NOT_KINDS = ("bases.json", "speech.json")
_NO_FACTS = {
    "base_url": None,
    "base_authors": None,
    "base_paper": None,
    "languages": ["en"],
    "note": None,
}
_OBJECTIVE = {
    "gamma": "soft-DTW smoothing (gamma)",
    "alpha": "weight of the IDM term (alpha)",
    "sigma": "window of the IDM term in frames (sigma)",
    "margin": "margin of the IDM term",
    "distance": "distance in the IDM term",
}
# A file of the package, so that cards and reports quote the literature alike.
_PUBLISHED = Path(__file__).resolve().parents[1] / "superb" / "published.json"
_METHODS = {"laser": "LASER", "score": "SCORE", "spin": "Spin"}
_COLUMNS = {
    "wer": "SUPERB speech recognition, word error rate",
    "per": "SUPERB phoneme recognition, phone error rate",
    "mtwv": "query by example, maximum term-weighted value",
    "wer_gain": "SUPERB speech recognition, word error rate, relative gain over the base model",
    "per_gain": "SUPERB phoneme recognition, phone error rate, relative gain over the base model",
    "mtwv_gain": "query by example, maximum term-weighted value, relative gain over the base model",
    "time": "fine-tuning on one GPU",
}
_PLACEHOLDER = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|#\}|\b(?:TODO|TBD|FIXME|XXX|None|undefined|nan)\b|(?i:more information needed)"
)


class CardError(ValueError):
    """Records or facts that make no honest card."""


def find_facts(
    record: Mapping[str, Any], cards_dir: str | Path, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is known about the base model and the method of a run.

    `bases.json` holds the base models, every other file one kind of published model: a method on some of them.

    Args:
        record: `laser_config.json` of the run.
        cards_dir: folder of the facts files (`model_cards/`).
        given: facts that the user gives, of either kind; they go before those of the folder.

    Returns:
        The facts of the kind, of its base model (as `base_*`, `licence`, `licence_text`, `languages`) and `title`.

    Raises:
        CardError: an unknown base model, and therefore no known licence, or an unknown method.
    """
    given = dict(given or {})
    cards_dir = Path(cards_dir)
    name, method = _base_path(record), record["method"]
    bases = read_json(cards_dir / "bases.json")["bases"]
    base = next((entry for entry in bases if any(_is_source(name, known) for known in entry["match"])), {})
    needed = ("base_title", "base_training_data", "licence", "licence_text")
    missing = [key for key in needed if not {**base, **given}.get(key)]
    if missing:
        raise CardError(
            f"nothing is known here about the base model {record['base_model']['name']!r}, above all its licence. "
            f"Write a JSON file with the keys of an entry of {cards_dir.name}/bases.json (missing: "
            f"{', '.join(missing)}) and give it with --facts"
        )
    kinds = [read_json(path) for path in sorted(cards_dir.glob("*.json")) if path.name not in _NOT_KINDS]
    kinds = [kind for kind in kinds if kind["method"] == method]
    if not kinds and "method_title" not in given:
        raise CardError(
            f"nothing is known here about the method {method!r}; write a JSON file like {cards_dir.name}/"
            "hubert-laser.json and give it with --facts"
        )
    # A kind made for this base model before one made for others: the method is the same, a note on the model is not.
    own = [kind for kind in kinds if any(_is_source(name, known) for known in kind["bases"])]
    kind = own[0] if own else {**kinds[0], "note": None, "tags": []} if kinds else {}
    facts = {**_NO_FACTS, **base, **kind, **given}
    facts["tags"] = [*base.get("tags", ()), *kind.get("tags", ()), *given.get("tags", ())]
    title = facts["base_title"]
    facts.setdefault("title", f"{title[0].upper()}{title[1:]}, fine-tuned with {facts['method_title']}")
    return facts


def find_speech(record: Mapping[str, Any], cards_dir: str | Path) -> dict[str, Any] | None:
    """Title, attribution and limits of the speech a run was trained on; `None` when it is of unknown origin."""
    for entry in read_json(Path(cards_dir) / "speech.json")["sources"]:
        if any(_is_source(located(record["data"]["source"]), known) for known in entry["match"]):
            return entry
    return None


def render_card(
    record: Mapping[str, Any],
    facts: Mapping[str, Any],
    template_path: str | Path,
    *,
    repo_id: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    speech: Mapping[str, Any] | None = None,
    results: Sequence[Result] = (),
    plots: Sequence[str] = (),
) -> str:
    """The model card as Markdown with YAML front matter.

    Args:
        record: `laser_config.json` of the run.
        facts: of the base model and the method, from `find_facts`.
        template_path: the Jinja template.
        repo_id: where the model will be found.
        config: `config.json` of the exported encoder.
        preprocessor: `preprocessor_config.json` of the exported encoder.
        speech: of the training speech, from `find_speech`.
        results: from `evaluation.read_results`.
        plots: paths of images in the repository.

    Raises:
        CardError: a record or facts without something that the card must say.
    """
    template_path = Path(template_path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_path.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        values = _values(record, facts, config, preprocessor, speech)
        evaluated = any(result.whose == OWN for result in results)
        values["metadata"] = _metadata(record, facts, repo_id, results)
        card = environment.get_template(template_path.name).render(
            values,
            repo_id=repo_id,
            results=comparison(results) if evaluated else [],
            others=others(results),
            evaluated=evaluated,
            published=published_values(facts["base_title"], record["method"]),
            plots=[{"file": plot, "title": _plot_title(plot)} for plot in plots],
        )
    except (KeyError, TypeError, AttributeError, jinja2.UndefinedError) as error:
        raise CardError(f"the card cannot be filled: {type(error).__name__} {error}") from error
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


def published_values(base: str, method: str) -> list[dict[str, str]]:
    """What the literature reports for a base model and a method on it, from the table of published values.

    Args:
        base: title of the base model, as in `bases.json`.
        method: as in the record of a run.

    Returns:
        Rows with `model`, `measure`, `value` and `source`.
    """
    known, rows = read_json(_PUBLISHED), []
    for entry in known["values"]:
        if entry["base"] != base or entry["method"] not in ("base", method) or entry["column"] not in _COLUMNS:
            continue
        source = known["sources"][entry["source"]]
        second = ", quoted second-hand" if entry["evidence"] != "read" else ""
        row = {
            "model": base if entry["method"] == "base" else f"{base} with {_METHODS.get(method, method)}",
            "measure": _COLUMNS[entry["column"]],
            "value": f"{entry['value']} {'%' if entry['unit'] == 'percent' else entry['unit']}",
            "source": f"[{source['title']}]({source['url']}), {entry['place']}{second}",
        }
        # The same value may stand in several tables of a paper.
        if not any(row["model"] == r["model"] and row["measure"] == r["measure"] for r in rows):
            rows.append(row)
    return rows


def _values(record, facts, config, preprocessor, speech) -> dict[str, Any]:
    recipe, data, base = record["recipe"], record["data"], record["base_model"]
    stride = 1
    for factor in config["conv_stride"]:
        stride *= factor
    layers = config["num_hidden_layers"]
    held_out = [
        (label, number(record["first"][key]["value"]), number(record["last"][key]["value"]))
        for key, label in _HELD_OUT.items()
        if key in record["first"]
        and record["first"][key]["value"] is not None
        and record["last"][key]["value"] is not None
    ]
    trained = sorted({int(n) for n in re.findall(r"encoder\.layers\.(\d+)\.", " ".join(record["trained_parameters"]))})
    beside = [name for name in record["trained_parameters"] if not re.match(r"encoder\.layers\.\d+\.", name)]
    link = f"[{facts['base_title']}]({facts['base_url']})" if facts["base_url"] else facts["base_title"]
    authors = facts["base_authors"]
    if authors and facts["base_paper"]:
        authors = f"[{authors}]({facts['base_paper']})"
    # By name and not by truth: an unknown licence of the data must be said, not left out.
    unknown = f"The origin and licence of the fine-tuning speech ({_source_name(data)}) are not recorded."
    return {
        "facts": facts,
        "collapse_step": record["collapse"]["fired_at"],
        "sampling_rate": preprocessor["sampling_rate"],
        "do_normalize": preprocessor["do_normalize"],
        "hidden_size": config["hidden_size"],
        "frame_milliseconds": number(1000 * stride / preprocessor["sampling_rate"]),
        "group_norm": config.get("feat_extract_norm") == "group",
        "layers": layers,
        "base_link": link,
        "base_attribution": f"Base model: {link}" + (f" ({authors})." if authors else "."),
        "trained_layers": _trained_layers(trained),
        "trained_others": f", and so were {_listed([f'`{name}`' for name in beside])}" if beside else "",
        "speech_source": (f"{speech['title']}, " if speech else "") + _source_name(data),
        "speech_amount": f" ({data['utterances']:,} utterances)" if data.get("utterances") else "",
        "skipped": data["skipped"]["utterances"],
        "speech_attribution": speech["attribution"] if speech else unknown,
        "speech_limits": speech["limits"] if speech else unknown,
        "updates": f"{record['updates']:,}",
        "processed_hours": number(record["processed_hours"]),
        "wall_time": _duration(record["wall_time_seconds"]),
        "hardware": _hardware(record["hardware"]),
        "settings": _settings(record, recipe, base),
        "held_out": held_out,
        "held_out_steps": [record[when]["eval_loss"]["step"] for when in ("first", "last")] if held_out else [],
    }


def _trained_layers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"number {numbers[0]} was"
    return f"numbers {_listed(numbers)} were" if numbers else ""


def _metadata(record: Mapping[str, Any], facts: Mapping[str, Any], repo_id: str, results: Sequence[Result]) -> str:
    source = record["data"]["source"]
    base = record["base_model"]
    hub_data = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    entries = model_index(results)
    return ModelCardData(
        language=facts["languages"],
        license=facts["licence"],
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[record["method"], "speech", "self-supervised", *facts["tags"]],
        base_model=None if base["local"] else base["name"],
        datasets=[source] if hub_data else None,
        metrics=sorted({entry.metric_type for entry in entries}) or None,
        model_name=repo_id.split("/")[-1] if entries else None,
        eval_results=entries or None,
    ).to_yaml()


def _settings(record, recipe, base) -> list[tuple[str, Any]]:
    objective, training = recipe["objective"], recipe["training"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    preset = record["preset"]
    rows = [
        ("base model", ("a local folder, " if base["local"] else "") + f"`{base['name']}`{revision}"),
        ("parameters of the encoder", f"{base['parameters']:,}"),
        ("preset", f"`{preset}`" if preset else None),
        *((_OBJECTIVE.get(key, key.replace("_", " ")), value) for key, value in objective.items() if key != "name"),
        ("size of the projection", recipe["model"].get("projection_dim")),
        ("pairs an update", training.get("pairs_per_update")),
        ("learning rate", training["learning_rate"]),
        (
            "schedule",
            f"{_enum(training['lr_scheduler_type'])}, {number(training['warmup_steps'])} updates of warm-up",
        ),
        ("optimiser", _enum(training["optim"])),
        ("precision", record["precision"]),
        ("seed", record["seed"]),
        ("wall time", _duration(record["wall_time_seconds"])),
        ("hardware", _hardware(record["hardware"])),
        (
            "code",
            f"laser_hf {record['versions']['laser_hf']}"
            + (f", commit `{record['commit']}`" if record["commit"] else ""),
        ),
        (
            "libraries",
            f"torch {record['versions']['torch']}, transformers {record['versions']['transformers']}",
        ),
        ("finished", record["written"]),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _hardware(hardware: Mapping[str, Any]) -> str:
    return ", ".join(hardware["gpus"]) or f"{hardware['processor']}, {hardware['cores']} cores, no GPU"


def _base_path(record: Mapping[str, Any]) -> str:
    """Hub id, or the path of the folder that the base model was loaded from."""
    if record["base_model"]["local"]:
        return located(record["recipe"]["model"]["model_name_or_path"])
    return record["base_model"]["name"]


def _is_source(name: str, known: str) -> bool:
    return f"/{known}/" in f"/{name.strip('/')}/"


def _source_name(data: Mapping[str, Any]) -> str:
    source = data["source"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        name = f"[{source}](https://huggingface.co/datasets/{source})"
    else:
        name = f"the local folder `{Path(source).name}`"
    parts = [f"`{data[key]}`" for key in ("name", "split") if data.get(key)]
    return name + (f", {' '.join(parts)}" if parts else "")


def _plot_title(file: str) -> str:
    titles = {
        "loss_terms": "Terms of the loss in training",
        "alignment": "Soft-DTW alignment before and after fine-tuning",
    }
    return titles.get(Path(file).stem, Path(file).stem.replace("_", " ").capitalize())


def _enum(value: Any) -> str:
    return str(value).rsplit(".", 1)[-1].lower()


def _listed(items: Sequence[Any]) -> str:
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
