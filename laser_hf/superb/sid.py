"""`laser-hf superb sid`: how much of who speaks is in the frames? SUPERB's speaker identification on a few speakers.

The head is S3PRL's (`downstream/voxceleb1`). All before the cross-entropy is linear, so the means of the hidden states
over the frames are all that it needs, and each recording is encoded once; each layer has a head of its own too.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data import BadAudio, decode_audio, load_speech
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..plugins import Option
from ..records import RESULTS, new_record
from ..runs import RunFolder
from .features import Features, WeightedSum, chosen_features, plot_by_layer
from .features import add_arguments as add_feature_arguments
from .frame_store import length_batches

HELP = "speaker identification: accuracy of a linear head on the mean of the frames"
PLOT = "accuracy.png"
OPTIONS = (
    Option("--per_speaker", 25, "utterances of each speaker, spread evenly over the sorted ones", low=5),
    Option("--seconds", 1.0, "length of the stretches that are told apart; 0 for whole utterances", low=0),
    Option("--max_steps", 2000, "updates", low=1),
    Option("--eval_steps", 100, "updates between two looks at dev", low=1),
    Option("--learning_rate", 1e-3, "of Adam, constant (S3PRL's file has 1e-4, for 200,000 updates)", above=0),
)


class SpeakerHead(nn.Module):
    """SUPERB's head on means over frames `(layers, batch, dim)`, of one `layer` alone if it is given; gives logits."""

    def __init__(self, layers: int, dim: int, speakers: int, layer: int | None = None):
        super().__init__()
        self.layer, self.weighted_sum = layer, WeightedSum(layers)
        self.projection, self.output = nn.Linear(dim, 256), nn.Linear(256, speakers)

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


def train_heads(heads: Sequence[nn.Module], data: Sequence[tuple], values: dict[str, Any], seed: int) -> list[dict]:
    """Train heads on the same batches: Adam, 32 items an update, gradients clipped at 1.

    Of each the accuracies (percent) on `dev` and `test` where dev was best, the `step`, and `right`: whether each item
    of test is recognised, 0 or 1. `data` holds means `(layers, items, dim)` and labels `(items,)` of train, dev and
    test; `values` those of `OPTIONS`.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizers = [torch.optim.Adam(head.parameters(), lr=values["learning_rate"]) for head in heads]
    best: list[dict[str, float]] = [{"dev": -1.0} for _ in heads]
    (means, labels), *others = data
    for step in range(1, values["max_steps"] + 1):
        batch = torch.randint(len(labels), (32,), generator=generator)
        for head, optimizer in zip(heads, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(head(means[:, batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
        if step % values["eval_steps"] == 0 or step == values["max_steps"]:
            for number, head in enumerate(heads):
                right = [(head(x).argmax(1) == y).double() for x, y in others]
                dev, test = (100 * one.mean().item() for one in right)
                if dev > best[number]["dev"]:
                    best[number] = {"dev": dev, "test": test, "step": step, "right": right[1]}
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
    began = time.time()
    recipe = {option.name[2:]: getattr(arguments, option.name[2:]) for option in OPTIONS}
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(), owned=(PLOT,))
    speech = load_speech(arguments.data, arguments.split)
    if "speaker" not in speech.column_names:
        raise LaserError(f"{arguments.data} does not say who speaks: no column `speaker`")
    speakers = list(speech["speaker"])
    roles = split_by_speaker(list(speech["id"]), speakers, recipe["per_speaker"])
    features, layers = chosen_features(arguments)
    folder.prepare(recipe, arguments.overwrite_output_dir)

    shortest, skipped = max(features.shortest / SAMPLE_RATE, recipe["seconds"] + 0.05), Counter()
    names = sorted({speakers[row] for row in roles["train"]})
    data, counts = [], {}
    for role, rows in roles.items():
        waveforms, labels = [], []
        for row in rows:
            try:
                waveforms.append(decode_audio(speech[row]["audio"], min_seconds=shortest).waveform)
                labels.append(names.index(speakers[row]))
            except BadAudio as error:
                skipped[error.kind] += 1
        if not waveforms:
            raise LaserError(f"no utterance of {role} can be used: {dict(skipped)}")
        means = pooled(features, waveforms, recipe["seconds"])
        items = torch.tensor(labels).repeat_interleave(torch.tensor([one.shape[1] for one in means]))
        data.append((torch.cat(means, 1), items))
        counts[role] = {"utterances": len(waveforms), "stretches": len(items)}

    torch.manual_seed(arguments.seed)
    heads = [SpeakerHead(features.layers, features.dim, len(names), layer) for layer in (None, *layers)]
    weighted, *alone = train_heads(heads, data, recipe, arguments.seed)
    by_layer, split = [found["test"] for found in alone], arguments.split or "all"
    values = [("accuracy", weighted["test"]), ("last_layer_accuracy", by_layer[-1]), ("accuracy", weighted["dev"])]
    metrics = [{"metric": name, "value": value, "unit": "percent", "split": split} for name, value in values]
    metrics[2]["split"] = "dev"
    metrics += [metrics[0] | {"metric": "layer_accuracy", "value": v, "layer": n} for n, v in enumerate(by_layer)]
    lines = {"each layer alone": dict(enumerate(by_layer)), "weighted sum": dict.fromkeys(layers, weighted["test"])}
    plot_by_layer({"speaker identification, accuracy (%)": lines}, folder.path / PLOT, arguments.model)
    about = {"source": str(arguments.data), "split": arguments.split, "speakers": len(names), "skipped": dict(skipped)}
    right, labels = alone[-1]["right"], data[-1][1]
    record = new_record(
        "sid",
        protocol="quick",
        model=features.describe(arguments.model),
        metrics=metrics,
        data=about | counts,
        recipe=recipe,
        seed=arguments.seed,
        wall_seconds=time.time() - began,
        chance=100 / len(names),
        layer_weights=heads[0].weighted_sum.shares(),
        selected=[found["step"] for found in (weighted, *alone)],
        # Recognised stretches and all stretches of each speaker in test.
        last_layer_right={names[n]: [int(right[labels == n].sum()), int((labels == n).sum())] for n in labels.unique()},
    )
    folder.finish(record)
    print(f"accuracy {weighted['test']:.1f} % of {len(names)} speakers (last layer alone {by_layer[-1]:.1f} %)")
    return record
