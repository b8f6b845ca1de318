"""`laser-hf superb discrimination`: diagnostics of an encoder's frames on a little aligned speech.

`measure` gives word discrimination, an ABX-like phone error, and the mean pairwise cosine and the effective rank of the
frames, in seconds. A training run measures at every evaluation.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ...encoders import SAMPLE_RATE
from ...errors import LaserError
from ...ops.statistics import effective_rank, mean_pairwise_cosine
from ...plugins import Option
from ...records import RESULTS, new_record
from ...runs import RunFolder
from ..features import VIEWS, Features, chosen_features, plot_by_layer
from ..features import add_arguments as add_feature_arguments
from ..frame_store import encode
from .comparisons import AbxReport, NoComparison, WordReport, abx_error, word_discrimination
from .invariance import invariance
from .speech import DEFAULTS, AlignedSpeech, DiscriminationSettings, load_aligned_speech
from .zerospeech import zerospeech_abx

logger = logging.getLogger(__name__)

NAME = "discrimination"
HELP = "diagnostics in seconds: same-different word discrimination, ABX-like phone error, collapse statistics"
PLOT = "discrimination.png"
INVARIANCE = {
    "perturbed_word_ap_across": "word discrimination of perturbed words (higher is better)",
    "view_distance": "distance of a word from its perturbed copy, over that of different words",
}
MAX_FRAMES = 512  # of the cosine and the effective rank, as in the training monitor
FEW_PAIRS = 100  # below this many same-word pairs average precision is a rough number


@dataclass(frozen=True)
class DiscriminationReport:
    """All diagnostics of one layer; a part is `None` where the speech has no such tokens or allows no comparison."""

    words_across: WordReport | None
    words_all: WordReport | None
    abx: AbxReport | None
    frame_cosine: float
    effective_rank: float

    def summary(self) -> dict[str, float]:
        """The scalars by their short names, without those that could not be measured."""
        values = {
            "word_ap_across": self.words_across and self.words_across.average_precision,
            "word_ap": self.words_all and self.words_all.average_precision,
            "abx_across": self.abx and self.abx.across,
            "abx_within": self.abx and self.abx.within,
            "frame_cosine": self.frame_cosine,
            "effective_rank": self.effective_rank,
        }
        return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def frame_times(features: Features) -> dict[str, float]:
    """Frame rate, and the time of the middle of frame 0."""
    return {"frame_rate": 1 / features.frame_seconds, "first_seconds": features.shortest / 2 / SAMPLE_RATE}


def measure(
    features: Features,
    speech: AlignedSpeech,
    layers: Sequence[int] = (-1,),
    settings: DiscriminationSettings = DEFAULTS,
    progress: bool = False,
) -> list[DiscriminationReport]:
    """All diagnostics of each of `layers` (negative ones from the last), on frames that `features` makes.

    For an encoder in training, `measure(EncoderFeatures(encoder), speech)[0].summary()` is what an evaluator returns.
    The encoder's mode and PyTorch's random generators stay as they are.
    """
    encoded = encode(features, speech.waveforms, [layer % features.layers for layer in layers], "frames" * progress)
    times = frame_times(features)
    chosen = {"max_pairs": settings.max_pairs, "seed": settings.seed, **times}
    reports = []
    for _ in layers:
        frames = encoded.pop(0)
        words: list[WordReport | None] = []
        for across, label in ((True, "words (across speakers)"), (False, "words (all speakers)")):
            try:
                found = word_discrimination(frames, speech.words, across=across, progress=label * progress, **chosen)
            except NoComparison as error:
                logger.warning("cannot compare %s: %s", label, error)
                found = None
            words.append(found)
        abx = abx_error(frames, speech.phones, progress="phones" * progress, **times) if speech.phones else None
        stacked = torch.cat([frames[name] for name in sorted(frames)])
        stacked = stacked[torch.linspace(0, len(stacked) - 1, min(MAX_FRAMES, len(stacked))).long()]
        reports.append(DiscriminationReport(*words, abx, mean_pairwise_cosine(stacked), effective_rank(stacked)))
    return reports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser)
    add = parser.add_argument
    add("--perturbed", action="store_true", help="measure invariance too: words with another speed or pitch")
    add("--data", type=Path, required=True, help="LibriSpeech tree or folder of audio; files are found by name")
    add("--split", nargs="+", help="sub-folders of --data to use; default: all")
    add("--alignments", type=Path, required=True, help="tab-separated words (and phones) with times")
    add("--zerospeech", action="store_true", help="also ABX as the ZeroSpeech challenges have it (needs the extra abx)")
    for setting in fields(DiscriminationSettings):
        if setting.name != "seed":
            kind = Option(f"--{setting.name}", setting.default, "", low=setting.metadata["least"])
            add(f"--{setting.name}", type=kind, default=setting.default, help=setting.metadata["help"])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write `results.json` (and `discrimination.png` for several layers), return the record."""
    began = time.time()
    settings = DiscriminationSettings(**{f.name: getattr(arguments, f.name) for f in fields(DiscriminationSettings)})
    recipe = asdict(settings) | {name: getattr(arguments, name) for name in ("layer", "perturbed", "zerospeech")}
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(), owned=(PLOT,))
    speech = load_aligned_speech(arguments.data, arguments.alignments, arguments.split, settings)
    features, layers = chosen_features(arguments)
    folder.prepare(recipe, arguments.overwrite_output_dir)
    reports = dict(zip(layers, measure(features, speech, layers, settings, progress=True), strict=True))
    for layer, report in reports.items():
        print(f"layer {layer}: " + ", ".join(f"{name} {value:.4f}" for name, value in report.summary().items()))
    more: dict[int, dict[str, Any]] = {}
    if arguments.perturbed:
        more = dict(zip(layers, invariance(features, speech, layers, settings, **frame_times(features)), strict=True))
    if arguments.zerospeech:
        for layer, errors in zip(layers, zerospeech_abx(features, speech, layers, settings.seed), strict=True):
            print(f"layer {layer}: " + ", ".join(f"{name} {error:.4f}" for name, error in errors.items()))
            more.setdefault(layer, {}).update(errors)
    last = reports[layers[-1]]
    if last.summary().keys() <= {"frame_cosine", "effective_rank"}:
        selected = f"({len(speech.words)} words and {len(speech.phones)} phones are selected)"
        mend = "give more speech, or lower --min_letters or --min_seconds"
        raise LaserError(f"no words and no phones of {arguments.alignments} can be compared {selected}; {mend}")
    pairs = last.words_across.same_pairs if last.words_across else 0
    if pairs < FEW_PAIRS:
        rough = f"only {pairs} same-word pairs of different speakers, so word_ap_across is a rough number"
        print(f"Note: {rough}; more speech or a lower --min_letters or --min_seconds gives more pairs.")
    if len(layers) > 1:
        plot_layers(reports, more, arguments.output_dir / PLOT, arguments.model)
    split = "+".join(arguments.split) if arguments.split else "all"
    source = {"source": str(arguments.data), "alignments": str(arguments.alignments), "splits": arguments.split}
    record = new_record(
        NAME,
        protocol="quick",
        model=features.describe(arguments.model),
        # The last layer comes first: it is the one that is fine-tuned, and the one that query by example reads.
        metrics=[
            entry for layer in reversed(layers) for entry in _metrics(reports[layer], more.get(layer, {}), layer, split)
        ],
        data=source | speech.counts(),
        recipe={**recipe, "layers": layers, "frame_seconds": features.frame_seconds},
        seed=arguments.seed,
        wall_seconds=time.time() - began,
    )
    folder.finish(record)
    return record


def _metrics(report: DiscriminationReport, more: Mapping[str, Any], layer: int, split: str) -> list[dict[str, Any]]:
    """The metrics of a layer with their counts or their values by view; what could not be measured is left out."""
    metrics = []

    def enter(name: str, value: float, unit: str = "", **counts: Any) -> None:
        about = {"unit": unit, "split": split, "layer": layer}
        metrics.append({"metric": name, "value": value, **about, **counts})

    for name, words in (("word_ap_across", report.words_across), ("word_ap", report.words_all)):
        if words is not None:
            counts = asdict(words)
            enter(name, counts.pop("average_precision"), "fraction", **counts)
    for name in ("across", "within") if report.abx else ():
        abx = asdict(report.abx)
        counts = {key: abx[key] for key in ("tokens", "phones", "speakers")}
        counts |= {key: abx[f"{name}_{key}"] for key in ("triples", "phone_pairs")}
        if not math.isnan(abx[name]):
            enter(f"abx_{name}", abx[name], "fraction", **counts)
    enter("frame_cosine", report.frame_cosine)
    enter("effective_rank", report.effective_rank)
    for name, found in more.items():
        value, views = (fmean(found.values()), {"views": found}) if isinstance(found, Mapping) else (found, {})
        enter(name, value, "fraction", **views)
    return metrics


def plot_layers(
    reports: Mapping[int, DiscriminationReport],
    more: Mapping[int, Mapping[str, Any]],
    path: Path,
    title: str,
) -> None:
    """The diagnostics against the layer."""
    panels = {
        "word discrimination, average precision (higher is better)": ("word_ap_across", "word_ap"),
        "ABX-like phone error (lower is better, chance 0.5)": ("abx_across", "abx_within"),
        "mean pairwise cosine of frames": ("frame_cosine",),
        "effective rank of frames": ("effective_rank",),
    }
    summaries = {layer: report.summary() for layer, report in reports.items()}
    lines = {
        label: {name: {layer: one[name] for layer, one in summaries.items() if name in one} for name in names}
        for label, names in panels.items()
    }
    for name, label in INVARIANCE.items():
        if perturbed := {layer: one[name] for layer, one in more.items() if name in one}:
            lines[label] = {view: {layer: one[view] for layer, one in perturbed.items()} for view in VIEWS}
    plot_by_layer(lines, path, title)
