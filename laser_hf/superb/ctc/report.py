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
import numpy as np
from safetensors.torch import save_file

from ...records import new_record, write_json
from .data import Split
from .heads import WEIGHTS_NAME
from .task import CtcTask, Decoded, changes

if TYPE_CHECKING:
    from .run import Command
    from .training import CtcTrainer

LOG_NAME = "training_log.json"
WORST = 20
"""Utterances shown in `worst.txt`."""


def leave_run(
    command: Command, place: Path, trainer: CtcTrainer, number: int, decoded: Sequence[tuple[Split, list[Decoded]]]
) -> dict[str, Any]:
    """Leave texts, weights, log and pictures of the head `number` in `place`; return its record.

    The first of its metrics is the primary one on the first test split.
    """
    task, head, (seed, rate) = command.task, trainer.heads[number], trainer.runs[number]
    metrics: list[dict[str, Any]] = []
    for split, found in decoded:
        values = task.metrics(found)
        metrics += [{"metric": m, "value": v, "unit": "percent", "split": split.name} for m, v in values.items()]
        write_decoded(place / split.folder_name, found, task)
    history, shares = trainer.history(number), head.weighted_sum.shares()
    save_file({name: weight.cpu() for name, weight in head.state_dict().items()}, place / WEIGHTS_NAME)
    write_json(place / LOG_NAME, {"log": history})
    plot_layer_weights({f"seed {seed}": shares}, place / "plots" / "layer_weights.png", command.title)
    plot_training(history, task.PRIMARY, place / "plots" / "training.png", command.title)

    arguments, (train, dev, *tests) = command.arguments, command.splits
    addresses = " ".join(map(str, train.speech.info.download_checksums or ()))
    commit = re.search(r"@([0-9a-f]{40})/", addresses)  # of a data set on the Hub
    recipe = dataclasses.replace(command.recipe, learning_rate=rate)
    return new_record(
        task.NAME,
        recipe={
            **dataclasses.asdict(recipe),
            "optimizer": "Adam",
            "frozen_encoder": True,
            "do_normalize": arguments.do_normalize,
            "cached_features": train.store is not None,
            "micro_batch_size": arguments.micro_batch_size,
            **task.describe(),
        },
        data={
            "source": arguments.data,
            "name": arguments.data_name,
            "revision": commit[1] if commit else arguments.data_revision,
            "train": train.counts(),
            "dev": dev.counts(),
            "test": [split.counts() for split in tests],
        },
        seed=seed,
        wall_seconds=time.time() - command.began + trainer.earlier_seconds(),
        protocol=command.protocol,
        model=command.model,
        metrics=metrics,
        changed_from_superb={**command.changed, **changes(recipe, task.RECIPES["superb"])},
        selected=trainer.selected[number],
        layer_weights=shares,
        head={
            "layers": command.features.layers,
            "dim": command.features.dim,
            "labels": list(task.LABELS),
            "parameters": sum(p.numel() for p in head.parameters()),
        },
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
    by_rate: dict[float, list[Mapping[str, Any]]] = {}
    for record in records:
        by_rate.setdefault(record["recipe"]["learning_rate"], []).append(record)
    name, dev = command.task.PRIMARY, command.splits[1].name

    def dev_error(rate: float) -> float:
        entries = [entry for record in by_rate[rate] for entry in record["metrics"]]
        return statistics.fmean(e["value"] for e in entries if (e["metric"], e["split"]) == (name, dev))

    chosen, metrics = by_rate[min(by_rate, key=dev_error)], []
    for entries in zip(*(record["metrics"] for record in chosen), strict=True):
        values = [entry["value"] for entry in entries]
        spread = {"standard_deviation": statistics.stdev(values)} if len(values) > 1 else {}
        metrics.append(entries[0] | {"value": statistics.fmean(values)} | spread)
    weights = {f"seed {record['seed']}": record["layer_weights"] for record in chosen}
    plot_layer_weights(weights, command.folder.path / "plots" / "layer_weights.png", command.title)
    summary = {entry: value for entry, value in chosen[0].items() if entry not in ("selected", "training")}
    summary |= {**metrics[0], "metrics": metrics}
    summary["layer_weights"] = [statistics.fmean(layer) for layer in zip(*weights.values(), strict=True)]
    kept = ("seed", "metrics", "selected", "layer_weights")
    summary["runs"] = [{entry: record[entry] for entry in kept} for record in chosen]
    if len(by_rate) > 1:
        summary["learning_rates"] = {f"{rate:g}": {f"dev_{name}": dev_error(rate)} for rate in by_rate}
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
    outputs = [jiwer.process_words(ref, hyp) for ref, hyp in zip(references, hypotheses, strict=True)]
    order = sorted(range(len(decoded)), key=lambda index: (-outputs[index].wer, decoded[index].id))[:WORST]
    shown = [f"The {len(order)} of {len(decoded)} utterances with the highest error rates ({task.UNIT})\n"]
    for index in order:
        output = outputs[index]
        counts = f"{output.substitutions} substituted, {output.deletions} deleted, {output.insertions} inserted"
        alignment = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False, line_width=110)
        alignment = alignment.partition("\n")[2].strip("\n")  # its first line numbers the only sentence
        shown.append(f"{decoded[index].id}: {100 * output.wer:.0f} % ({counts})\n{alignment}\n")
    (folder / "worst.txt").write_text("\n".join(shown), encoding="utf-8")


def plot_layer_weights(runs: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Softmaxed layer weights by name of the run, as bars of their mean; of several runs each is a dot."""
    from ...figures import LINE_COLOURS, new_figure, save

    shares = np.array(list(runs.values()))
    layers = np.arange(shares.shape[1])
    figure, axis = new_figure(size=(max(4.5, 0.5 * len(layers)), 3.4))
    axis.bar(layers, shares.mean(0), color=LINE_COLOURS[0])
    if len(shares) > 1:
        axis.plot(layers, shares.T, ".", color="black", markersize=4)
    axis.axhline(1 / len(layers), color="grey", linestyle=":", linewidth=1, label="at the start: all alike")
    axis.set(xticks=layers, xlabel="hidden state (0: input of the first layer)", ylabel="weight")
    axis.legend(fontsize=8)
    save(figure, path, title)


def plot_training(history: Sequence[Mapping[str, Any]], metric: str, path: Path, title: str) -> None:
    """CTC loss of training and dev, and the dev error rate `metric`, against updates, from the log of the Trainer."""
    from ...figures import LINE_COLOURS, new_figure, save

    figure, (losses, errors) = new_figure(1, 2, size=(9, 3.4))
    lines = [(losses, "loss", "training"), (losses, "eval_loss", "dev"), (errors, f"eval_{metric}", "dev")]
    for (axis, key, label), colour in zip(lines, LINE_COLOURS, strict=False):
        if points := [(entry["step"], entry[key]) for entry in history if key in entry]:
            axis.plot(*zip(*points, strict=True), marker=".", label=label, color=colour)
    losses.set(ylabel="CTC loss per label", yscale="log")
    losses.legend(fontsize=8)
    errors.set(ylabel=f"dev {metric.upper()} (%)", ylim=(0, None))
    for axis in (losses, errors):
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    save(figure, path, title)
