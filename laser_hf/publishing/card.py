"""The model card: a template filled from the records of a run and from what `facts` finds, never from memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from .evaluation import OWN, Result, comparison, number, others
from .facts import CardError, listed, perturbations, published_values
from .hub_results import model_index

# Of the held-out quantities in a record, those that a reader can make use of.
_HELD_OUT = {
    "eval_loss": "loss",
    "eval_soft_dtw": "soft-DTW term",
    "eval_idm": "temporal regularisation (IDM) term",
    "eval_swapped_x": "swapped prediction, from the first version",
    "eval_swapped_y": "swapped prediction, from the second version",
    "eval_perplexity": "perplexity of the assigned codes",
    "eval_code_perplexity": "perplexity of the nearest codes",
    "eval_frame_cosine": "mean cosine of frame pairs",
    "eval_effective_rank": "effective rank of the frames",
}
_OBJECTIVE = {
    "gamma": "soft-DTW smoothing (gamma)",
    "alpha": "weight of the IDM term (alpha)",
    "sigma": "window of the IDM term in frames (sigma)",
    "margin": "margin of the IDM term",
    "distance": "distance in the IDM term",
    "codes": "entries of the codebook (codes)",
    "temperature": "temperature of the predictions",
    "epsilon": "entropy regularisation of the assignment (epsilon)",
    "iterations": "Sinkhorn iterations",
}
_PLACEHOLDER = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|#\}|\b(?:TODO|TBD|FIXME|XXX|None|undefined|nan)\b|(?i:more information needed)"
)


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
    noise = _noise_name(recipe["data"]) if "noise" in perturbations(record) else None
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
        "trained_others": f", and so were {listed([f'`{name}`' for name in beside])}" if beside else "",
        "speech_source": (f"{speech['title']}, " if speech else "") + _source_name(data),
        "speech_amount": f" ({data['utterances']:,} utterances)" if data.get("utterances") else "",
        "skipped": data["skipped"]["utterances"],
        "speech_attribution": speech["attribution"] if speech else unknown,
        "noise_attribution": f"Noise from {noise} was added in training; its origin and licence are not recorded."
        if noise
        else None,
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
    return f"numbers {listed(numbers)} were" if numbers else ""


def _metadata(record: Mapping[str, Any], facts: Mapping[str, Any], repo_id: str, results: Sequence[Result]) -> str:
    data = record["data"]
    base = record["base_model"]
    entries = model_index(results)
    return ModelCardData(
        language=facts["languages"],
        license=facts["licence"],
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[record["method"], "speech", "self-supervised", *facts["tags"]],
        base_model=None if base["local"] else base["name"],
        datasets=[data["source"]] if _on_hub(data) else None,
        metrics=sorted({entry.metric_type for entry in entries}) or None,
        model_name=repo_id.split("/")[-1] if entries else None,
        eval_results=entries or None,
    ).to_yaml()


def _settings(record, recipe, base) -> list[tuple[str, Any]]:
    objective, training = recipe["objective"], recipe["training"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    preset, seconds = record["preset"], training.get("seconds_per_update")
    rows = [
        ("base model", ("a local folder, " if base["local"] else "") + f"`{base['name']}`{revision}"),
        ("parameters of the encoder", f"{base['parameters']:,}"),
        ("preset", f"`{preset}`" if preset else None),
        *((_OBJECTIVE.get(key, key.replace("_", " ")), value) for key, value in objective.items() if key != "name"),
        ("size of the projection", recipe["model"].get("projection_dim")),
        *_perturbation_settings(record),
        ("longest excerpt of an utterance", _seconds(recipe["data"].get("crop_seconds"))),
        # A run that fills its updates by duration has no fixed number of pairs.
        ("pairs an update", None if seconds else training.get("pairs_per_update")),
        ("source speech an update, at most", _seconds(seconds)),
        ("learning rate", training["learning_rate"]),
        (
            "schedule",
            f"{_enum(training['lr_scheduler_type'])}, {number(training['warmup_steps'])} updates of warm-up"
            + (f", from and to {training['min_learning_rate']:g}" if training.get("min_learning_rate") else ""),
        ),
        # Adam with L2 regularisation takes the place of what the Trainer would make.
        ("optimiser", "Adam (L2)" if training.get("coupled_weight_decay") else _enum(training["optim"])),
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


def _perturbation_settings(record) -> list[tuple[str, Any]]:
    data, names = record["recipe"]["data"], perturbations(record)
    rows = [("perturbation", ", ".join(f"`{name}`" for name in names) or "none")]
    if "speed_pitch" in names:
        rows += [("speed factors", _numbers(data.get("speed_factors")))]
        rows += [("pitch shifts in semitones", _numbers(data.get("pitch_steps")))]
    if "noise" in names:
        rows += [("noise", _noise_name(data))]
        rows += [("signal-to-noise ratios in dB", _numbers(data.get("noise_snrs")))]
    return rows


def _noise_name(data: Mapping[str, Any]) -> str | None:
    return f"the local folder `{Path(data['noise_dir']).name}`" if data.get("noise_dir") else None


def _numbers(values: Sequence[float] | None) -> str | None:
    return ", ".join(number(value) for value in values) if values else None


def _seconds(value: float | None) -> str | None:
    return f"{number(value)} seconds" if value else None


def _hardware(hardware: Mapping[str, Any]) -> str:
    return ", ".join(hardware["gpus"]) or f"{hardware['processor']}, {hardware['cores']} cores, no GPU"


def _on_hub(data: Mapping[str, Any]) -> bool:
    # LibriSpeech/train-clean-5 could be either; records say which.
    return not data.get("local") and re.fullmatch(r"[\w.-]+/[\w.-]+", data["source"]) is not None


def _source_name(data: Mapping[str, Any]) -> str:
    source = data["source"]
    if _on_hub(data):
        name = f"[{source}](https://huggingface.co/datasets/{source})"
    else:
        name = f"the local folder `{Path(source).name}`"
    parts = [f"`{data[key]}`" for key in ("name", "split") if data.get(key)]
    return name + (f", {' '.join(parts)}" if parts else "")


def _plot_title(file: str) -> str:
    titles = {
        "loss_terms": "Terms of the loss in training",
        "alignment": "Soft-DTW alignment before and after fine-tuning",
        "self_similarity": "Self-similarity of an utterance before and after fine-tuning",
        "words": "The same words by several speakers before and after fine-tuning (PCA)",
    }
    return titles.get(Path(file).stem, Path(file).stem.replace("_", " ").capitalize())


def _enum(value: Any) -> str:
    return str(value).rsplit(".", 1)[-1].lower()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
