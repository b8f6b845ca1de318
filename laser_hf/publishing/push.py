"""From a finished run to a Hub repository: collect, check, show, and upload in one commit."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..records import located, read_json, write_json
from .card import CardError, find_facts, find_speech, placeholders, read_results, render_card

RECORD_NAME = "laser_config.json"
EXPORT_NAMES = ("config.json", "model.safetensors", "preprocessor_config.json")
# Of a repository that holds a LASER export, the files that a new push replaces or removes.
_REPLACED = ("plots/*.png", "results/*.json", "results*.json")
_SUFFIXES = {".json", ".md", ".png", ".safetensors"}

_RELOAD = """
import math, sys
import torch
from transformers import AutoFeatureExtractor, AutoModel
model, info = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
wrong = {key: sorted(info[key])[:3] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
if wrong:
    sys.exit(f"weights and config.json do not fit: {wrong}")
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1])
rate = extractor.sampling_rate
wave = [math.sin(0.3 * i) * (i % 4000) / 8000 for i in range(rate)]
with torch.no_grad():
    frames = model.eval()(**extractor(wave, sampling_rate=rate, return_tensors="pt")).last_hidden_state
if not torch.isfinite(frames).all():
    sys.exit("the reloaded encoder gives frames that are not finite")
"""


class PushError(RuntimeError):
    """A run that must not be published as it is, or a Hub that does not take it; the message says why."""


@dataclass
class Bundle:
    """What will be uploaded: the file behind each path in the repository, and what could not be checked."""

    files: dict[str, Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """The repository as it is before the push."""

    exists: bool
    branch_exists: bool = False
    private: bool | None = None
    files: tuple[str, ...] = ()


def build_parser() -> argparse.ArgumentParser:
    """The options of `push_to_hub.py`."""
    parser = argparse.ArgumentParser(
        prog="push_to_hub.py",
        description="Publish a finished LASER run on the Hugging Face Hub: encoder, record, plots, results and a model "
        "card, in one commit. Without --yes it only checks everything and shows what it would upload.",
        epilog="Log in once with `hf auth login`, or set HF_TOKEN. Optimizer states and checkpoints stay here.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --output_dir of a finished train.py run")
    parser.add_argument("--repo_id", required=True, metavar="ORG/NAME", help="repository to create or to add to")
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, created if missing (default: main)")
    parser.add_argument("--commit_message", metavar="TEXT", help="default: says how long and on what was trained")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="result files that lie elsewhere, besides RUN_DIR/results/*.json and RUN_DIR/results*.json",
    )
    parser.add_argument(
        "--allow_unevaluated",
        action="store_true",
        help="publish a model without any downstream result; its card says so in its first lines",
    )
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="FILE",
        help="facts about the base model (default: from model_cards/, by its name)",
    )
    parser.add_argument("--show_card", action="store_true", help="print the model card as well")
    parser.add_argument(
        "--token", help="Hub token with write access; it ends in the shell's history, so prefer to log in"
    )
    return parser


def main(argv: Sequence[str] | None = None, *, cards_dir: Path) -> int:
    """Check a run and, with `--yes`, publish it; returns the exit status.

    Args:
        argv: command line without the program's name.
        cards_dir: folder with the card template and the facts files.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="laser-push-") as staging:
            bundle = prepare(arguments, Path(staging), cards_dir)
            _publish(arguments, bundle)
    except PushError as error:
        print(f"push_to_hub.py: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(arguments: argparse.Namespace, staging: Path, cards_dir: Path) -> Bundle:
    """Collect and check all that is to be uploaded; nothing is sent.

    Raises:
        PushError: with the first reason not to publish.
    """
    run_dir = arguments.run_dir
    try:
        validate_repo_id(arguments.repo_id)
    except HFValidationError as error:
        raise PushError(f"--repo_id {arguments.repo_id}: {error}") from error
    if not run_dir.is_dir():
        raise PushError(f"{run_dir} is no folder; give the --output_dir of a finished run")
    if not (run_dir / RECORD_NAME).is_file():
        raise PushError(
            f"{run_dir} has no {RECORD_NAME}: it is no LASER run, or one that has not finished. The record is written "
            "last; resume the run with train.py"
        )
    record = _read(run_dir / RECORD_NAME)
    missing = [name for name in EXPORT_NAMES if not (run_dir / name).is_file()]
    if missing:
        raise PushError(f"{run_dir} lacks {', '.join(missing)}; the exported encoder is not complete")
    sources = _collect(run_dir, arguments.results)
    config = _read(run_dir / "config.json")
    if "auto_map" in config:
        raise PushError("config.json has an auto_map, so that loading would run code of the repository")
    notes = [check_weights(run_dir / "model.safetensors", record)]

    rows, own, unread = _results(sources, arguments, record)
    for name in unread:
        notes.append(f"{name} has a layout that the card cannot show; it is uploaded, but not listed")
    if not own and not arguments.allow_unevaluated:
        others = sorted({row["model"] for row in rows})
        raise PushError(
            f"no downstream result of this model in {run_dir}/results/, and none given with --results"
            + (f" (there are some of {', '.join(others)})" if others else "")
            + ". Evaluate it first, or publish it as it is with --allow_unevaluated; its card will say so"
        )
    bundle = Bundle(_stage(sources, staging, [arguments.token] if arguments.token else []), [n for n in notes if n])
    card = _card(arguments, record, config, cards_dir, rows, bool(own), staging)
    (staging / "README.md").write_text(card, encoding="utf-8")
    bundle.files = {"README.md": staging / "README.md", **bundle.files}
    _check_kinds(bundle.files)
    reload_in_new_process(staging)
    if arguments.show_card:
        print(card)
    return bundle


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise PushError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PushError(f"{path} is not a JSON object")
    return content


def _collect(run_dir: Path, extra_results: Iterable[Path]) -> dict[str, Path]:
    """Files to publish by their path in the repository; everything else in the folder stays."""
    names = [*EXPORT_NAMES, RECORD_NAME, "training_log.json"]
    files = {name: run_dir / name for name in names if (run_dir / name).is_file()}
    for pattern in ("results*.json", "results/*.json", "plots/*.png"):
        files.update({path.relative_to(run_dir).as_posix(): path for path in sorted(run_dir.glob(pattern))})
    for path in extra_results:
        if not path.is_file():
            raise PushError(f"--results {path} is no file")
        # The task runners all write results.json, in folders of their own.
        name = f"results/{path.parent.resolve().name if path.name == 'results.json' else path.stem}.json"
        if name in files and files[name].resolve() != path.resolve():
            raise PushError(f"two result files would be {name} in the repository; rename one of them")
        files[name] = path
    return files


def check_weights(path: Path, record: Mapping[str, Any]) -> str | None:
    """Refuse weights that are not finite or that are still those of the base model.

    Returns:
        Why the comparison with the base model could not be made, or `None` when it was.

    Raises:
        PushError: weights that must not be published.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            broken = [n for n in weights.keys() if not torch.isfinite(weights.get_tensor(n).float()).all()]  # noqa: SIM118
            if broken:
                raise PushError(f"{path.name} has weights that are not finite: {', '.join(broken[:5])}")
            base, found = _base_weights(record)
            if base is None:
                return f"that the weights differ from the base model's was not checked: {found}"
            names = [n for n in record["trained_parameters"] if n in weights.keys() and n in base]  # noqa: SIM118
            if not names:
                return f"that the weights differ from the base model's was not checked: {found} names them otherwise"
            if all(torch.equal(weights.get_tensor(n).float(), base[n]().float()) for n in names):
                raise PushError(
                    f"the trained weights are still those of the base model ({found}): there is nothing to publish"
                )
    except SafetensorError as error:
        raise PushError(f"{path} is damaged: {error}") from error
    return None


def _base_weights(record: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """For each weight of the base model a function that reads it; and where they were found, or why not."""
    base, asked = record["base_model"], located(record["recipe"]["model"]["model_name_or_path"])
    names = ("model.safetensors", "pytorch_model.bin")
    if base["local"]:
        paths = [Path(asked) / name for name in names]
        missing = f"its folder {asked} is not here"
    else:
        cached = [try_to_load_from_cache(base["name"], name, revision=base["revision"]) for name in names]
        paths = [Path(path) for path in cached if isinstance(path, str)]
        missing = f"{base['name']} is not in the cache"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None, missing
    prefix = f"{base['model_type'].replace('-', '_')}."
    try:
        if path.suffix == ".safetensors":
            opened = safe_open(path, framework="pt")
            names = list(opened.keys())
            return {n.removeprefix(prefix): (lambda n=n: opened.get_tensor(n)) for n in names}, str(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {n.removeprefix(prefix): (lambda t=t: t) for n, t in state.items()}, str(path)
    except Exception as error:  # whatever a foreign file makes torch raise
        return None, f"{path} cannot be read ({error})"


def _results(sources: Mapping[str, Path], arguments: argparse.Namespace, record: Mapping[str, Any]):
    files = {name: path for name, path in sources.items() if any(fnmatch(name, p) for p in _REPLACED[1:])}
    for name, path in files.items():
        written = _read(path).get("written")
        if written and written < record["written"]:
            raise PushError(
                f"{name} was written ({written}) before the run was finished ({record['written']}): it is about "
                "other weights. Remove it, or evaluate again"
            )
    return read_results(files, [str(arguments.run_dir), arguments.repo_id])


def _stage(sources: Mapping[str, Path], staging: Path, secrets: Sequence[str]) -> dict[str, Path]:
    """The files as they will be published: JSON without paths of this machine and without tokens."""
    staged = {}
    for name, path in sources.items():
        staged[name] = staging / name
        staged[name].parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            content = _read(path)
            cleaned = without_private(content, secrets)
            if cleaned != content:
                write_json(staged[name], cleaned)
                continue
        try:
            os.symlink(path.resolve(), staged[name])
        except OSError:  # a file system without links
            staged[name].write_bytes(path.read_bytes())
    return staged


# An absolute path anywhere in a text: not what follows a letter (a/b), a colon or a slash (https://...).
_ABSOLUTE = re.compile(r"(?<![\w:/.\\~-])(?:~?/|[A-Za-z]:\\)[^\s\"'=,;]+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_TOKEN_OPTION = re.compile(r"(--(?:hub_|push_to_hub_)?token[ =])\S+")


def without_private(value: Any, secrets: Sequence[str] = ()) -> Any:
    """A copy of a JSON value whose absolute paths are cut to their last part and whose Hub tokens are blotted out."""
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


def _card(arguments, record, config, cards_dir: Path, rows, evaluated: bool, staging: Path) -> str:
    try:
        facts = _read(arguments.facts) if arguments.facts else find_facts(record, cards_dir)
        card = render_card(
            without_private(record),
            facts,
            cards_dir / "model_card.md.jinja",
            repo_id=arguments.repo_id,
            config=config,
            preprocessor=_read(staging / "preprocessor_config.json"),
            speech=find_speech(record, cards_dir),
            results=rows,
            evaluated=evaluated,
            plots=sorted(p.relative_to(staging).as_posix() for p in staging.glob("plots/*.png")),
        )
    except (CardError, KeyError) as error:
        raise PushError(str(error)) from error
    gaps = placeholders(card)
    if gaps:
        raise PushError(f"the model card has gaps: {'; '.join(gaps[:5])}")
    return card


def _check_kinds(files: Mapping[str, Path]) -> None:
    """Only JSON, Markdown, PNG and safetensors, by name and by content: nothing that unpickling could run."""
    for name, path in files.items():
        with path.open("rb") as file:
            start = file.read(8)
        if path.suffix not in _SUFFIXES or (path.suffix == ".png" and start != b"\x89PNG\r\n\x1a\n"):
            raise PushError(f"{name} is not what its name says; it is not uploaded")


def reload_in_new_process(folder: Path) -> None:
    """Load `folder` as any user would, in a process of its own, and encode a second of sound.

    Raises:
        PushError: plain transformers cannot load or run the encoder.
    """
    program = [sys.executable, "-c", _RELOAD, str(folder)]
    with tempfile.TemporaryDirectory(prefix="laser-reload-") as empty:
        try:
            done = subprocess.run(
                program,
                capture_output=True,
                text=True,
                timeout=900,
                cwd=empty,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PushError(
                "reloading the encoder took more than 15 minutes; is this machine short of memory?"
            ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PushError(f"the exported encoder does not work with plain AutoModel and AutoFeatureExtractor: {reason}")


def _publish(arguments: argparse.Namespace, bundle: Bundle) -> None:
    api = HfApi(token=arguments.token)
    branch = arguments.revision or constants.DEFAULT_REVISION
    target = None
    try:
        target = inspect_target(api, arguments.repo_id, branch)
    except (HTTPError, OSError, ValueError) as error:
        if arguments.yes:
            raise PushError(explain(error, api.endpoint)) from error
        bundle.notes.append(f"the target repository was not checked: {explain(error, api.endpoint)}")
    stale = _check_target(arguments, target, bundle) if target else []
    _show(arguments, bundle, branch, target, stale)
    if not arguments.yes:
        print("\nNothing was uploaded. Add --yes to publish.")
        return
    record = json.loads(bundle.files[RECORD_NAME].read_text())
    message = arguments.commit_message or (
        f"LASER: {record['updates']} updates on {record['base_model']['name']}, "
        f"{record['processed_hours']:.4g} hours of speech"
    )
    operations = [CommitOperationAdd(name, path) for name, path in bundle.files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    try:
        if not target.exists:
            # None leaves the choice to the organisation's own default.
            api.create_repo(arguments.repo_id, private=True if arguments.private else None, exist_ok=True)
        if not target.branch_exists and branch != constants.DEFAULT_REVISION:
            api.create_branch(arguments.repo_id, branch=branch, exist_ok=True)
        commit = api.create_commit(arguments.repo_id, operations, commit_message=message, revision=branch)
        there = inspect_target(api, arguments.repo_id, commit.oid).files
    except (HTTPError, OSError, ValueError) as error:
        raise PushError(explain(error, api.endpoint)) from error
    lost = sorted(set(bundle.files) - set(there))
    if lost:
        raise PushError(f"the Hub took commit {commit.oid}, but it lacks {', '.join(lost)}; push again")
    print(f"\nPublished as commit {commit.oid}:\n{api.endpoint}/{arguments.repo_id}/tree/{branch}")


def inspect_target(api: HfApi, repo_id: str, revision: str) -> Target:
    """What the repository holds at a branch or commit, or on its main branch if it lacks that branch."""
    try:
        try:
            info, branch_exists = api.model_info(repo_id, revision=revision), True
        except RevisionNotFoundError:
            info, branch_exists = api.model_info(repo_id), False
    except RepositoryNotFoundError:
        return Target(exists=False)
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    return Target(exists=True, branch_exists=branch_exists, private=info.private, files=files)


def _check_target(arguments: argparse.Namespace, target: Target, bundle: Bundle) -> list[str]:
    """Files of an earlier push that this one replaces by nothing."""
    foreign = [name for name in target.files if name not in (".gitattributes", "README.md")]
    if foreign and RECORD_NAME not in target.files:
        raise PushError(
            f"{arguments.repo_id} already holds something that is no LASER export ({', '.join(foreign[:5])}); choose "
            "another --repo_id"
        )
    if arguments.private and target.private is False:
        raise PushError(
            f"{arguments.repo_id} exists and is public, and --private only says how to create one; make it private in "
            "its settings, or leave --private out"
        )
    return [n for n in target.files if n not in bundle.files and any(fnmatch(n, pattern) for pattern in _REPLACED)]


def _show(arguments, bundle: Bundle, branch: str, target: Target | None, stale: Sequence[str]) -> None:
    state = "not checked" if target is None else "exists" if target.exists else "will be created"
    print(f"Repository: {arguments.repo_id} ({state}), branch {branch}\n")
    sizes = {name: path.stat().st_size for name, path in bundle.files.items()}
    width = max(map(len, [*sizes, *stale]))
    for name, size in sizes.items():
        print(f"  {name:<{width}}  {_size(size):>9}")
    for name in stale:
        print(f"  {name:<{width}}    removed")
    print(f"  {'':<{width}}  {_size(sum(sizes.values())):>9}")
    for note in bundle.notes:
        print(f"\nNote: {note}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def explain(error: Exception, endpoint: str) -> str:
    """What a user can do about an error of the Hub client, in one sentence."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return "no Hub token; log in with `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403):
        return (
            f"the Hub refused the token (HTTP {status}): it is missing, expired, or may not write to this repository. "
            "Log in with `hf auth login` and a token with write access, or set HF_TOKEN"
        )
    if status == 429:
        return "the Hub is asked too much (HTTP 429); wait a few minutes and try again"
    if status is not None and status >= 500:
        return f"the Hub has trouble of its own (HTTP {status}); nothing is half published, so just try again"
    if status is not None:
        return f"the Hub said no (HTTP {status}): {getattr(error, 'server_message', None) or error}"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return f"{endpoint} cannot be reached ({error}); check the connection and HF_ENDPOINT, and try again"
    return f"{endpoint} gave an answer that makes no sense, or a file went away: {error}"
