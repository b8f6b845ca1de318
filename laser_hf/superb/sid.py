"""`laser-hf superb sid`: how much of who speaks is in the frames? SUPERB's speaker identification on a few speakers.

The head is S3PRL's for whole utterances (`UtteranceLevel`). All before the cross-entropy is linear, so the means of the
hidden states over the frames are all that it needs, and each recording is encoded once; each layer has a head too.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data import BadAudio, audio_seconds, decode_audio, load_speech
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..plugins import Option
from ..records import RESULTS, new_record
from ..runs import RunFolder
from .ctc.task import is_superb
from .features import Features, WeightedSum, chosen_features, plot_by_layer
from .features import add_arguments as add_feature_arguments
from .frame_store import length_batches

HELP = "speaker identification: accuracy of a linear head on the mean of the frames"
PLOT = "accuracy.png"
CHUNK = 512
"""Recordings whose waveforms are in memory at once."""
OPTIONS = (
    Option("--per_speaker", 25, "utterances of each speaker, spread evenly over the sorted ones", low=5),
    Option("--seconds", 1.0, "length of the stretches that are told apart; 0 for whole utterances", low=0),
    Option("--max_steps", 2000, "updates", low=1),
    Option("--eval_steps", 100, "updates between two looks at dev", low=1),
    Option("--learning_rate", 1e-3, "of Adam, constant (S3PRL's file has 1e-4, for 200,000 updates)", above=0),
)


class MeanHead(nn.Module):
    """SUPERB's head on means over frames `(layers, batch, dim)`, of one `layer` alone if it is given; gives logits."""

    def __init__(self, layers: int, dim: int, classes: int, layer: int | None = None):
        super().__init__()
        self.layer, self.weighted_sum = layer, WeightedSum(layers)
        self.projection, self.output = nn.Linear(dim, 256), nn.Linear(256, classes)

    def forward(self, means: torch.Tensor) -> torch.Tensor:
        features = self.weighted_sum(means.unsqueeze(2))[:, 0] if self.layer is None else means[self.layer]
        return self.output(self.projection(features))


def split_by_speaker(ids: Sequence[str], speakers: Sequence[str], per_speaker: int) -> dict[str, list[int]]:
    """Rows of train, dev and test: the first 60 %, then 20 % and 20 % of the sorted utterances of each speaker.

    At most `per_speaker` of them are taken, spread evenly; speakers with fewer than five are left out. `LaserError` if
    fewer than two are left.
    """
    by_speaker, roles = defaultdict(list), {"train": [], "dev": [], "test": []}
    for row in sorted(range(len(ids)), key=lambda row: ids[row]):
        by_speaker[speakers[row]].append(row)
    if len(kept := [rows for rows in by_speaker.values() if len(rows) >= 5]) < 2:
        raise LaserError(f"two speakers with five utterances are needed; {len(kept)} of {len(by_speaker)} have so many")
    for rows in kept:
        picks = np.linspace(0, len(rows) - 1, min(len(rows), per_speaker)).astype(int)
        parts = np.split(np.array(rows)[picks], [round(0.6 * len(picks)), round(0.8 * len(picks))])
        for role, part in zip(roles, parts, strict=True):
            roles[role] += part.tolist()
    return roles


def pooled(features: Features, waveforms: Sequence[torch.Tensor], seconds: float) -> list[torch.Tensor]:
    """Means over frames of each waveform, `(layers, stretches, dim)`; what is too short for a stretch is left out."""
    found: dict[int, torch.Tensor] = {}
    for batch in length_batches([len(waveform) for waveform in waveforms]):
        encoded = features([waveforms[index] for index in batch], range(features.layers))
        for index, *layers in zip(batch, *encoded, strict=True):
            states = torch.stack(layers)
            size = round(seconds / features.frame_seconds) or states.shape[1]
            count = states.shape[1] // size
            found[index] = states[:, : count * size].unflatten(1, (count, size)).mean(2)
    return [found[index] for index in range(len(waveforms))]


def encoded(
    features: Features, items: Sequence[tuple[Any, int]], seconds: float, *, gain: float = 1.0, silence: int = -1
) -> tuple[torch.Tensor, torch.Tensor, Counter]:
    """Means of recordings as `pooled` has them, `(layers, items, dim)`, their labels `(items,)`, and what was skipped.

    `items` are audio, as `decode_audio` takes it, with a label; digital silence is taken with the label `silence` only.
    """
    shortest, skipped = max(features.shortest / SAMPLE_RATE, seconds + 0.05 if seconds else 0.0), Counter()
    means, labels = [torch.empty(features.layers, 0, features.dim)], [torch.empty(0, dtype=torch.long)]
    bar = tqdm(total=len(items), unit="recording", disable=len(items) <= CHUNK or None, mininterval=2)
    for start in range(0, len(items), CHUNK):
        waveforms, kept = [], []
        for audio, label in items[start : start + CHUNK]:
            try:
                waveform = decode_audio(audio, min_seconds=shortest).waveform
            except BadAudio as error:
                if error.kind != "silent" or label != silence:
                    skipped[error.kind] += 1
                    continue
                waveform = torch.zeros(round(SAMPLE_RATE * audio_seconds(audio)))
            waveforms.append(waveform * gain)
            kept.append(label)
        found = pooled(features, waveforms, seconds)
        means += found
        labels += [torch.full((one.shape[1],), label) for one, label in zip(found, kept, strict=True)]
        bar.update(min(CHUNK, len(items) - start))
    bar.close()
    return torch.cat(means, 1), torch.cat(labels), skipped


def train_heads(
    heads: Sequence[nn.Module], data: Sequence[tuple], values: Mapping[str, Any], seed: int, balanced: bool = False
) -> list[dict]:
    """Train heads on the same batches: Adam, 32 items an update, gradients clipped at 1.

    Of each the accuracies (percent) on `dev` and `test` where dev was best, the `step`, and `right`: whether each item
    of test is recognised, 0 or 1. `data` holds means `(layers, items, dim)` and labels `(items,)` of train, dev and
    test; `values` those of `OPTIONS`. `balanced`: every class is drawn equally often, and counts equally on dev.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [one for head in heads for one in head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=values["learning_rate"], fused=True)
    best: list[dict[str, float]] = [{"dev": -1.0} for _ in heads]
    (means, labels), dev, test = data
    order, sizes = labels.argsort(), labels.unique(return_counts=True)[1]
    ends = sizes.cumsum(0)
    weights = 1 / dev[1].bincount()[dev[1]].double() if balanced else torch.ones(len(dev[1])).double()
    for step in tqdm(range(1, values["max_steps"] + 1), desc="heads", unit="update", mininterval=2, disable=None):
        rows = torch.randint(len(labels), (32,), generator=generator)
        if balanced:
            drawn = torch.randint(len(sizes), (32,), generator=generator)
            place = torch.rand(32, generator=generator, dtype=torch.float64) * sizes[drawn]
            rows = order[ends[drawn] - 1 - place.long()]
        batch, wanted = means[:, rows], labels[rows]
        optimizer.zero_grad()
        for head in heads:
            F.cross_entropy(head(batch), wanted).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        if step % values["eval_steps"] == 0 or step == values["max_steps"]:
            for number, head in enumerate(heads):
                right = [(head(x).argmax(1) == y).double() for x, y in (dev, test)]
                accuracy = round((weights @ right[0] / weights.sum()).item(), 9)
                found = {"dev": 100 * accuracy, "test": 100 * right[1].mean().item()}
                if found["dev"] > best[number]["dev"]:
                    best[number] = {**found, "step": step, "right": right[1]}
    return best


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser, layer=False)
    parser.add_argument("--data", required=True, help="a LibriSpeech tree, or any data set with a column `speaker`")
    parser.add_argument("--split", help="split, or sub-folder of the tree; default: all")
    for option in OPTIONS:
        parser.add_argument(option.name, type=option, default=option.default, help=option.help)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and test the heads, write `results.json` and `accuracy.png`, return the record."""
    recipe = {option.name[2:]: getattr(arguments, option.name[2:]) for option in OPTIONS}
    speech = load_speech(arguments.data, arguments.split)
    if "speaker" not in speech.column_names:
        raise LaserError(f"{arguments.data} does not say who speaks: no column `speaker`")
    speakers = list(speech["speaker"])
    roles = split_by_speaker(list(speech["id"]), speakers, recipe["per_speaker"])
    names = sorted({speakers[row] for row in roles["train"]})
    items = {role: [(speech[row]["audio"], names.index(speakers[row])) for row in rows] for role, rows in roles.items()}
    about = {"source": str(arguments.data), "split": arguments.split, "speakers": len(names)}
    return classify(("sid", "speaker identification"), arguments, items, names, recipe, about)


def classify(
    task: tuple[str, str],
    arguments: argparse.Namespace,
    items: Mapping[str, Sequence[tuple[Any, int]]],
    names: Sequence[str],
    recipe: dict[str, Any],
    about: dict[str, Any],
    superb: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What the tasks on whole recordings have in common: heads on means of frames, record and picture.

    Args:
        task: name in records, and in words.
        arguments: of `features.add_arguments`.
        items: audio and number of its class, of train, dev and test.
        names: the classes.
        recipe: values of the heads, and of what else decides the result.
        about: entries of the record about the data.
        superb: values of the recipe, and counts of recordings, with which the record is SUPERB's; without it is not.
        options: of `encoded`. With `superb`, classes are drawn equally often.
    """
    began, (name, title) = time.time(), task
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(), owned=(PLOT,))
    features, layers = chosen_features(arguments)
    folder.prepare(recipe | about, arguments.overwrite_output_dir)
    data, counts, skipped = [], {}, Counter()
    for role, recordings in items.items():
        means, labels, lost = encoded(features, recordings, recipe.get("seconds", 0.0), **options)
        if not len(labels):
            raise LaserError(f"no utterance of {role} can be used: {dict(lost)}")
        skipped += lost
        data.append((means, labels))
        counts[role] = {"utterances": len(recordings) - lost.total(), "stretches": len(labels)}

    torch.manual_seed(arguments.seed)
    heads = [MeanHead(features.layers, features.dim, len(names), layer) for layer in (None, *layers)]
    weighted, *alone = train_heads(heads, data, recipe, arguments.seed, superb is not None)
    by_layer, split = [found["test"] for found in alone], about.get("split") or "all"
    values = [("accuracy", weighted["test"]), ("last_layer_accuracy", by_layer[-1]), ("accuracy", weighted["dev"])]
    metrics = [{"metric": metric, "value": value, "unit": "percent", "split": split} for metric, value in values]
    metrics[2]["split"] = "dev"
    metrics += [metrics[0] | {"metric": "layer_accuracy", "value": v, "layer": n} for n, v in enumerate(by_layer)]
    lines = {"each layer alone": dict(enumerate(by_layer)), "weighted sum": dict.fromkeys(layers, weighted["test"])}
    plot_by_layer({f"{title}, accuracy (%)": lines}, folder.path / PLOT, arguments.model)
    right, labels = alone[-1]["right"], data[-1][1]
    here = recipe | {role: counts[role]["utterances"] for role in counts}
    changed = {key: {"superb": value, "here": here[key]} for key, value in (superb or {}).items() if here[key] != value}
    record = new_record(
        name,
        protocol="superb" if superb and is_superb(changed, recipe["learning_rate"]) else "quick",
        model=features.describe(arguments.model),
        metrics=metrics,
        data=about | {"skipped": dict(skipped)} | counts,
        recipe=recipe,
        seed=arguments.seed,
        wall_seconds=time.time() - began,
        chance=100 / len(names),
        layer_weights=heads[0].weighted_sum.shares(),
        selected=[found["step"] for found in (weighted, *alone)],
        # Recognised stretches and all stretches of each class in test.
        last_layer_right={names[n]: [int(right[labels == n].sum()), int((labels == n).sum())] for n in labels.unique()},
        **({"changed_from_superb": changed} if superb else {}),
    )
    folder.finish(record)
    print(f"accuracy {weighted['test']:.1f} % of {len(names)} classes (last layer alone {by_layer[-1]:.1f} %)")
    return record
