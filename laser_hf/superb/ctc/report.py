"""What runs leave to read: records, recognised text with its worst utterances, and pictures."""

from __future__ import annotations

import dataclasses
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer
from safetensors.torch import save_file

from ...records import new_record, write_json
from ..features import plot_by_layer
from .data import Split
from .task import CtcTask, Decoded, changes

if TYPE_CHECKING:
    from .run import Command
    from .training import CtcTrainer

LOG_NAME, WEIGHTS_NAME = "training_log.json", "ctc_head.safetensors"
LAYERS_NAME, CURVES_NAME = Path("plots", "layer_weights.png"), Path("plots", "training.png")
WORST = 20
"""Utterances shown in `worst.txt`."""


def leave_run(
    command: Command, place: Path, trainer: CtcTrainer, number: int, decoded: Sequence[tuple[Split, list[Decoded]]]
) -> dict[str, Any]:
    """Leave texts, weights, log and pictures of the head `number` in `place`; return its record.

    The first of its metrics is the primary one on the first test split.
    """
    task, head, (seed, rate) = command.task, trainer.heads[number], trainer.runs[number]
    arguments, (train, dev, *tests) = command.arguments, command.splits
    metrics: list[dict[str, Any]] = []
    for split, found in decoded:
        values = task.metrics(found)
        metrics += [{"metric": m, "value": v, "unit": "percent", "split": split.name} for m, v in values.items()]
        write_decoded(place / split.folder_name, found, task)
    history, shares, error = trainer.history(number), head.weighted_sum.shares(), f"eval_{task.PRIMARY}"
    save_file({name: weight.cpu() for name, weight in head.state_dict().items()}, place / WEIGHTS_NAME)
    write_json(place / LOG_NAME, {"log": history})
    plot_by_layer({"layer weights": {f"seed {seed}": dict(enumerate(shares))}}, place / LAYERS_NAME, command.title)
    curves = {key: {e["step"]: e[key] for e in history if key in e} for key in ("loss", "eval_loss", error)}
    panels = {"CTC loss per label": {"training": curves["loss"], "dev": curves["eval_loss"]}}
    panels[f"dev {task.PRIMARY.upper()} (%)"] = {"dev": curves[error]}
    plot_by_layer(panels, place / CURVES_NAME, command.title, x="update")

    addresses = " ".join(map(str, train.speech.info.download_checksums or ()))
    commit = re.search(r"@([0-9a-f]{40})/", addresses)  # of a data set on the Hub
    recipe = dataclasses.replace(command.recipe, learning_rate=rate)
    fixed = {"optimizer": "Adam", "frozen_encoder": True, "cached_features": train.store is not None}
    given = {name: getattr(arguments, name) for name in ("do_normalize", "micro_batch_size")}
    source = {"source": arguments.data, "name": arguments.data_name}
    source["revision"] = commit[1] if commit else arguments.data_revision
    counts = {"train": train.counts(), "dev": dev.counts(), "test": [split.counts() for split in tests]}
    sizes = {"layers": command.features.layers, "dim": command.features.dim}
    return new_record(
        task.NAME,
        recipe=dataclasses.asdict(recipe) | fixed | given | task.describe(),
        data=source | counts,
        seed=seed,
        wall_seconds=time.time() - command.began + trainer.earlier_seconds,
        protocol=command.protocol,
        model=command.model,
        metrics=metrics,
        changed_from_superb={**command.changed, **changes(recipe, task.RECIPES["superb"])},
        selected=trainer.selected[number],
        layer_weights=shares,
        head={**sizes, "labels": list(task.LABELS), "parameters": sum(p.numel() for p in head.parameters())},
        training={
            "updates": trainer.state.global_step,
            "seconds": round(trainer.trained_seconds(), 1),
            "updates_left_out": trainer.left_out(number),
            "processes": trainer.args.world_size,
            "heads": len(trainer.heads),
        },
    )


def summarise(command: Command, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Record with mean and standard deviation (of a sample: n - 1) over seeds, all of which are kept.

    Of several learning rates it is that of the lowest mean error on dev, by which SUPERB lets it be chosen.
    """
    by_rate: dict[float, list[tuple[float, Mapping[str, Any]]]] = {}
    for record in records:
        *_, error = (entry["value"] for entry in record["metrics"] if entry["metric"] == command.task.PRIMARY)  # on dev
        by_rate.setdefault(record["recipe"]["learning_rate"], []).append((error, record))
    errors = {rate: statistics.fmean(error for error, _ in found) for rate, found in by_rate.items()}
    chosen, metrics = [record for _, record in by_rate[min(errors, key=errors.get)]], []
    for entries in zip(*(record["metrics"] for record in chosen), strict=True):
        values = [entry["value"] for entry in entries]
        spread = {"standard_deviation": statistics.stdev(values)} if len(values) > 1 else {}
        metrics.append(entries[0] | {"value": statistics.fmean(values)} | spread)
    lines = {f"seed {record['seed']}": dict(enumerate(record["layer_weights"])) for record in chosen}
    plot_by_layer({"layer weights": lines}, command.folder.path / LAYERS_NAME, command.title)
    summary = {entry: value for entry, value in chosen[0].items() if entry not in ("selected", "training")}
    summary |= {**metrics[0], "metrics": metrics}
    weights = zip(*(record["layer_weights"] for record in chosen), strict=True)
    summary["layer_weights"] = list(map(statistics.fmean, weights))
    kept = ("seed", "metrics", "selected", "layer_weights")
    summary["runs"] = [{entry: record[entry] for entry in kept} for record in chosen]
    if len(errors) > 1:
        dev = f"dev_{command.task.PRIMARY}"
        summary["learning_rates"] = {f"{rate:g}": {dev: error} for rate, error in errors.items()}
    return summary


def write_decoded(folder: Path, decoded: Sequence[Decoded], task: CtcTask) -> None:
    """Write `hyp.txt` and `ref.txt` (a line `words (id)` for each utterance, the trn form) and `worst.txt` to `folder`.

    `worst.txt` aligns hypothesis and reference of the utterances with the highest error rates, worst first: `S` marks a
    substitution, `D` a deletion, `I` an insertion.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hypotheses = [task.written(item.hypothesis) for item in decoded]
    references = [task.written(item.reference) for item in decoded]
    for name, lines in (("hyp", hypotheses), ("ref", references)):
        text = "".join(f"{line} ({item.id})\n" for line, item in zip(lines, decoded, strict=True))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    outputs = zip(decoded, map(jiwer.process_words, references, hypotheses), strict=True)
    worst = sorted(outputs, key=lambda pair: (-pair[1].wer, pair[0].id))[:WORST]
    shown = [f"The {len(worst)} of {len(decoded)} utterances with the highest error rates ({task.UNIT})\n"]
    for item, output in worst:
        counts = f"{output.substitutions} substituted, {output.deletions} deleted, {output.insertions} inserted"
        alignment = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False, line_width=110)
        alignment = alignment.partition("\n")[2].strip("\n")  # its first line numbers the only sentence
        shown.append(f"{item.id}: {100 * output.wer:.0f} % ({counts})\n{alignment}\n")
    (folder / "worst.txt").write_text("\n".join(shown), encoding="utf-8")
