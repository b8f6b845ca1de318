"""All that a push uploads, collected and checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, eval_result_entries_to_yaml

from . import collect, evaluation, upload, weights
from .card import placeholders, render_card
from .collect import CARD_NAME, HUB_RESULTS, RECORD_NAME, read_object, without_private
from .errors import PushError
from .facts import CardError, find_facts, find_speech
from .hub_results import hub_entries
from .reload import check_reload


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
    """What will be uploaded.

    Attributes:
        files: the file behind each path in the repository.
        record: `laser_config.json` of the run.
        method: what the method is called.
        card: the model card.
        notes: what could not be checked.
    """

    files: dict[str, Path]
    record: Mapping[str, Any]
    method: str
    card: str
    notes: list[str] = field(default_factory=list)


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
    entries = hub_entries(results, f"{constants.ENDPOINT}/{request.repo_id}/tree/{request.destination.branch}/results")
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
    return Bundle(files, record, facts["method_title"], card, notes)


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
