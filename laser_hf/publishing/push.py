"""The command `laser-hf push`, and the upload of `laser-hf train --push_to_hub`: collect, check, show, upload."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .. import cli
from ..errors import LaserError
from ..records import read_json
from . import upload
from .export import RECORDS
from .facts import find_facts
from .repository import Bundle, prepare


def _read_request(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `LaserError` for names and combinations that no Hub would take."""
    parser = argparse.ArgumentParser(
        prog="laser-hf push",
        formatter_class=cli.HelpFormatter,
        description="Publish a finished run or a converted checkpoint on the Hugging Face Hub: encoder, record, plots, "
        "results, evaluation script and model card, in one commit. Without --yes it checks everything and shows what "
        "it would upload. Without RUN_DIR it adds --results to a model that is published.",
        epilog="Log in once with `hf auth login`, or set HF_TOKEN. Optimizer states and checkpoints are not uploaded.",
    )
    add = parser.add_argument
    add("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="--output_dir of laser-hf train or laser-hf convert")
    add("--repo_id", required=True, metavar="ORG/NAME", help="repository to create or to add to")
    add("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--revision", metavar="BRANCH", help="branch to commit to, created if missing (default: main)")
    add("--create_pr", action="store_true", help="open a pull request with the commit instead of changing main")
    add("--tag", metavar="TAG", help="version of the commit (default: v1.0, then v1.1, ...; on other branches none)")
    add("--commit_message", metavar="TEXT", help="default: method, updates, base model and hours of speech")
    add("--results", type=Path, nargs="+", default=[], metavar="FILE", help="besides RUN_DIR/results/*.json")
    seeds = "finished runs of this recipe with other seeds: the card has their results beside this run's"
    add("--seeds", type=Path, nargs="+", default=[], metavar="RUN_DIR", help=seeds)
    add("--allow_unevaluated", action="store_true", help="publish without any downstream result; the card says so")
    add("--skip_base_check", action="store_true", help="publish although the base model's weights cannot be had")
    add("--facts", type=Path, metavar="FILE", help="JSON facts about base model and speech; see docs/publishing.md")
    add("--collection", metavar="TITLE", help="also put the model into this collection of its owner, made if missing")
    add("--space", action="store_true", help="also publish the page of `laser-hf app` as a Space of the same name")
    add("--show_card", action="store_true", help="print the model card as well")
    add("--token", help="Hub token with write access; it stays in the shell's history, so prefer to log in")
    request = parser.parse_args(argv)
    request.branch, request.published = request.revision or constants.DEFAULT_REVISION, request.run_dir is None
    on_main = request.branch == constants.DEFAULT_REVISION
    if request.published and (not request.results or request.seeds or request.space):
        raise LaserError("give the RUN_DIR to publish, or --results FILE to add to a published model, without --space")
    try:
        validate_repo_id(request.repo_id)
    except HFValidationError as error:
        raise LaserError(f"--repo_id {request.repo_id}: {error}") from error
    if request.tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", request.tag):
        raise LaserError(f"--tag {request.tag!r} is no tag name; something like v1.0")
    if request.create_pr and not on_main:
        raise LaserError("--create_pr opens a pull request against the main branch; leave --revision out")
    if request.space and (request.create_pr or not on_main):
        raise LaserError("--space shows the model of the main branch; leave --revision and --create_pr out")
    if request.create_pr and request.tag:
        raise LaserError("--tag marks what is published, and a pull request is not yet; tag it after merging")
    return request


def main(argv: Sequence[str] | None = None) -> None:
    """Check a run, show what would be uploaded and, with `--yes`, upload it."""
    request, target = _read_request(argv), None
    api = HfApi(token=request.token)
    with tempfile.TemporaryDirectory(prefix="laser-push-") as folder:
        staging = Path(folder, "staging")
        staging.mkdir()
        if request.published:
            request.run_dir = upload.fetch(api, request.repo_id, request.branch, Path(folder, "published"))
        try:
            bundle = prepare(request, staging)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"{' or '.join(RECORDS)}, config.json or a result in {request.run_dir} does not hold what it should"
            raise LaserError(f"{what}, it was damaged or changed ({type(error).__name__} {error})") from error
        if request.show_card:
            print(bundle.files["README.md"].read_text(encoding="utf-8"))
        try:
            target = upload.inspect_target(api, request.repo_id, request.branch)
        except LaserError as error:
            if request.yes:
                raise
            bundle.notes.append(f"the target repository was not checked: {error}")
        else:
            upload.check_target(request, target, bundle.record["base_model"]["name"])
        _show(request, bundle, target)
        space = upload.space_files(request.repo_id, bundle.record) if request.space else {}
        if space:
            size = sum(map(len, space.values())) / 1e6
            print(f"\nSpace: {request.repo_id}, {len(space)} files of {size:.1f} MB: the page and laser_hf itself")
        if not request.yes:
            print("\nNothing was uploaded. Add --yes to publish.")
            return
        published = upload.publish(api, request, bundle, target)
    state = "Published as" if published.changed else "Nothing has changed since"
    tag = f", tag {published.tag}" if published.tag else ""
    print(f"\n{state} commit {published.commit}{tag}:\n{published.url}")
    if request.collection:
        where = upload.add_to_collection(api, request.repo_id, request.collection, request.private)
        print(f"\nThe collection: {where}")
    if space:
        print(f"\nThe page: {upload.publish_space(api, request.repo_id, space, request.private)}")
        if request.private:
            print("The model is private: give the Space a token that may read it, as its secret HF_TOKEN.")


def check_beforehand(argv: Sequence[str], record: Mapping[str, Any]) -> None:
    """`LaserError` if a reason not to push a run is known beforehand, from its `record` as `find_facts` takes it."""
    request = _read_request(argv)
    find_facts(record, read_json(request.facts, dict) if request.facts else None)
    api = HfApi(token=request.token)
    with upload.explained(api.endpoint):
        if (api.whoami().get("auth") or {}).get("accessToken", {}).get("role") == "read":
            raise LaserError("the Hub token may only read; log in with `hf auth login` and a token with write access")
    target = upload.inspect_target(api, request.repo_id, request.branch)
    upload.check_target(request, target, record["base_model"]["name"])


def _show(request: argparse.Namespace, bundle: Bundle, target: upload.Target | None) -> None:
    state = "not checked" if target is None else "exists" if target.exists else "will be created"
    where = "a pull request" if request.create_pr else f"branch {request.branch}"
    print(f"Repository: {request.repo_id} ({state}), {where}\n")
    lines = {name: f"{path.stat().st_size / 1e6:.3f} MB" for name, path in bundle.files.items()}
    lines |= dict.fromkeys(upload.stale_files(target, bundle.files) if target else (), "removed")
    for name, text in lines.items():
        print(f"  {name:<{max(map(len, lines))}}  {text:>11}")
    for note in bundle.notes:
        print(f"\nNote: {note}")
