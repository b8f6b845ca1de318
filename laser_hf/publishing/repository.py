"""What goes into a repository: collected from a run, cleaned of private data, and checked before it is sent."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import constants, eval_result_entries_to_yaml

from ..errors import LaserError
from ..records import TRAINING_RECORD, each, located, read_json, read_record, tensors_digest, write_json
from ..runs import differences
from .card import placeholders, render_card
from .export import EXPORTED, RECORDS, check_reload, load_checkpoint, refuse_names
from .facts import OWN, find_facts, hub_entries, read_results
from .upload import EVALUATION_SCRIPTS

_RESULTS = ("results/*.json", "results/seed-*/*.json", "results*.json")
_HUB_RESULTS = ".eval_results/librispeech_asr.yaml"
_FACTS = "facts.json"


@dataclass
class Bundle:
    """What will be uploaded: the file behind each path, the message of the commit, and what could not be checked."""

    files: dict[str, Path]
    record: dict[str, Any]
    message: str
    notes: list[str]


def prepare(request: argparse.Namespace, staging: Path) -> Bundle:
    """Collect in `staging` and check what `request` (of `push`) asks to publish; `LaserError` says why not to."""
    sources = collect(request)
    name = next(name for name in RECORDS if name in sources)
    record, config = read_record(request.run_dir / name), read_json(request.run_dir / "config.json", dict)
    if "auto_map" in config:
        raise LaserError("config.json has an auto_map, so that loading would run code of the repository")
    if record["task"] not in ("training", "conversion") or not (record.get("base_model") or {}).get("name"):
        raise LaserError(f"{name} does not say which base model was used; it is no record of laser-hf train or convert")
    facts = find_facts(record, read_json(sources[_FACTS], dict) if _FACTS in sources else None)
    exported = load_checkpoint(request.run_dir / "model.safetensors")
    exported = {name: tensor.float() for name, tensor in exported.items()}  # as it is loaded for an evaluation
    digest, notes = tensors_digest(exported), []
    if record.get("weights_sha256", digest) != digest:
        raise LaserError(f"{request.run_dir / 'model.safetensors'} was changed or damaged after {record['task']} ended")
    base_digest = (record["recipe"].get("content") or {}).get("model_name_or_path")
    # What was published once was compared then, and its digest still holds.
    if record["task"] == "training" and not (request.published and record.get("weights_sha256")):
        base = check_weights(request, record, exported, notes)
        base_digest = tensors_digest({name: base[name] for name in exported if name in base}) if base else base_digest
    records = {name: path for name, path in sources.items() if any(fnmatch(name, pattern) for pattern in _RESULTS)}
    names = (str(request.run_dir), request.repo_id)
    results, unread = read_results(records, digest, base_digest, record["base_model"]["name"], names)
    notes += [f"{name} is no evaluation record; it is uploaded, but the card does not list it" for name in unread]
    if not facts["languages"]:
        notes.append('the language of the speech is not known; --facts with {"speech": {"languages": [...]}} says it')
    if not request.allow_unevaluated and not any(result.whose == OWN for result in results):
        models = ", ".join(sorted({result.model for result in results}))
        none = f"no downstream result of this model in {request.run_dir}/results/*.json, and none given with --results"
        others = f" (there are some of {models})" if models else ""
        mend = "Evaluate it first, or publish it as it is with --allow_unevaluated; its card will say so"
        raise LaserError(f"{none}{others}. {mend}")
    files = stage(sources, staging, [request.token] if request.token else [])
    folder = f"{constants.ENDPOINT}/{request.repo_id}/tree/{request.branch}/results"
    if entries := hub_entries(results, folder):
        files[_HUB_RESULTS] = staging / _HUB_RESULTS
        files[_HUB_RESULTS].parent.mkdir()
        files[_HUB_RESULTS].write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    preprocessor = read_json(staging / "preprocessor_config.json", dict)
    plots = sorted(name for name in files if name.startswith("plots/"))
    card = render_card(without_private(record), facts, request.repo_id, config, preprocessor, results, plots)
    if gaps := placeholders(card):
        raise LaserError(f"the model card has gaps: {'; '.join(gaps[:5])}")
    (staging / "README.md").write_text(card, encoding="utf-8")
    files = {"README.md": staging / "README.md", **files}
    check_reload(staging, record)
    message = facts["title"]
    if record["task"] == "training":
        hours = f"{record['processed_hours']:.4g} hours of speech"
        message = f"{facts['method_title']}: {record['updates']} updates on {record['base_model']['name']}, {hours}"
    return Bundle(files, record, message, notes)


def check_weights(
    request: argparse.Namespace, record: Mapping[str, Any], weights: Mapping[str, torch.Tensor], notes: list[str]
) -> Mapping[str, torch.Tensor] | None:
    """The base model's weights, after a comparison: all that was trained may differ, and something must.

    `None`, with a note, if they cannot be had and `request` allows that. `LaserError` for an exported weight that is
    not finite, missing, unknown to the base model or changed although frozen.
    """
    from ..encoders import load_pretrained  # with transformers, for which --help need not wait

    if not (trained := record.get("trained_parameters")):
        raise LaserError("the record of the run does not say which parameters were trained")
    infinite = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    refuse_names(infinite, "the export has weights that are not finite")
    refuse_names(sorted({*trained} - {*weights}), "the record names trained parameters that the exported encoder lacks")
    base = record["base_model"]
    name = located(record["recipe"]["model"]["model_name_or_path"]) if base["local"] else base["name"]
    try:
        base = load_pretrained(name, base["revision"], request.token)[0].state_dict()
    except LaserError as error:
        if request.skip_base_check:
            notes.append(f"that only the trained layers changed was not checked: {error}")
            return None
        unchecked = f"whether only the trained layers changed cannot be checked: {error}"
        raise LaserError(f"{unchecked}. Give access to it, or leave the check out with --skip_base_check") from error
    refuse_names(sorted({*weights} - {*base}), "the exported encoder has weights that the base model lacks")
    changed = {name for name in weights if name in base and not torch.equal(weights[name], base[name])}
    frozen = sorted(changed - {*trained, "masked_spec_embed"})  # it is random where the base model's file lacks it
    what = "training changed more than the record names, or the base model is another one or another revision"
    refuse_names(frozen, f"{len(frozen)} frozen weights differ from the base model's ({what})")
    if not changed:
        raise LaserError("the trained weights are still those of the base model: there is nothing to publish")
    return base


def collect(request: argparse.Namespace) -> dict[str, Path]:
    """Files to publish by their path in the repository; `LaserError` if `request.run_dir` is not fit for it."""
    run_dir = request.run_dir
    if not run_dir.is_dir():
        raise LaserError(f"{run_dir} is no folder; give the --output_dir of a finished run")
    if not any((run_dir / name).is_file() for name in RECORDS):
        other = "it is no output of laser-hf train or convert, or of a run that has not finished"
        raise LaserError(f"{run_dir} has neither {' nor '.join(RECORDS)}: {other}")
    if missing := [name for name in EXPORTED if not (run_dir / name).is_file()]:
        raise LaserError(f"{run_dir} lacks {', '.join(missing)}; the exported encoder is not complete")
    files = {}
    for pattern in (*EXPORTED, *RECORDS, "training_log.json", _FACTS, *_RESULTS, "plots/*.png"):
        files |= {path.relative_to(run_dir).as_posix(): path for path in sorted(run_dir.glob(pattern))}
    files |= {name: Path(__file__).with_name(name) for name in EVALUATION_SCRIPTS}
    if request.facts:
        files[_FACTS] = request.facts
    for folder in request.seeds:
        recipes = [read_record(one / TRAINING_RECORD)["recipe"] for one in (run_dir, folder)]
        changed = "; ".join(one for one in differences(*recipes) if not re.match("--(data_)?seed ", one))
        seed = recipes[1]["training"]["seed"]
        if changed or seed == recipes[0]["training"]["seed"]:
            raise LaserError(f"--seeds {folder} is not this recipe with another seed: {changed or 'its seed'}")
        files |= {f"results/seed-{seed}/{path.name}": path for path in sorted(folder.glob("results/*.json"))}
    for path in request.results:
        if not path.is_file():
            raise LaserError(f"--results {path} is no file")
        # Every task writes results.json, in a folder of its own.
        name = f"results/{path.parent.resolve().name if path.name == 'results.json' else path.stem}.json"
        if name in files and files[name].resolve() != path.resolve() and not request.published:
            raise LaserError(f"two result files would be {name} in the repository; rename one of them")
        files[name] = path
    return files


def stage(sources: Mapping[str, Path], staging: Path, secrets: Sequence[str] = ()) -> dict[str, Path]:
    """Put files below `staging` as they are published: JSON without machine paths and tokens, the rest as it is."""
    staged = {name: staging / name for name in sources}
    for name, path in sources.items():
        staged[name].parent.mkdir(parents=True, exist_ok=True)
        content = read_json(path) if name.endswith(".json") else None
        if name.endswith(".png") and not path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n"):
            raise LaserError(f"{name} is not what its name says; it is not uploaded")
        cleaned = without_private(content, secrets)
        if cleaned != content:
            write_json(staged[name], cleaned)
        else:
            staged[name].symlink_to(path.resolve())
    return staged


# An absolute path anywhere in a text: not what follows a letter (a/b), a colon or a slash (https://...), or the
# {laser_hf} of records.
_ABSOLUTE = re.compile(r"(?<![\w:/.\\~}-])(?:~?/|[A-Za-z]:\\)[^\s\"'=,;]+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_TOKEN_OPTION = re.compile(r"(--(?:hub_|push_to_hub_)?token[ =])\S+")


def without_private(value: Any, secrets: Sequence[str] = ()) -> Any:
    """A copy of a JSON value with absolute paths cut to their last part and Hub tokens replaced by `***`."""

    def clean(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        for secret in secrets:
            text = text.replace(secret, "***")
        text = _TOKEN_OPTION.sub(r"\1***", _TOKEN.sub("***", text))
        return _ABSOLUTE.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1] or match.group(), text)

    return each(value, clean)
