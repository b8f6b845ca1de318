"""`laser-hf superb sid`: how much of who speaks is in the frames? SUPERB's speaker identification on a few speakers.

The head is S3PRL's (`downstream/voxceleb1`): a weighted sum of all hidden states, a linear map to 256, the mean over
frames, a linear map to speakers, cross-entropy; Adam, 32 items an update, gradients clipped at 1, the head that does
best on dev. All before the cross-entropy is linear, so the means of the hidden states over the frames are all that it
needs, and each recording is encoded once. Fine-tuning moves the last layers, and the weighted sum may lean on others:
each layer has a head of its own too.

Protocol `quick`: speakers of any corpus instead of VoxCeleb1's 1,251, and stretches of a few seconds instead of whole
utterances, which a few speakers do not make hard enough. Recordings of one speaker share room and microphone, which the
accuracy counts as the speaker's.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data import BadAudio, decode_audio, load_speech
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..plugins import Option
from ..records import RESULTS, new_record
from ..runs import RunFolder
from .features import Features, WeightedSum, chosen_features, plot_by_layer
from .features import add_arguments as add_feature_arguments
from .frame_store import length_batches

NAME = "sid"
HELP = "speaker identification: accuracy of a linear head on the mean of the frames"
PLOT = "accuracy.png"
ROLES = ("train", "dev", "test")
OPTIONS = (
    Option("per_speaker", 25, "utterances of each speaker, spread evenly over the sorted ones", low=5),
    Option("seconds", 1.0, "length of the stretches that are told apart; 0 for whole utterances", low=0),
    Option("max_steps", 2000, "updates", low=1),
    Option("eval_steps", 100, "updates between two looks at dev", low=1),
    Option("learning_rate", 1e-3, "of Adam, constant (S3PRL's file has 1e-4, for 200,000 updates)", above=0),
)


class SpeakerHead(nn.Module):
    """SUPERB's head on means over frames `(layers, batch, dim)`; of one `layer` alone, if it is given."""

    def __init__(self, layers: int, dim: int, speakers: int, layer: int | None = None):
        super().__init__()
        self.layer, self.weighted_sum = layer, WeightedSum(layers)
        self.projection, self.output = nn.Linear(dim, 256), nn.Linear(256, speakers)

    def forward(self, means: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, speakers)`."""
        features = self.weighted_sum(means.unsqueeze(2))[:, 0] if self.layer is None else means[self.layer]
        return self.output(self.projection(features))


def split_by_speaker(ids: Sequence[str], speakers: Sequence[str], per_speaker: int) -> list[list[int]]:
    """Rows of train, dev and test: of the sorted utterances of each speaker the first 60 %, 20 % and 20 %.

    At most `per_speaker` of them are taken, spread evenly; speakers with fewer than five are left out. `LaserError` if
    fewer than two are left.
    """
    by_speaker = defaultdict(list)
    for row in sorted(range(len(ids)), key=lambda row: ids[row]):
        by_speaker[speakers[row]].append(row)
    roles: list[list[int]] = [[], [], []]
    kept = [own for own in by_speaker.values() if len(own) >= 5]
    if len(kept) < 2:
        raise LaserError(f"two speakers with five utterances are needed; {len(kept)} of {len(by_speaker)} have so many")
    for own in kept:
        if len(own) > per_speaker:
            own = [own[pick] for pick in torch.linspace(0, len(own) - 1, per_speaker).long().tolist()]
        bounds = [0, round(0.6 * len(own)), round(0.8 * len(own)), len(own)]
        for role, rows in enumerate(roles):
            rows += own[bounds[role] : bounds[role + 1]]
    return roles


def pooled(features: Features, waveforms: Sequence[torch.Tensor], seconds: float) -> list[torch.Tensor]:
    """Means over frames of each waveform, `(layers, stretches, dim)`; what is too short for a stretch is left out."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(waveforms)
    for batch in tqdm(length_batches([len(waveform) for waveform in waveforms]), desc="frames", mininterval=2):
        encoded = features([waveforms[index] for index in batch], range(features.layers))
        for index, *layers in zip(batch, *encoded, strict=True):
            states = torch.stack(layers)
            size = round(seconds / features.frame_seconds) or states.shape[1]
            count = states.shape[1] // size
            found[index] = states[:, : count * size].unflatten(1, (count, size)).mean(2)
    return found


def train_heads(
    heads: Sequence[nn.Module],
    data: Sequence[tuple[torch.Tensor, torch.Tensor]],
    max_steps: int,
    eval_steps: int,
    learning_rate: float,
    seed: int,
) -> list[dict[str, float]]:
    """Train heads on the same batches; of each the accuracies on dev and test (percent) where dev was best.

    Args:
        data: means `(layers, items, dim)` and labels `(items,)` of train, dev and test.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizers = [torch.optim.Adam(head.parameters(), lr=learning_rate) for head in heads]
    best: list[dict[str, float]] = [{"dev": -1.0} for _ in heads]
    (means, labels), *others = data
    for step in range(1, max_steps + 1):
        batch = torch.randint(len(labels), (32,), generator=generator)
        for head, optimizer in zip(heads, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(head(means[:, batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
        if step % eval_steps == 0 or step == max_steps:
            with torch.no_grad():
                for number, head in enumerate(heads):
                    right = [100 * (head(x).argmax(1) == y).double().mean().item() for x, y in others]
                    if right[0] > best[number]["dev"]:
                        best[number] = {"dev": right[0], "test": right[1], "step": step}
    return best


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser, layer=False)
    parser.add_argument("--data", required=True, help="a LibriSpeech tree, or any data set with a column `speaker`")
    parser.add_argument("--split", nargs="+", help="splits, or sub-folders of the tree; default: all")
    for option in OPTIONS:
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and test the heads, write `results.json` and `accuracy.png`, return the record."""
    began = time.time()
    recipe = {option.name: option.check(getattr(arguments, option.name)) for option in OPTIONS}
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(), owned=(PLOT,))
    splits = [load_speech(arguments.data, split) for split in arguments.split or [None]]
    if any("speaker" not in split.column_names for split in splits):
        raise LaserError(f"{arguments.data} does not say who speaks: no column `speaker`")
    ids, speakers = ([one for split in splits for one in split[name]] for name in ("id", "speaker"))
    audio = [(split, row) for split in splits for row in range(len(split))]
    roles = split_by_speaker(ids, speakers, recipe["per_speaker"])
    features, _ = chosen_features(arguments)
    folder.prepare(recipe, arguments.overwrite_output_dir)

    shortest, skipped = max(features.shortest / SAMPLE_RATE, recipe["seconds"] + 0.05), Counter()
    names = sorted({speakers[row] for row in roles[0]})
    data, counts = [], []
    for rows in roles:
        waveforms, labels = [], []
        for split, row, speaker in ((*audio[row], speakers[row]) for row in rows):
            try:
                waveforms.append(decode_audio(split[row]["audio"], min_seconds=shortest).waveform)
                labels.append(names.index(speaker))
            except BadAudio as error:
                skipped[error.kind] += 1
        if not waveforms:
            raise LaserError(f"no utterance of {ROLES[len(data)]} can be used: {dict(skipped)}")
        means = pooled(features, waveforms, recipe["seconds"])
        items = torch.tensor([label for label, one in zip(labels, means, strict=True) for _ in range(one.shape[1])])
        data.append((torch.cat(means, 1), items))
        counts.append({"utterances": len(waveforms), "stretches": len(items)})

    torch.manual_seed(arguments.seed)
    sizes = features.layers, features.dim, len(names)
    heads = [SpeakerHead(*sizes, layer) for layer in [None, *range(features.layers)]]
    how = {name: recipe[name] for name in ("max_steps", "eval_steps", "learning_rate")}
    weighted, *alone = train_heads(heads, data, **how, seed=arguments.seed)
    split = "+".join(arguments.split or ["all"])

    def entry(name: str, found: dict[str, float], role: str = "test", **more: Any) -> dict[str, Any]:
        return {
            "metric": name,
            "value": found[role],
            "unit": "percent",
            "split": split if role == "test" else role,
            **more,
        }

    metrics = [entry("accuracy", weighted), entry("last_layer_accuracy", alone[-1]), entry("accuracy", weighted, "dev")]
    metrics += [entry("layer_accuracy", found, layer=layer) for layer, found in enumerate(alone)]
    lines = {"each layer alone": dict(enumerate(found["test"] for found in alone))}
    lines["weighted sum of all"] = dict.fromkeys(range(features.layers), weighted["test"])
    plot_by_layer({"speaker identification, accuracy (%)": lines}, folder.path / PLOT, arguments.model)
    record = new_record(
        NAME,
        protocol="quick",
        model=features.describe(arguments.model),
        metrics=metrics,
        data={
            "source": str(arguments.data),
            "splits": arguments.split,
            "speakers": len(names),
            "skipped": dict(skipped),
        }
        | dict(zip(ROLES, counts, strict=True)),
        recipe=recipe,
        seed=arguments.seed,
        wall_seconds=time.time() - began,
        chance=100 / len(names),
        layer_weights=heads[0].weighted_sum.shares(),
        selected=[found["step"] for found in (weighted, *alone)],
    )
    folder.finish(record)
    print(f"accuracy {weighted['test']:.1f} % of {len(names)} speakers (last layer alone {alone[-1]['test']:.1f} %)")
    return record
