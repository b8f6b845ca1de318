"""The command line of `push_to_hub.py`, and the same for `train.py --push_to_hub`: collect, check, show, upload."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from . import upload
from .bundle import Bundle, Request, prepare
from .errors import PushError, explain

CARDS_DIR = Path(__file__).resolve().parents[2] / "model_cards"
"""Template and facts of the cards, beside the package."""


def build_parser() -> argparse.ArgumentParser:
    """The options of `push_to_hub.py`."""
    parser = argparse.ArgumentParser(
        prog="push_to_hub.py",
        description="Publish a finished LASER run on the Hugging Face Hub: encoder, record, plots, results, evaluation "
        "script and a model card, in one commit. Without --yes it only checks everything and shows what it would "
        "upload.",
        epilog="Log in once with `hf auth login`, or set HF_TOKEN. Optimizer states and checkpoints stay here.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --output_dir of a finished train.py run")
    parser.add_argument("--repo_id", required=True, metavar="ORG/NAME", help="repository to create or to add to")
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, created if missing (default: main)")
    parser.add_argument(
        "--create_pr", action="store_true", help="open a pull request with the commit instead of changing main"
    )
    parser.add_argument(
        "--tag",
        metavar="TAG",
        help="mark the commit as a version (default: v1.0, then v1.1, ...; on other branches none)",
    )
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
        "--skip_base_check",
        action="store_true",
        help="publish although the base model's weights are neither here nor to be downloaded, so that nobody knows "
        "whether only the trained layers changed",
    )
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="FILE",
        help="facts about the base model and the method (default: from model_cards/, by their names)",
    )
    parser.add_argument("--show_card", action="store_true", help="print the model card as well")
    parser.add_argument(
        "--token", help="Hub token with write access; it ends in the shell's history, so prefer to log in"
    )
    return parser


def main(argv: Sequence[str] | None = None, *, cards_dir: Path = CARDS_DIR) -> int:
    """Check a run and, with `--yes`, publish it; returns the exit status.

    Args:
        argv: command line without the program's name.
        cards_dir: folder with the card template and the facts files.
    """
    options = vars(build_parser().parse_args(argv))
    yes, show_card = options.pop("yes"), options.pop("show_card")
    try:
        push(Request(**options), yes=yes, show_card=show_card, cards_dir=cards_dir)
    except PushError as error:
        print(f"push_to_hub.py: {error}", file=sys.stderr)
        return 1
    return 0


def push(
    request: Request, *, yes: bool = True, show_card: bool = False, cards_dir: Path = CARDS_DIR
) -> upload.Published | None:
    """Check a run, show what would be uploaded and, with `yes`, upload it.

    Returns:
        Where it is now, or `None` when nothing was uploaded.

    Raises:
        PushError: with the first reason not to publish.
    """
    with tempfile.TemporaryDirectory(prefix="laser-push-") as staging:
        bundle = prepare(request, Path(staging), cards_dir)
        if show_card:
            print(bundle.card)
        api, destination = HfApi(token=request.token), request.destination
        target, stale = None, []
        try:
            target = upload.inspect_target(api, destination.repo_id, destination.branch)
        except (HTTPError, OSError, ValueError) as error:
            if yes:
                raise PushError(explain(error, api.endpoint)) from error
            bundle.notes.append(f"the target repository was not checked: {explain(error, api.endpoint)}")
        else:
            upload.check_target(destination, target, bundle.record)
            stale = upload.stale_files(target, bundle.files)
        _show(destination, bundle, target, stale)
        if not yes:
            print("\nNothing was uploaded. Add --yes to publish.")
            return None
        message = request.commit_message or _message(bundle)
        published = upload.publish(api, destination, bundle.files, bundle.record, message)
    state = "Published as" if published.changed else "Nothing has changed since"
    tag = f", tag {published.tag}" if published.tag else ""
    print(f"\n{state} commit {published.commit}{tag}:\n{published.url}")
    return published


def later_command(request: Request) -> str:
    """The command that publishes the same once what stood in the way is gone."""
    words = ["python", "push_to_hub.py", str(request.run_dir), "--repo_id", request.repo_id]
    words += ["--private"] * request.private + ["--allow_unevaluated"] * request.allow_unevaluated
    return shlex.join([*words, "--yes"])


def _message(bundle: Bundle) -> str:
    record = bundle.record
    return (
        f"{bundle.method}: {record['updates']} updates on {record['base_model']['name']}, "
        f"{record['processed_hours']:.4g} hours of speech"
    )


def _show(destination: upload.Destination, bundle: Bundle, target: upload.Target | None, stale: Sequence[str]) -> None:
    state = "not checked" if target is None else "exists" if target.exists else "will be created"
    where = "a pull request" if destination.create_pr else f"branch {destination.branch}"
    print(f"Repository: {destination.repo_id} ({state}), {where}\n")
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
