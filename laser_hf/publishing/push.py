"""The command `push_to_hub.py`, and the upload of `train.py --push_to_hub`: collect, check, show, upload."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .. import cli
from ..errors import LaserError
from ..records import TRAINING_RECORD, read_record
from . import upload
from .export import Load, load_in_fresh_process
from .repository import Bundle, prepare
from .space import publish_space, space_files


def build_parser() -> argparse.ArgumentParser:
    """The options of `laser-hf push`."""
    parser = argparse.ArgumentParser(
        prog="laser-hf push",
        formatter_class=cli.HelpFormatter,
        description="Publish a finished LASER run on the Hugging Face Hub: encoder, record, plots, results, evaluation "
        "script and model card, in one commit. Without --yes it checks everything and shows what it would upload.",
        epilog="Log in once with `hf auth login`, or set HF_TOKEN. Optimizer states and checkpoints are not uploaded.",
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="the --output_dir of a finished training run")
    add("--repo_id", required=True, metavar="ORG/NAME", help="repository to create or to add to")
    add("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--revision", metavar="BRANCH", help="branch to commit to, created if missing (default: main)")
    add("--create_pr", action="store_true", help="open a pull request with the commit instead of changing main")
    add("--tag", metavar="TAG", help="version of the commit (default: v1.0, then v1.1, ...; on other branches none)")
    add("--commit_message", metavar="TEXT", help="default: method, updates, base model and hours of speech")
    add("--results", type=Path, nargs="+", default=[], metavar="FILE", help="besides RUN_DIR/results/*.json")
    add("--allow_unevaluated", action="store_true", help="publish without any downstream result; the card says so")
    add("--skip_base_check", action="store_true", help="publish although the base model's weights cannot be had")
    add("--facts", type=Path, metavar="FILE", help="JSON facts about base model and method; see model_cards/bases.json")
    add("--space", action="store_true", help="also publish the page of `laser-hf app` as a Space of the same name")
    add("--show_card", action="store_true", help="print the model card as well")
    add("--token", help="Hub token with write access; it stays in the shell's history, so prefer to log in")
    return parser


def main(argv: Sequence[str] | None = None, load: Load = load_in_fresh_process) -> None:
    """Check a run, show what would be uploaded and, with `--yes`, upload it. `load` reloads the encoder to check it.

    Raises:
        LaserError: with the first reason not to publish.
    """
    request, target = build_parser().parse_args(argv), None
    request.branch = request.revision or constants.DEFAULT_REVISION
    _check(request)
    with tempfile.TemporaryDirectory(prefix="laser-push-") as staging:
        try:
            bundle = prepare(request, Path(staging), load)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"{TRAINING_RECORD}, config.json or a result in {request.run_dir} does not hold what it should"
            raise LaserError(f"{what}, it was damaged or changed ({type(error).__name__} {error})") from error
        api = HfApi(token=request.token)
        if request.show_card:
            print(bundle.card)
        try:
            target = upload.inspect_target(api, request.repo_id, request.branch)
        except LaserError as error:
            if request.yes:
                raise
            bundle.notes.append(f"the target repository was not checked: {error}")
        else:
            upload.check_target(request, target, bundle.base_model)
        _show(request, bundle, target)
        space = space_files(request.repo_id, read_record(request.run_dir / TRAINING_RECORD)) if request.space else {}
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
    if space:
        print(f"\nThe page: {publish_space(api, request.repo_id, space, request.private)}")
        if request.private:
            print("The model is private: give the Space a token that may read it, as its secret HF_TOKEN.")


def _check(request: argparse.Namespace) -> None:
    """Raise `LaserError` for names and combinations that no Hub would take."""
    try:
        validate_repo_id(request.repo_id)
    except HFValidationError as error:
        raise LaserError(f"--repo_id {request.repo_id}: {error}") from error
    if request.tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", request.tag):
        raise LaserError(f"--tag {request.tag!r} is no tag name; something like v1.0")
    if request.create_pr and request.branch != constants.DEFAULT_REVISION:
        raise LaserError("--create_pr opens a pull request against the main branch; leave --revision out")
    if request.space and (request.create_pr or request.branch != constants.DEFAULT_REVISION):
        raise LaserError("--space shows the model of the main branch; leave --revision and --create_pr out")
    if request.create_pr and request.tag:
        raise LaserError("--tag marks what is published, and a pull request is not yet; tag it after merging")


def _show(request: argparse.Namespace, bundle: Bundle, target: upload.Target | None) -> None:
    state = "not checked" if target is None else "exists" if target.exists else "will be created"
    where = "a pull request" if request.create_pr else f"branch {request.branch}"
    print(f"Repository: {request.repo_id} ({state}), {where}\n")
    lines = {name: f"{path.stat().st_size / 1e6:.3f} MB" for name, path in bundle.files.items()}
    lines |= dict.fromkeys(upload.stale_files(target, bundle.files) if target else (), "removed")
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"  {name:<{width}}  {text:>11}")
    for note in bundle.notes:
        print(f"\nNote: {note}")
