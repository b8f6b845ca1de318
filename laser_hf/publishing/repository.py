"""What goes into a repository: collected from a run, cleaned of private data, and checked before it is sent."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import LaserError
from ..records import TRAINING_RECORD, read_json, read_record, tensors_digest, write_json
from . import weights
from .card import placeholders, render_card
from .export import Load, check_reload
from .facts import find_facts
from .results import OWN, hub_entries, read_results
from .upload import EVALUATION_SCRIPTS

EXPORTED = ("config.json", "model.safetensors", "preprocessor_config.json")
_RESULTS = ("results/*.json", "results*.json")
_HUB_RESULTS = ".eval_results/librispeech_asr.yaml"
_SUFFIXES = {".json", ".md", ".png", ".safetensors", ".yaml"}


@dataclass
class Request:
    """What is to be published, and where; the options of `push_to_hub.py`."""

    run_dir: Path
    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    commit_message: str | None = None
    results: Sequence[Path] = ()
    allow_unevaluated: bool = False
    skip_base_check: bool = False
    facts: Path | None = None
    token: str | None = None

    @property
    def branch(self) -> str:
        """The branch to commit to."""
        return self.revision or constants.DEFAULT_REVISION

    def check(self) -> None:
        """Raise `LaserError` for names and combinations that no Hub would take."""
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise LaserError(f"--repo_id {self.repo_id}: {error}") from error
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.tag):
            raise LaserError(f"--tag {self.tag!r} is no tag name; something like v1.0")
        if self.create_pr and self.branch != constants.DEFAULT_REVISION:
            raise LaserError("--create_pr opens a pull request against the main branch; leave --revision out")
        if self.create_pr and self.tag:
            raise LaserError("--tag marks what is published, and a pull request is not yet; tag it after merging")


@dataclass
class Bundle:
    """What will be uploaded.

    Attributes:
        files: the file behind each path in the repository.
        base_model: name of the base model.
        message: of the commit.
        card: the model card.
        notes: what could not be checked.
    """

    files: dict[str, Path]
    base_model: str
    message: str
    card: str
    notes: list[str] = field(default_factory=list)


def prepare(request: Request, staging: Path, load: Load) -> Bundle:
    """Collect and check all that is to be uploaded; nothing is sent.

    Args:
        request: from the command line.
        staging: an empty folder for the files as they are published.
        load: reloads the encoder, see `check_reload`.

    Raises:
        LaserError: with the first reason not to publish.
    """
    request.check()
    sources = collect(request.run_dir, request.results)
    record, config = read_record(request.run_dir / TRAINING_RECORD), read_object(request.run_dir / "config.json")
    if "auto_map" in config:
        raise LaserError("config.json has an auto_map, so that loading would run code of the repository")
    if record["task"] != "training" or not (record.get("base_model") or {}).get("name"):
        raise LaserError(f"{TRAINING_RECORD} does not say which base model was fine-tuned; it is no record of train.py")
    facts = find_facts(record, read_object(request.facts) if request.facts else None)
    base_name, base, notes = record["base_model"]["name"], None, []
    exported = weights.load_checkpoint(request.run_dir / "model.safetensors")
    exported = {name: tensor.float() for name, tensor in exported.items()}  # as it is loaded for an evaluation
    try:
        base = weights.base_weights(record, request.token)
    except weights.NoBaseModel as error:
        if not request.skip_base_check:
            raise LaserError(
                f"whether only the trained layers changed cannot be checked: {error}. Give access to it, or publish "
                "without that check by --skip_base_check"
            ) from error
        notes.append(f"that only the trained layers changed was not checked: {error}")
    weights.check_weights(exported, base, record.get("trained_parameters"))

    base_digest = tensors_digest({name: base[name] for name in exported if name in base}) if base else None
    records = {name: path for name, path in sources.items() if any(fnmatch(name, pattern) for pattern in _RESULTS)}
    names = (str(request.run_dir), request.repo_id)
    results, unread = read_results(records, tensors_digest(exported), base_digest, base_name, names)
    notes += [f"{name} is no evaluation record; it is uploaded, but the card does not list it" for name in unread]
    if not request.allow_unevaluated and not any(result.whose == OWN for result in results):
        models = sorted({result.model for result in results})
        raise LaserError(
            f"no downstream result of this model in {request.run_dir}/results/, and none given with --results"
            + (f" (there are some of {', '.join(models)})" if models else "")
            + ". Evaluate it first, or publish it as it is with --allow_unevaluated; its card will say so"
        )
    files = stage(sources, staging, [request.token] if request.token else [])
    entries = hub_entries(results, f"{constants.ENDPOINT}/{request.repo_id}/tree/{request.branch}/results")
    if entries:
        files[_HUB_RESULTS] = staging / _HUB_RESULTS
        files[_HUB_RESULTS].parent.mkdir()
        files[_HUB_RESULTS].write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    card = render_card(
        without_private(record),
        facts,
        repo_id=request.repo_id,
        config=config,
        preprocessor=read_object(staging / "preprocessor_config.json"),
        results=results,
        plots=sorted(name for name in files if name.startswith("plots/")),
    )
    if gaps := placeholders(card):
        raise LaserError(f"the model card has gaps: {'; '.join(gaps[:5])}")
    (staging / "README.md").write_text(card, encoding="utf-8")
    files = {"README.md": staging / "README.md", **files}
    check_kinds(files)
    check_reload(staging, record, load)
    hours = f"{record['processed_hours']:.4g} hours of speech"
    message = f"{facts['method_title']}: {record['updates']} updates on {base_name}, {hours}"
    return Bundle(files, base_name, message, card, notes)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        LaserError: it cannot be read, or is something else.
    """
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise LaserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise LaserError(f"{path} is not a JSON object")
    return content


def collect(run_dir: Path, extra_results: Sequence[Path] = ()) -> dict[str, Path]:
    """Files to publish by their path in the repository; everything else in the folder stays.

    Raises:
        LaserError: no finished run, an incomplete export, or two files of one name.
    """
    if not run_dir.is_dir():
        raise LaserError(f"{run_dir} is no folder; give the --output_dir of a finished run")
    if not (run_dir / TRAINING_RECORD).is_file():
        raise LaserError(f"{run_dir} has no {TRAINING_RECORD}: it is no run of train.py, or one that has not finished")
    missing = [name for name in EXPORTED if not (run_dir / name).is_file()]
    if missing:
        raise LaserError(f"{run_dir} lacks {', '.join(missing)}; the exported encoder is not complete")
    files = {}
    for pattern in (*EXPORTED, TRAINING_RECORD, "training_log.json", *_RESULTS, "plots/*.png"):
        files |= {path.relative_to(run_dir).as_posix(): path for path in sorted(run_dir.glob(pattern))}
    files |= {name: Path(__file__).with_name(name) for name in EVALUATION_SCRIPTS}
    for path in extra_results:
        if not path.is_file():
            raise LaserError(f"--results {path} is no file")
        # Every task writes results.json, in a folder of its own.
        name = f"results/{path.parent.resolve().name if path.name == 'results.json' else path.stem}.json"
        if name in files and files[name].resolve() != path.resolve():
            raise LaserError(f"two result files would be {name} in the repository; rename one of them")
        files[name] = path
    return files


def stage(sources: Mapping[str, Path], staging: Path, secrets: Sequence[str] = ()) -> dict[str, Path]:
    """The files as they are published, below `staging`: JSON without machine paths and tokens, the rest as it is."""
    staged = {name: staging / name for name in sources}
    for name, path in sources.items():
        staged[name].parent.mkdir(parents=True, exist_ok=True)
        content = read_object(path) if path.suffix == ".json" else None
        cleaned = without_private(content, secrets)
        if cleaned != content:
            write_json(staged[name], cleaned)
        else:
            try:
                os.symlink(path.resolve(), staged[name])
            except OSError:  # a file system without links
                shutil.copyfile(path, staged[name])
    return staged


def check_kinds(files: Mapping[str, Path]) -> None:
    """Only JSON, Markdown, PNG, YAML, safetensors and the evaluation script: no pickles, whatever their name.

    Raises:
        LaserError: naming the first file that is something else.
    """
    for name, path in files.items():
        with path.open("rb") as file:
            png = file.read(8) == b"\x89PNG\r\n\x1a\n"
        if name not in EVALUATION_SCRIPTS and (path.suffix not in _SUFFIXES or (path.suffix == ".png") != png):
            raise LaserError(f"{name} is not what its name says; it is not uploaded")


# An absolute path anywhere in a text: not what follows a letter (a/b), a colon or a slash (https://...), or the
# {laser_hf} of records.
_ABSOLUTE = re.compile(r"(?<![\w:/.\\~}-])(?:~?/|[A-Za-z]:\\)[^\s\"'=,;]+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_TOKEN_OPTION = re.compile(r"(--(?:hub_|push_to_hub_)?token[ =])\S+")


def without_private(value: Any, secrets: Sequence[str] = ()) -> Any:
    """A copy of a JSON value with absolute paths cut to their last part and Hub tokens replaced by `***`."""
    if isinstance(value, dict):
        return {without_private(k, secrets): without_private(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [without_private(entry, secrets) for entry in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "***")
    value = _TOKEN_OPTION.sub(r"\1***", _TOKEN.sub("***", value))
    return _ABSOLUTE.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1] or match.group(), value)
