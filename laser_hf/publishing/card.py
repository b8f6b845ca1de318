"""The model card: a template filled from the records of a run, never from memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from ..records import located, read_json

# Of the held-out quantities in a record, those that a reader can make use of.
_HELD_OUT = {
    "eval_loss": "loss",
    "eval_soft_dtw": "soft-DTW term",
    "eval_idm": "temporal regularisation (IDM) term",
    "eval_frame_cosine": "mean cosine of frame pairs",
    "eval_effective_rank": "effective rank of the frames",
}
_PLACEHOLDER = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|#\}|\b(?:TODO|TBD|FIXME|XXX|None|undefined|nan)\b|(?i:more information needed)"
)


class CardError(ValueError):
    """Records or facts that make no honest card."""


def find_facts(record: Mapping[str, Any], cards_dir: str | Path) -> dict[str, Any]:
    """The facts file written for the base model of a run.

    Args:
        record: `laser_config.json` of the run.
        cards_dir: folder of the facts files (`model_cards/`).

    Raises:
        CardError: no facts, and therefore no known licence, for this base model.
    """
    name = _base_path(record)
    for path in sorted(Path(cards_dir).glob("*.json")):
        facts = read_json(path)
        if any(_is_source(name, base) for base in facts.get("bases", ())):
            return facts
    raise CardError(
        f"nothing is known here about the base model {record['base_model']['name']!r}, above all its licence. Write a "
        f"facts file like {Path(cards_dir).name}/hubert-laser.json and give it with --facts"
    )


def find_speech(record: Mapping[str, Any], cards_dir: str | Path) -> dict[str, Any] | None:
    """Title, attribution and limits of the speech a run was trained on; `None` when it is of unknown origin."""
    for entry in read_json(Path(cards_dir) / "speech.json")["sources"]:
        if any(_is_source(located(record["data"]["source"]), known) for known in entry["match"]):
            return entry
    return None


def read_results(
    files: Mapping[str, Path], own_names: Sequence[str] = ()
) -> tuple[list[dict[str, str]], list[str], list[str]]:
    """Rows of the results table.

    Two layouts are read: one measure of one model (`task`, `model`, `metric`, `value`), and the same measures
    `before` and `after` fine-tuning.

    Args:
        files: path of each result file by its name in the repository.
        own_names: names that mean the model itself in a `model` entry: its folder and its repository.

    Returns:
        Rows with `task`, `model`, `measure`, `value` and `file`; the files that say something about this very
        model; the files of neither layout.
    """
    rows, own, unread = [], [], []
    for name, path in files.items():
        found = list(_result_rows(read_json(path), {_comparable(n) for n in own_names}))
        if not found:
            unread.append(name)
        if any(row["model"] == "this model" for row in found):
            own.append(name)
        rows += [{**row, "file": name} for row in found]
    return rows, own, unread


def _result_rows(content: Any, own_names: set[str]):
    if not isinstance(content, dict):
        return
    if {"task", "metric"} <= content.keys() and isinstance(content.get("value"), int | float):
        model = str(content.get("model", ""))
        layer = f", layer {content['layer']}" if content.get("layer") is not None else ""
        protocol = f" ({content['protocol']})" if content.get("protocol") else ""
        yield {
            "task": f"{content['task']}{protocol}",
            "model": "this model" if _comparable(model) in own_names else Path(model).name or "not named",
            "measure": str(content["metric"]).replace("_", " ") + layer,
            "value": f"{_number(content['value'])} {content.get('unit') or ''}".strip(),
        }
    elif isinstance(content.get("before"), dict) and isinstance(content.get("after"), dict):
        for key, after in content["after"].items():
            before = content["before"].get(key)
            if isinstance(after, float) and isinstance(before, int | float):
                yield {
                    "task": str(content.get("task", "")),
                    "model": "this model",
                    "measure": key.replace("_", " "),
                    "value": f"{_number(after)} (before fine-tuning {_number(before)})",
                }
    elif content and all(isinstance(entry, dict) and "value" in entry for entry in content.values()):
        for entry in content.values():
            yield from _result_rows(entry, own_names)


def render_card(
    record: Mapping[str, Any],
    facts: Mapping[str, Any],
    template_path: str | Path,
    *,
    repo_id: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    speech: Mapping[str, Any] | None = None,
    results: Sequence[Mapping[str, str]] = (),
    evaluated: bool | None = None,
    plots: Sequence[str] = (),
) -> str:
    """The model card as Markdown with YAML front matter.

    Args:
        record: `laser_config.json` of the run.
        facts: of the base model, from `find_facts`.
        template_path: the Jinja template.
        repo_id: where the model will be found.
        config: `config.json` of the exported encoder.
        preprocessor: `preprocessor_config.json` of the exported encoder.
        speech: of the training speech, from `find_speech`.
        results: rows from `read_results`.
        evaluated: whether any of them is about this model; by default, whether there are any.
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
        card = environment.get_template(template_path.name).render(
            values,
            repo_id=repo_id,
            results=results,
            evaluated=bool(results) if evaluated is None else evaluated,
            plots=[{"file": plot, "title": _plot_title(plot)} for plot in plots],
        )
    except (KeyError, TypeError, AttributeError, jinja2.UndefinedError) as error:
        raise CardError(f"the card cannot be filled: {type(error).__name__} {error}") from error
    # Blocks that were left out leave their blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", card).rstrip("\n") + "\n"


def placeholders(card: str) -> list[str]:
    """What looks like a gap left in a card, each with its line number."""
    return [
        f"line {number}: {match.group()}"
        for number, line in enumerate(card.splitlines(), 1)
        for match in _PLACEHOLDER.finditer(line)
    ]


def _values(record, facts, config, preprocessor, speech) -> dict[str, Any]:
    recipe, data, base = record["recipe"], record["data"], record["base_model"]
    stride = 1
    for factor in config["conv_stride"]:
        stride *= factor
    layers = config["num_hidden_layers"]
    held_out = [
        (label, _number(record["first"][key]["value"]), _number(record["last"][key]["value"]))
        for key, label in _HELD_OUT.items()
        if key in record["first"]
        and record["first"][key]["value"] is not None
        and record["last"][key]["value"] is not None
    ]
    trained = sorted({int(n) for n in re.findall(r"encoder\.layers\.(\d+)\.", " ".join(record["trained_parameters"]))})
    others = [name for name in record["trained_parameters"] if not re.match(r"encoder\.layers\.\d+\.", name)]
    link = f"[{facts['base_title']}]({facts['base_url']})" if facts["base_url"] else facts["base_title"]
    paper = (
        f"([{facts['base_authors']}]({facts['base_paper']}))" if facts["base_paper"] else f"({facts['base_authors']})"
    )
    # By name and not by truth: an unknown licence of the data must be said, not left out.
    unknown = f"The origin and licence of the fine-tuning speech ({_source_name(data)}) are not recorded."
    return {
        "metadata": _metadata(record, facts),
        "facts": facts,
        "collapse_step": record["collapse"]["fired_at"],
        "sampling_rate": preprocessor["sampling_rate"],
        "do_normalize": preprocessor["do_normalize"],
        "hidden_size": config["hidden_size"],
        "frame_milliseconds": _number(1000 * stride / preprocessor["sampling_rate"]),
        "group_norm": config.get("feat_extract_norm") == "group",
        "layers": layers,
        "base_link": link,
        "base_attribution": f"Base model: {link} {paper}.",
        "trained_layers": _trained_layers(trained),
        "trained_others": f", and so were {_listed([f'`{name}`' for name in others])}" if others else "",
        "speech_source": (f"{speech['title']}, " if speech else "") + _source_name(data),
        "speech_amount": f" ({data['utterances']:,} utterances)" if data.get("utterances") else "",
        "skipped": data["skipped"]["utterances"],
        "speech_attribution": speech["attribution"] if speech else unknown,
        "speech_limits": speech["limits"] if speech else unknown,
        "updates": f"{record['updates']:,}",
        "processed_hours": _number(record["processed_hours"]),
        "settings": _settings(record, recipe, base),
        "held_out": held_out,
        "held_out_steps": [record[when]["eval_loss"]["step"] for when in ("first", "last")] if held_out else [],
    }


def _trained_layers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"number {numbers[0]} was"
    return f"numbers {_listed(numbers)} were" if numbers else ""


def _metadata(record: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    source = record["data"]["source"]
    base = record["base_model"]
    hub_data = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    return ModelCardData(
        language=facts["languages"],
        license=facts["licence"],
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["laser", "speech", "self-supervised", *facts["tags"]],
        base_model=None if base["local"] else base["name"],
        datasets=[source] if hub_data else None,
    ).to_yaml()


def _settings(record, recipe, base) -> list[tuple[str, Any]]:
    objective, training, hardware = recipe["objective"], recipe["training"], record["hardware"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    preset = record["preset"]
    rows = [
        ("base model", ("a local folder, " if base["local"] else "") + f"`{base['name']}`{revision}"),
        ("parameters of the encoder", f"{base['parameters']:,}"),
        ("preset", f"`{preset}`" if preset else None),
        ("soft-DTW smoothing (gamma)", objective["gamma"]),
        ("weight of the IDM term (alpha)", objective["alpha"]),
        ("window of the IDM term in frames (sigma)", objective["sigma"]),
        ("margin of the IDM term", objective["margin"]),
        ("distance in the IDM term", objective["distance"]),
        ("size of the projection", recipe["model"]["projection_dim"]),
        ("pairs an update", training["pairs_per_update"]),
        ("learning rate", training["learning_rate"]),
        (
            "schedule",
            f"{_enum(training['lr_scheduler_type'])}, {training['warmup_steps']} updates of warm-up",
        ),
        ("optimiser", _enum(training["optim"])),
        ("precision", record["precision"]),
        ("seed", record["seed"]),
        ("wall time", _duration(record["wall_time_seconds"])),
        (
            "hardware",
            ", ".join(hardware["gpus"]) or f"{hardware['processor']}, {hardware['cores']} cores, no GPU",
        ),
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


def _base_path(record: Mapping[str, Any]) -> str:
    """Hub id, or the path of the folder that the base model was loaded from."""
    if record["base_model"]["local"]:
        return located(record["recipe"]["model"]["model_name_or_path"])
    return record["base_model"]["name"]


def _is_source(name: str, known: str) -> bool:
    return f"/{known}/" in f"/{name.strip('/')}/"


def _comparable(name: str) -> str:
    """Folders by their absolute path, whatever way they were written; Hub ids as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


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


def _number(value: float) -> str:
    """Four significant digits, without exponents for everyday sizes."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
