"""What `asr` and `pr` leave: probe, log, plots and record of each run, and the record of several runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...records import write_json
from ..results import write_results
from .ctc_setting import Setting
from .figures import plot_layer_weights, plot_probe_training
from .probe_training import ProbeTrainer
from .probes import save_probe
from .run_folder import LOG_NAME


def write_run(
    setting: Setting, folder: Path, seed: int, trainer: ProbeTrainer, metrics: Sequence[dict[str, Any]], began: float
) -> dict[str, Any]:
    """Leave probe, log, plots and record of one run in `folder`.

    Args:
        setting: of the command.
        folder: of the run.
        seed: of the run.
        trainer: after training, with the probe that was chosen.
        metrics: the record's, the task's primary one first.
        began: when the run started, seconds of `time.time()`.

    Returns:
        The record.
    """
    probe, state = trainer.model, trainer.own_state()
    shares = probe.weighted_sum.shares()
    save_probe(folder, probe, setting.describe_probe(seed))
    write_json(folder / LOG_NAME, {"log": trainer.state.log_history})
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    plot_layer_weights({f"seed {seed}": shares}, plots / "layer_weights.png", setting.title)
    plot_probe_training(trainer.state.log_history, setting.task.primary, plots / "training.png", setting.title)
    return write_results(
        folder,
        seed=seed,
        wall_seconds=time.time() - began,
        metrics=metrics,
        selected={
            "step": state["best_step"],
            "rule": f"lowest dev {setting.task.primary}, looked at every {setting.recipe.eval_steps} updates"
            if state["best_step"] is not None
            else "last update: no dev value was low enough to be kept",
        },
        layer_weights=shares,
        training={
            "updates": trainer.state.global_step,
            "seconds": round(state["trained_seconds"], 1),
            "updates_left_out": state["not_finite"],
            "probe_parameters": sum(p.numel() for p in probe.parameters()),
            "processes": trainer.args.world_size,
        },
        **setting.describe(),
    )


def write_summary(setting: Setting, folder: Path, records: Sequence[dict[str, Any]], began: float) -> dict[str, Any]:
    """Mean and standard deviation (of a sample: n - 1) over runs, all of which are kept.

    Args:
        setting: of the command.
        folder: of the command.
        records: of its runs, at least two.
        began: when the command started, seconds of `time.time()`.

    Returns:
        The record.
    """
    metrics = []
    for entries in zip(*(record["metrics"] for record in records), strict=True):
        values = [entry["value"] for entry in entries]
        metrics.append(
            {**entries[0], "value": statistics.fmean(values), "standard_deviation": statistics.stdev(values)}
        )
    layers = zip(*(record["layer_weights"] for record in records), strict=True)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    weights = {f"seed {record['seed']}": record["layer_weights"] for record in records}
    plot_layer_weights(weights, plots / "layer_weights.png", setting.title)
    return write_results(
        folder,
        seed=records[0]["seed"],
        wall_seconds=time.time() - began,
        metrics=metrics,
        layer_weights=[statistics.fmean(layer) for layer in layers],
        runs=[
            {name: record[name] for name in ("seed", "metrics", "selected", "layer_weights", "wall_seconds")}
            for record in records
        ],
        **setting.describe(),
    )
