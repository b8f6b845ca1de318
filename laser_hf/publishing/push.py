"""The command `push_to_hub.py`, and the upload of `train.py --push_to_hub`: collect, check, show, upload."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from ..errors import LaserError
from . import upload
from .export import Load, load_in_fresh_process
from .repository import Bundle, Request, prepare


def build_parser() -> argparse.ArgumentParser:
    """The options of `push_to_hub.py`."""
    parser = argparse.ArgumentParser(
        prog="push_to_hub.py",
        description="Publish a finished LASER run on the Hugging Face Hub: encoder, record, plots, results, evaluation "
        "script and model card, in one commit. Without --yes it checks everything and shows what it would upload.",
        epilog="Log in once with `hf auth login`, or set HF_TOKEN. Optimizer states and checkpoints are not uploaded.",
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="the --output_dir of a finished train.py run")
    add("--repo_id", required=True, metavar="ORG/NAME", help="repository to create or to add to")
    add("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--revision", metavar="BRANCH", help="branch to commit to, created if missing (default: main)")
    add("--create_pr", action="store_true", help="open a pull request with the commit instead of changing main")
    add("--tag", metavar="TAG", help="version of the commit (default: v1.0, then v1.1, ...; on other branches none)")
    add("--commit_message", metavar="TEXT", help="default: method, updates, base model and hours of speech")
    more = "result files besides RUN_DIR/results/*.json and RUN_DIR/results*.json"
    add("--results", type=Path, nargs="+", default=[], metavar="FILE", help=more)
    unevaluated = "publish without any downstream result; the first lines of the card say so"
    add("--allow_unevaluated", action="store_true", help=unevaluated)
    unchecked = "publish although the base model's weights cannot be had: what training changed is not checked"
    add("--skip_base_check", action="store_true", help=unchecked)
    facts = "JSON facts about base model and method (default: model_cards/bases.json and the objective's class)"
    add("--facts", type=Path, metavar="FILE", help=facts)
    add("--show_card", action="store_true", help="print the model card as well")
    add("--token", help="Hub token with write access; it stays in the shell's history, so prefer to log in")
    return parser


def main(argv: Sequence[str] | None = None, load: Load = load_in_fresh_process) -> None:
    """Check a run and, with `--yes`, publish it.

    Args:
        argv: command line without the program's name.
        load: how the encoder is reloaded to check it.

    Raises:
        LaserError: with the first reason not to publish.
    """
    options = vars(build_parser().parse_args(argv))
    yes, show_card = options.pop("yes"), options.pop("show_card")
    push(Request(**options), yes=yes, show_card=show_card, load=load)


def push(
    request: Request, *, yes: bool = True, show_card: bool = False, load: Load = load_in_fresh_process
) -> upload.Published | None:
    """Check a run, show what would be uploaded and, with `yes`, upload it.

    Returns:
        Where it is now, or `None` if nothing was uploaded.

    Raises:
        LaserError: with the first reason not to publish.
    """
    with tempfile.TemporaryDirectory(prefix="laser-push-") as staging:
        bundle = prepare(request, Path(staging), load)
        if show_card:
            print(bundle.card)
        api, target = HfApi(token=request.token), None
        try:
            target = upload.inspect_target(api, request.repo_id, request.branch)
        except LaserError as error:
            if yes:
                raise
            bundle.notes.append(f"the target repository was not checked: {error}")
        else:
            upload.check_target(request, target, bundle.base_model)
        _show(request, bundle, target)
        if not yes:
            print("\nNothing was uploaded. Add --yes to publish.")
            return None
        published = upload.publish(api, request, bundle, target)
    state = "Published as" if published.changed else "Nothing has changed since"
    tag = f", tag {published.tag}" if published.tag else ""
    print(f"\n{state} commit {published.commit}{tag}:\n{published.url}")
    return published


def later_command(request: Request) -> str:
    """The command that publishes the same later."""
    words = ["python", "push_to_hub.py", str(request.run_dir), "--repo_id", request.repo_id]
    words += ["--private"] * request.private + ["--allow_unevaluated"] * request.allow_unevaluated
    return shlex.join([*words, "--yes"])


def _show(request: Request, bundle: Bundle, target: upload.Target | None) -> None:
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
