"""`python -m laser_hf.superb discrimination`: the diagnostics of `measuring` as a command, with record and plot."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...records import RESULTS, new_record
from ...runs import RunFolder
from ..features import add_arguments as add_feature_arguments
from ..features import load_features, pick_device, pick_layers
from .measuring import DiscriminationReport, DiscriminationSettings, load_aligned_speech, measure

NAME = "discrimination"
HELP = "diagnostics in seconds: same-different word discrimination, ABX-like phone error, collapse statistics"
PLOT = "discrimination.png"
FEW_PAIRS = 100  # below this many same-word pairs average precision is a rough number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="LibriSpeech tree or folder of audio; files are found by name")
    add("--split", nargs="+", help="sub-folders of --data to use; default: all")
    add("--alignments", type=Path, required=True, help="tab-separated words (and phones) with times")
    for setting in fields(DiscriminationSettings):
        if setting.name != "seed":
            default = setting.default
            add(f"--{setting.name}", type=type(default), default=default, help=setting.metadata["help"])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write `results.json` (and `discrimination.png` for several layers), return the record.

    Raises:
        LaserError: options or data that do not fit; the message says how to mend it.
    """
    began = time.time()
    settings = DiscriminationSettings(**{f.name: getattr(arguments, f.name) for f in fields(DiscriminationSettings)})
    recipe = {**asdict(settings), "layer": arguments.layer}
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(), owned=(PLOT,))
    speech = load_aligned_speech(arguments.data, arguments.alignments, arguments.split, settings)
    features = load_features(arguments.model, arguments.revision, arguments.seed, pick_device(arguments.device))
    layers = pick_layers(arguments.layer, features.layers)
    folder.prepare(recipe, arguments.overwrite_output_dir)
    reports = dict(zip(layers, measure(features, speech, layers, settings, progress=True), strict=True))
    for layer, report in reports.items():
        print(f"layer {layer}: " + ", ".join(f"{name} {value:.4f}" for name, value in report.summary().items()))
    last = reports[layers[-1]]
    pairs = last.words_across.same_pairs if last.words_across else 0
    if pairs < FEW_PAIRS:
        print(
            f"Note: only {pairs} same-word pairs of different speakers, so word_ap_across is a rough number; more "
            f"speech, --min_letters below {settings.min_letters} or --min_seconds below {settings.min_seconds:g} "
            "give more pairs."
        )
    if len(layers) > 1:
        plot_layers(reports, arguments.output_dir / PLOT, str(arguments.model))
    split = "+".join(arguments.split) if arguments.split else "all"
    record = new_record(
        NAME,
        protocol="quick",
        model=features.describe(arguments.model),
        # The last layer comes first: it is the one that is fine-tuned, and the one that query by example reads.
        metrics=[entry for layer in reversed(layers) for entry in _metrics(reports[layer], layer, split)],
        data={
            "source": str(arguments.data),
            "alignments": str(arguments.alignments),
            "splits": arguments.split,
            **speech.counts(),
        },
        recipe={**recipe, "layers": layers, "frame_seconds": features.frame_seconds},
        seed=arguments.seed,
        wall_seconds=time.time() - began,
    )
    folder.finish(record)
    return record


def _metrics(report: DiscriminationReport, layer: int, split: str) -> list[dict[str, Any]]:
    """The metrics of a layer with their counts; what could not be measured is left out."""
    common = {"split": split, "layer": layer}
    metrics = []
    for name, words in (("word_ap_across", report.words_across), ("word_ap", report.words_all)):
        if words is not None:
            counts = asdict(words)
            value = counts.pop("average_precision")
            metrics.append({"metric": name, "value": value, "unit": "fraction", **common, **counts})
    if report.abx is not None:
        abx = asdict(report.abx)
        for name in ("across", "within"):
            counts = {key: abx[key] for key in ("tokens", "phones", "speakers")}
            counts |= {key: abx[f"{name}_{key}"] for key in ("triples", "phone_pairs")}
            metrics.append({"metric": f"abx_{name}", "value": abx[name], "unit": "fraction", **common, **counts})
    for name in ("frame_cosine", "effective_rank"):
        metrics.append({"metric": name, "value": getattr(report, name), "unit": "", **common})
    return metrics


def plot_layers(reports: Mapping[int, DiscriminationReport], path: Path, title: str) -> None:
    """The diagnostics against the layer."""
    from ... import figures

    panels = (
        (("word_ap_across", "word_ap"), "word discrimination, average precision (higher is better)"),
        (("abx_across", "abx_within"), "ABX-like phone error (lower is better, chance 0.5)"),
        (("frame_cosine",), "mean pairwise cosine of frames"),
        (("effective_rank",), "effective rank of frames"),
    )
    figure, axes = figures.new_figure(2, 2, (9, 6.2))
    summaries = {layer: report.summary() for layer, report in reports.items()}
    for axis, (names, label) in zip(axes.flat, panels, strict=True):
        for name, colour in zip(names, figures.LINE_COLOURS, strict=False):
            points = [(layer, summary[name]) for layer, summary in summaries.items() if name in summary]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name, color=colour)
        axis.set_title(label, fontsize=9)
        axis.set_xlabel("hidden state")
        axis.set_xticks(list(summaries))
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend(fontsize=8)
    figures.save(figure, path, title)
