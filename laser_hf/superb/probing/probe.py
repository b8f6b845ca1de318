"""`python -m laser_hf.superb probe`: the diagnostics of `diagnostics` as a command, with record and plot."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..qbe.frontends import choose_layers, load_frontend
from ..results import describe_model, write_results
from .abx import CONTEXTS
from .diagnostics import ProbeReport, ProbeSettings, encode, load_probe_speech, measure
from .word_discrimination import POOLINGS

HELP = "diagnostics in seconds: same-different word discrimination, ABX-like phone error, collapse statistics"
FEW_PAIRS = 100  # below this many same-word pairs average precision is a rough number

_SETTINGS_HELP = {
    "max_utterances": "utterances encoded, the speakers in turn",
    "min_letters": "letters of the shortest word compared",
    "min_seconds": "duration of the shortest word compared",
    "max_words": "word tokens compared, words said by several speakers first",
    "max_pairs": "pairs of word tokens compared",
    "phones_per_speaker": "tokens of each phone of each speaker in the ABX error",
    "max_speakers": "speakers in the ABX error",
    "context": "ABX compares phones in any context, or only those with the same neighbours (needs much speech)",
    "pooling": "align frames (dtw) or compare mean frames (mean)",
    "seed": "of the selection of tokens, and of the weights of random:MODEL",
}
_CHOICES = {"context": CONTEXTS, "pooling": POOLINGS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--model", required=True, help="encoder id or folder, random:ID_OR_FOLDER (fresh weights), mfcc or logmel")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--data", type=Path, required=True, help="LibriSpeech tree or folder of audio; files are found by name")
    add("--alignments", type=Path, required=True, help="tab-separated words (and phones) with times")
    add("--splits", nargs="+", help="sub-folders of --data to use; default: all")
    add("--output_dir", type=Path, required=True, help="results.json and probe.png go here")
    add("--layer", default="-1", help="hidden state: 0 is the input of the first layer, -1 the last one; or all")
    add("--batch_size", type=int, default=8, help="utterances encoded at once; no effect on the result")
    add("--device", default="cpu", help="where the encoder runs: cpu or cuda")
    for field in fields(ProbeSettings):
        add(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            choices=_CHOICES.get(field.name),
            help=_SETTINGS_HELP[field.name],
        )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write `results.json` (and `probe.png` for several layers), return the record."""
    began = time.time()
    settings = ProbeSettings(**{field.name: getattr(arguments, field.name) for field in fields(ProbeSettings)})
    speech = load_probe_speech(arguments.data, arguments.alignments, arguments.splits, settings)
    frontend = load_frontend(arguments.model, revision=arguments.revision, seed=arguments.seed, device=arguments.device)
    layers = choose_layers(arguments.layer, frontend.layers)
    frames = encode(frontend, speech.waveforms, layers, arguments.batch_size, progress="frames")
    reports = {}
    for layer in layers:
        reports[layer] = measure(frames.pop(0), speech, frontend, settings, progress=True)
        values = ", ".join(f"{name} {value:.4f}" for name, value in reports[layer].summary().items())
        print(f"layer {layer}: {values}")
    _warn(reports[layers[-1]], arguments)
    split = "+".join(arguments.splits) if arguments.splits else "all"
    encoder = getattr(frontend, "encoder", None)
    # The last layer comes first: it is the one that is fine-tuned, and the one QbE reads.
    record = write_results(
        arguments.output_dir,
        task="probe",
        protocol="quick",
        model=describe_model(arguments.model, encoder),
        metrics=[entry for layer in reversed(layers) for entry in _metrics(reports[layer], layer, split)],
        data={
            "source": str(arguments.data),
            "alignments": str(arguments.alignments),
            "splits": arguments.splits,
            **speech.counts(),
        },
        hyper_parameters={**asdict(settings), "layers": layers, "frame_seconds": frontend.frame_seconds},
        seed=arguments.seed,
        wall_seconds=time.time() - began,
    )
    if len(layers) > 1:
        plot_layers(reports, arguments.output_dir / "probe.png", str(arguments.model))
    return record


def _metrics(report: ProbeReport, layer: int, split: str) -> list[dict[str, Any]]:
    """The metrics of a layer with their counts; what could not be measured is left out."""
    common = {"split": split, "layer": layer}
    metrics = []
    for name, words in (("word_ap_across", report.words_across), ("word_ap", report.words_all)):
        if words is not None:
            counts = {k: v for k, v in words.to_dict().items() if k != "average_precision"}
            metrics.append({"metric": name, "value": words.average_precision, "unit": "fraction", **common, **counts})
    if report.abx is not None:
        counts = {name: getattr(report.abx, name) for name in ("tokens", "phones", "speakers")}
        for name in ("across", "within"):
            triples = {key: getattr(report.abx, f"{name}_{key}") for key in ("triples", "phone_pairs")}
            value = getattr(report.abx, name)
            metrics.append({"metric": f"abx_{name}", "value": value, "unit": "fraction", **common, **counts, **triples})
    for name in ("frame_cosine", "effective_rank"):
        metrics.append({"metric": name, "value": getattr(report, name), "unit": "", **common})
    return metrics


def _warn(report: ProbeReport, arguments: argparse.Namespace) -> None:
    pairs = report.words_across.same_pairs if report.words_across else 0
    if pairs < FEW_PAIRS:
        print(
            f"Note: only {pairs} same-word pairs of different speakers, so word_ap_across is a rough number; more "
            f"speech, --min_letters below {arguments.min_letters} or --min_seconds below {arguments.min_seconds:g} "
            "give more pairs."
        )


def plot_layers(reports: dict[int, ProbeReport], path: Path, title: str) -> None:
    """The diagnostics against the layer."""
    # Imported here: matplotlib takes a second that --help and failing runs need not wait for.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        (("word_ap_across", "word_ap"), "word discrimination, average precision (higher is better)"),
        (("abx_across", "abx_within"), "ABX-like phone error (lower is better, chance 0.5)"),
        (("frame_cosine",), "mean pairwise cosine of frames"),
        (("effective_rank",), "effective rank of frames"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), layout="constrained")
    summaries = {layer: report.summary() for layer, report in reports.items()}
    for axis, (names, label) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(layer, summary[name]) for layer, summary in summaries.items() if name in summary]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set_title(label, fontsize=9)
        axis.set_xlabel("hidden state")
        axis.set_xticks(list(summaries))
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
