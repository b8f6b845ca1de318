"""`laser-hf superb discrimination`: diagnostics of an encoder's frames on a little aligned speech, in seconds."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ...errors import LaserError
from ...ops.statistics import effective_rank, mean_pairwise_cosine
from ...plugins import field_options
from ...records import RESULTS, new_record
from ...runs import RunFolder
from ..features import VIEWS, Features, chosen_features, perturbed, plot_layers
from ..features import add_arguments as add_feature_arguments
from ..frame_store import encode
from ..qbe.scoring import average_precision
from .comparisons import NoComparison, abx_error, dtw_distances, word_discrimination, word_pairs
from .speech import DEFAULTS, DiscriminationSettings, load_aligned_speech
from .tokens import AlignedSpeech, Token, frame_times, token_frames

logger = logging.getLogger(__name__)

HELP = "diagnostics in seconds: same-different word discrimination, ABX-like phone error, collapse statistics"
PLOT = "discrimination.png"
PANELS = {
    "word discrimination, average precision (higher is better)": ("word_ap_across", "word_ap"),
    "ABX-like phone error (lower is better, chance 0.5)": ("abx_across", "abx_within"),
    "mean pairwise cosine of frames": ("frame_cosine",),
    "effective rank of frames": ("effective_rank",),
    "word discrimination of perturbed words (higher is better)": ("perturbed_word_ap_across",),
    "distance of a word from its perturbed copy, over that of different words": ("view_distance",),
}
OF_FRAMES = ("frame_cosine", "effective_rank")
MAX_FRAMES = 512  # of the cosine and the effective rank, as in the training monitor
FEW_PAIRS = 100  # below this many same-word pairs average precision is a rough number


@dataclass(frozen=True)
class DiscriminationReport:
    """The diagnostics of one layer, as far as measured: entries of a record, `metric`, `value`, `unit` and counts."""

    metrics: list[dict[str, Any]]

    def summary(self) -> dict[str, float]:
        """The scalars by their short names."""
        return {entry["metric"]: entry["value"] for entry in self.metrics}


def measure(
    features: Features,
    speech: AlignedSpeech,
    layers: Sequence[int] = (-1,),
    settings: DiscriminationSettings = DEFAULTS,
) -> list[DiscriminationReport]:
    """All diagnostics of each of `layers` (negative ones from the last), on frames that `features` makes.

    For an encoder in training, `measure(EncoderFeatures(encoder), speech)[0].summary()` is what an evaluator returns.
    The encoder's mode and PyTorch's random generators stay as they are.
    """
    reports, times = [], frame_times(features)
    for frames in encode(features, speech.waveforms, [layer % features.layers for layer in layers]):
        entries = []
        for name, across in (("word_ap_across", True), ("word_ap", False)):
            how = {"max_pairs": settings.max_pairs, "seed": settings.seed, "across": across}
            try:
                found = asdict(word_discrimination(frames, speech.words, **times, **how))
                entries.append({"metric": name, "value": found.pop("average_precision"), "unit": "fraction", **found})
            except NoComparison as error:
                logger.warning("%s cannot be measured: %s", name, error)
        for kind, found in abx_error(frames, speech.phones, **times).items():
            entries.append({"metric": f"abx_{kind}", "value": found.pop("error"), "unit": "fraction", **found})
        stacked = torch.cat([frames[name] for name in sorted(frames)])
        stacked = stacked[torch.linspace(0, len(stacked) - 1, min(MAX_FRAMES, len(stacked))).long()]
        for name, value in zip(OF_FRAMES, (mean_pairwise_cosine(stacked), effective_rank(stacked)), strict=True):
            entries.append({"metric": name, "value": value, "unit": ""})
        reports.append(DiscriminationReport([entry for entry in entries if not math.isnan(entry["value"])]))
    return reports


def invariance(
    features: Features, speech: AlignedSpeech, layers: Sequence[int], settings: DiscriminationSettings
) -> list[dict[str, dict[str, float]]]:
    """How far perturbed words lie from the words as they are, the invariance that LASER trains: two measures by view.

    * `perturbed_word_ap_across`: word discrimination across speakers of perturbed words among words as they are.
    * `view_distance`: mean distance of a word from its perturbed copy, over the mean distance of different words of
      different speakers. 0: the perturbation does not show; 1: it moves a word as far as another word lies.

    Of each layer, on the words of `speech`. `NoComparison` as `word_discrimination`.
    """
    tokens, times = sorted(speech.words), frame_times(features)
    first, second, same = word_pairs(tokens, settings.max_pairs, settings.seed, across=True)
    own, count = np.arange(len(tokens)), len(tokens)
    clean = [token_frames(frames, tokens, **times) for frames in encode(features, speech.waveforms, layers)]
    apart = [dtw_distances(words, first[~same], second[~same]).mean() for words in clean]
    found = [{"perturbed_word_ap_across": {}, "view_distance": {}} for _ in layers]
    for view, (speed, _) in VIEWS.items():
        waveforms = {name: perturbed(waveform, view) for name, waveform in speech.waveforms.items()}
        moved = [replace(token, start=token.start / speed, duration=token.duration / speed) for token in tokens]
        for place, frames in enumerate(encode(features, waveforms, layers, view)):
            words = clean[place] + token_frames(frames, moved, **times)
            distances = dtw_distances(words, first + count, second)
            found[place]["perturbed_word_ap_across"][view] = average_precision(-distances, same)
            found[place]["view_distance"][view] = float(dtw_distances(words, own + count, own).mean() / apart[place])
    return found


def item_lines(phones: Sequence[Token]) -> list[str]:
    """Lines of an item file: every phone with the one before and the one after it, which touch it, as a triphone."""
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for triple in zip(phones, phones[1:], phones[2:], strict=False):
        if all(a.utterance == b.utterance and abs(a.end - b.start) < 0.011 for a, b in pairwise(triple)):
            a, phone, b = triple
            names = f"{phone.label} {a.label} {b.label} {phone.speaker}"
            lines.append(f"{phone.utterance} {a.start:.3f} {b.end:.3f} {names}")
    return lines


def zerospeech_abx(
    features: Features, speech: AlignedSpeech, layers: Sequence[int], seed: int = 0
) -> list[dict[str, float]]:
    """ABX errors of triphones that differ in the middle, within and across speakers, of each layer; fractions.

    Computed by the package `fastabx` (Python 3.12 or newer) with the limits on tokens of ZeroSpeech 2021: 10 in a cell,
    5 of X across speakers. `LaserError` if `fastabx` is missing, or the speech has no two such triphones.
    """
    try:
        import fastabx
    except ModuleNotFoundError as error:
        raise LaserError("--zerospeech needs fastabx and Python 3.12 or newer: pip install 'laser-hf[abx]'") from error
    how = {"max_size_group": 10, "max_x_across": 5, "frequency": round(1 / features.frame_seconds), "seed": seed}
    found = []
    with TemporaryDirectory() as folder:
        item = Path(folder) / "phones.item"
        item.write_text("\n".join(item_lines(speech.all_phones)) + "\n", encoding="utf-8")
        for frames in encode(features, speech.waveforms, layers):
            for name, states in frames.items():
                torch.save(states, Path(folder) / f"{name}.pt")
            errors = {}
            for speaker in ("within", "across"):
                try:
                    error = fastabx.zerospeech_abx(item, folder, speaker=speaker, device="cpu", progress=False, **how)
                except (ValueError, IndexError) as wrong:
                    raise LaserError(f"no ABX {speaker} speakers on these phones: {wrong}; give more speech") from wrong
                errors[f"zerospeech_abx_{speaker}"] = float(error)
            found.append(errors)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser)
    add = parser.add_argument
    add("--perturbed", action="store_true", help="measure invariance too: words with another speed or pitch")
    add("--data", type=Path, required=True, help="LibriSpeech tree or folder of audio; files are found by name")
    add("--split", nargs="+", help="sub-folders of --data to use; default: all")
    add("--alignments", type=Path, required=True, help="tab-separated words (and phones) with times")
    add("--zerospeech", action="store_true", help="also ABX as the ZeroSpeech challenges have it (needs the extra abx)")
    for option in field_options(DiscriminationSettings):
        if option.name != "--seed":
            add(option.name, type=option, default=option.default, help=option.help)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write `results.json` (and `discrimination.png` for several layers), return the record."""
    began = time.time()
    settings = DiscriminationSettings(**{f.name: getattr(arguments, f.name) for f in fields(DiscriminationSettings)})
    recipe = asdict(settings) | {name: getattr(arguments, name) for name in ("layer", "perturbed", "zerospeech")}
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(), owned=(PLOT,))
    speech = load_aligned_speech(arguments.data, arguments.alignments, arguments.split, settings)
    features, layers = chosen_features(arguments)
    folder.prepare(recipe, arguments.overwrite_output_dir)
    found = [report.metrics for report in measure(features, speech, layers, settings)]
    if {entry["metric"] for entry in found[-1]} <= set(OF_FRAMES):
        selected = f"({len(speech.words)} words and {len(speech.phones)} phones are selected)"
        mend = "give more speech, or lower --min_letters or --min_seconds"
        raise LaserError(f"no words and no phones of {arguments.alignments} can be compared {selected}; {mend}")
    if arguments.perturbed:
        for entries, measures in zip(found, invariance(features, speech, layers, settings), strict=True):
            for name, views in measures.items():
                entries.append({"metric": name, "value": fmean(views.values()), "unit": "fraction", "views": views})
    if arguments.zerospeech:
        for entries, errors in zip(found, zerospeech_abx(features, speech, layers, settings.seed), strict=True):
            entries += [{"metric": name, "value": error, "unit": "fraction"} for name, error in errors.items()]
    for layer, entries in zip(layers, found, strict=True):
        print(f"layer {layer}: " + ", ".join(f"{entry['metric']} {entry['value']:.4f}" for entry in entries))
    pairs = next((entry["same_pairs"] for entry in found[-1] if entry["metric"] == "word_ap_across"), 0)
    if pairs < FEW_PAIRS:
        rough = f"only {pairs} same-word pairs of different speakers, so word_ap_across is a rough number"
        print(f"Note: {rough}; more speech or a lower --min_letters or --min_seconds gives more pairs.")
    split = "+".join(arguments.split or ["all"])
    # The last layer comes first: it is the one that is fine-tuned, and the one that query by example reads.
    by_layer = list(zip(layers, found, strict=True))[::-1]
    metrics = [entry | {"split": split, "layer": layer} for layer, entries in by_layer for entry in entries]
    if len(layers) > 1:
        plot_layers(PANELS, metrics, arguments.output_dir / PLOT, arguments.model)
    source = {"source": str(arguments.data), "alignments": str(arguments.alignments), "splits": arguments.split}
    record = new_record(
        "discrimination",
        protocol="quick",
        model=features.describe(arguments.model),
        metrics=metrics,
        data=source | speech.counts(),
        recipe={**recipe, "layers": layers, "frame_seconds": features.frame_seconds},
        seed=arguments.seed,
        wall_seconds=time.time() - began,
    )
    folder.finish(record)
    return record
