"""What is said at the end of a run: what changed since its start, where everything is, what to do next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cli import program
from ..console import EVAL, NAMED, short
from ..objectives import find_objective
from ..records import RESULTS, TRAINING_RECORD, located
from .speech import DEMO_SPEECH, LOGGED


def closing(output_dir: str | Path) -> str:
    """Where everything of a finished run is, and commands that measure it and show what publishing would upload."""
    folder, speech = Path(output_dir), Path(located(DEMO_SPEECH))
    speech = speech.relative_to(Path.cwd()) if Path.cwd() in speech.parents else speech
    results = folder / "results" / "discrimination"
    name = re.sub(r"[^\w-]+", "-", folder.resolve().name, flags=re.ASCII).strip("-_").removesuffix("-laser")
    measure = ["superb", "discrimination", "--model", folder, "--data", speech, "--split", "heldout", "--alignments"]
    measure += [speech / "words.tsv", "--min_letters", 4, "--min_seconds", 0, "--output_dir", results]
    publish = ["push", folder, "--repo_id", f"your-name/{name or 'encoder'}-laser", "--results", results / RESULTS]
    plots = f", pictures {folder / 'plots'}" if (folder / "plots").is_dir() else ""
    return (
        f"\nEncoder {folder} (AutoModel.from_pretrained loads it), record {folder / TRAINING_RECORD}{plots}\n"
        f"\nMeasure it on words of synthetic voices ({program()} superb --help: on your own speech, SUPERB's tasks):\n"
        f"  {program()} {shlex.join(map(str, measure))}\n"
        f"Then see what publishing it would upload:\n  {program()} {shlex.join(map(str, publish))}"
    )


def verdict(record: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, in sentences: terms and scores, collapse, utterances left out."""
    hours, seconds = record["processed_hours"], record["wall_seconds"]
    yield f"{record['updates']} updates, {hours:.2f} hours of speech processed, {seconds:.0f} seconds of training."
    first, last, objective = record["first"], record["last"], find_objective(record["method"])
    prefix = EVAL if f"{EVAL}loss" in last else ""
    labels = objective.log_labels() | {name: NAMED[name][0] for name in LOGGED}
    terms = {label: prefix + name for name, label in labels.items() if prefix + name in last}
    values = {label: (first[name]["value"], last[name]["value"]) for label, name in terms.items()}
    if not prefix:
        why = "was not measured (--eval_steps)" if record["data"]["held_out"] else "was not given (--eval_data)"
        yield f"Held-out speech {why}: how the encoder does on speech it was not trained on is not known."
    what = "Held-out speech" if prefix else "Speech trained on"
    begin, end = (measured.get(f"{prefix}loss", {}).get("step") for measured in (first, last))
    if begin == end:
        yield f"{what} was not measured twice: what changed is not known."
    else:
        changes = [_change(label, *pair) for label, pair in values.items() if label == "loss" or pair != values["loss"]]
        yield f"{what}, update {begin} to {end}: {', '.join(changes)}."
    yield _collapse(record, prefix, objective.anti_collapse)
    if skipped := record["data"]["skipped"]["utterances"]:
        yield f"{skipped} utterances were skipped: {record['data']['skipped']['by_kind']}."


def _change(label: str, old: float, new: float) -> str:
    if short(old) == short(new):
        return f"{label} stayed at {short(new)}"
    share = f" ({new / old - 1:+.0%})".replace("%", " %") if old > 0 else ""
    return f"{label} {'fell' if new < old else 'rose'} from {short(old)} to {short(new)}{share}"


def _collapse(record: Mapping[str, Any], prefix: str, remedy: str) -> str:
    """Whether the frames became alike."""
    fired, start, last = record["collapse"]["fired_at"], record["collapse"]["start"], record["last"]
    if start is None:
        return "Whether the frames became alike was not measured."
    names = {"mean cosine of frames": "frame_cosine", "effective rank": "effective_rank"}
    said = ", ".join(_change(label, start[name], last[prefix + name]["value"]) for label, name in names.items())
    if fired is None:
        return f"No collapse alarm: {said}."
    still = "still on at the end" if last[f"{prefix}collapse"]["value"] else "off again at the end"
    mend = f"Raise {remedy} or lower --learning_rate" if remedy else "Lower --learning_rate"
    return f"COLLAPSE ALARM at update {fired}, {still}: {said}. {mend}."
