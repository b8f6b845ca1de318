"""The command line of `push_to_hub.py`, and the same for `train.py --push_to_hub`: collect, check, show, upload."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, constants, eval_result_entries_to_yaml
from huggingface_hub.errors import HTTPError

from . import collect, evaluation, upload, weights
from .card import CardError, find_facts, find_speech, placeholders, render_card
from .collect import CARD_NAME, HUB_RESULTS, RECORD_NAME, read_object, without_private
from .errors import PushError, explain
from .reload import check_reload

CARDS_DIR = Path(__file__).resolve().parents[2] / "model_cards"
"""Template and facts of the cards, beside the package."""


@dataclass
class Request:
    """What is to be published, and how; the options of `push_to_hub.py`."""

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
    def destination(self) -> upload.Destination:
        """Where it goes."""
        return upload.Destination(
            self.repo_id, self.revision or constants.DEFAULT_REVISION, self.private, self.create_pr, self.tag
        )


@dataclass
class Bundle:
    """What will be uploaded: the file behind each path in the repository, the record, what could not be checked."""

    files: dict[str, Path]
    record: Mapping[str, Any]
    card: str
    notes: list[str] = field(default_factory=list)


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
        message = request.commit_message or _message(bundle.record)
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


def prepare(request: Request, staging: Path, cards_dir: Path) -> Bundle:
    """Collect and check all that is to be uploaded; nothing is sent.

    Raises:
        PushError: with the first reason not to publish.
    """
    request.destination.check()
    sources = collect.collect(request.run_dir, request.results)
    record = read_object(request.run_dir / RECORD_NAME)
    config = read_object(request.run_dir / "config.json")
    if "auto_map" in config:
        raise PushError("config.json has an auto_map, so that loading would run code of the repository")
    if not isinstance(record.get("base_model"), dict) or not record["base_model"].get("name"):
        raise PushError(f"{RECORD_NAME} does not say which base model was fine-tuned")
    facts = _facts(request, record, cards_dir)
    exported, base, notes = _check_weights(request, record)

    identity = evaluation.Identity(
        digest=weights.digest(exported),
        base_digest=weights.digest(base, exported) if base is not None else None,
        base_name=record["base_model"]["name"],
        names=(str(request.run_dir), request.repo_id),
        finished=record["written"],
    )
    results, unread = evaluation.read_results(collect.result_files(sources), identity)
    notes += [f"{name} has a layout that the card cannot show; it is uploaded, but not listed" for name in unread]
    evaluated = any(result.whose == evaluation.OWN for result in results)
    if not evaluated and not request.allow_unevaluated:
        models = sorted({result.model for result in results})
        raise PushError(
            f"no downstream result of this model in {request.run_dir}/results/, and none given with --results"
            + (f" (there are some of {', '.join(models)})" if models else "")
            + ". Evaluate it first, or publish it as it is with --allow_unevaluated; its card will say so"
        )
    files = collect.stage(sources, staging, [request.token] if request.token else [])
    entries = evaluation.hub_entries(
        results, f"{constants.ENDPOINT}/{request.repo_id}/tree/{request.destination.branch}/results"
    )
    if entries:
        files[HUB_RESULTS] = staging / HUB_RESULTS
        files[HUB_RESULTS].parent.mkdir()
        files[HUB_RESULTS].write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    try:
        card = render_card(
            without_private(record),
            facts,
            cards_dir / "model_card.md.jinja",
            repo_id=request.repo_id,
            config=config,
            preprocessor=read_object(staging / "preprocessor_config.json"),
            speech=find_speech(record, cards_dir),
            results=results,
            plots=sorted(p.relative_to(staging).as_posix() for p in staging.glob("plots/*.png")),
        )
    except CardError as error:
        raise PushError(str(error)) from error
    gaps = placeholders(card)
    if gaps:
        raise PushError(f"the model card has gaps: {'; '.join(gaps[:5])}")
    (staging / CARD_NAME).write_text(card, encoding="utf-8")
    files = {CARD_NAME: staging / CARD_NAME, **files}
    collect.check_kinds(files)
    check_reload(staging, record)
    return Bundle(files, record, card, notes)


def _facts(request: Request, record: Mapping[str, Any], cards_dir: Path) -> dict[str, Any]:
    try:
        return find_facts(record, cards_dir, read_object(request.facts) if request.facts else None)
    except KeyError as error:
        raise PushError(f"{RECORD_NAME} has no {error}; it is not a record of train.py") from error
    except CardError as error:
        raise PushError(str(error)) from error


def _check_weights(request: Request, record: Mapping[str, Any]):
    """The exported weights, the base model's if they are to be had, and what could not be checked."""
    exported = weights.open_weights(request.run_dir / "model.safetensors", record["base_model"]["model_type"])
    weights.check_finite(exported)
    weights.check_trained(exported, record)
    try:
        base = weights.open_base(record, request.token)
    except weights.BaseModelError as error:
        if not request.skip_base_check:
            raise PushError(
                f"whether only the trained layers changed cannot be checked: {error}. Give access to it, or publish "
                "without that check by --skip_base_check"
            ) from error
        return exported, None, [f"that only the trained layers changed was not checked: {error}"]
    weights.check_against_base(exported, base, record)
    return exported, base, []


def _message(record: Mapping[str, Any]) -> str:
    return (
        f"{record['method'].upper()}: {record['updates']} updates on {record['base_model']['name']}, "
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
