"""Transcribed speech of a CTC head: usable utterances, SUPERB's batches, and how updates are dealt to processes."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ...data import BadAudio, decode_audio
from ...encoders import SAMPLE_RATE
from ...errors import LaserError
from ..frame_store import FrameStore
from .targets import UnusableText
from .tasks import CtcTask

logger = logging.getLogger(__name__)

LISTED = 50
"""Skipped utterances, and unknown words, that a record lists by name; all of them are counted."""

Share = list[tuple[int, float]]
"""Utterances of one micro-batch on one process, each with its weight in the loss of the update."""


@dataclass
class Utterance:
    """An utterance of a data set: usable, with a target, or skipped for a reason.

    Attributes:
        id: name.
        row: in the data set.
        samples: length at 16 kHz.
        target: of CTC.
        reason: why it is skipped, as `kind: explanation`; empty if it is not.
        words: those without a pronunciation.
    """

    id: str
    row: int
    samples: int = 0
    target: Sequence[int] = ()
    reason: str = ""
    words: Sequence[str] = ()


@dataclass(eq=False)
class Split(torch.utils.data.Dataset):
    """Usable utterances of one split.

    Attributes:
        name: of the split.
        speech: data set with `id`, `audio` and `text`.
        utterances: the usable ones.
        skipped: the others.
        store: hidden states of all utterances; `None` if waveforms are to be encoded each time.
    """

    name: str
    speech: Any
    utterances: list[Utterance]
    skipped: list[Utterance]
    store: FrameStore | None = None

    @property
    def samples(self) -> list[int]:
        """Length of each utterance."""
        return [utterance.samples for utterance in self.utterances]

    def __len__(self) -> int:
        return len(self.utterances)

    def waveform(self, index: int) -> torch.Tensor:
        """Waveform of a usable utterance, `(samples,)`."""
        return decode_audio(self.speech[self.utterances[index].row]["audio"]).waveform

    def digest(self) -> str:
        """SHA-256 over ids and lengths: changes when the utterances do."""
        content = json.dumps([[utterance.id, utterance.samples] for utterance in self.utterances])
        return hashlib.sha256(content.encode()).hexdigest()

    def __getitem__(self, item: tuple[int, float]) -> dict[str, Any]:
        index, weight = item
        entry: dict[str, Any] = {"index": index, "weight": weight, "target": self.utterances[index].target}
        if self.store is not None:
            return entry | {"states": self.store[index]}
        return entry | {"waveform": self.waveform(index)}

    def counts(self) -> dict[str, Any]:
        """Utterances, hours and what was skipped, for a record."""
        words = Counter(word for entry in self.skipped for word in entry.words)
        skipped: dict[str, Any] = {
            "utterances": len(self.skipped),
            "by_kind": dict(sorted(Counter(entry.reason.partition(":")[0] for entry in self.skipped).items())),
            "listed": {entry.id: entry.reason for entry in self.skipped[:LISTED]},
        }
        if words:
            skipped |= {"unknown_words": len(words), "unknown_words_listed": dict(words.most_common(LISTED))}
        return {
            "split": self.name,
            "utterances": len(self),
            "hours": round(sum(self.samples) / SAMPLE_RATE / 3600, 4),
            "skipped": skipped,
        }


def read_split(
    speech: Any, name: str, task: CtcTask, *, shortest: int = 400, limit: int | None = None, progress: bool = True
) -> Split:
    """Decode every utterance of a split once and keep those that can be used.

    Args:
        speech: from `laser_hf.data.load_speech`.
        name: of the split.
        task: makes targets of transcripts.
        shortest: samples an utterance needs (one frame).
        limit: keep so many, spread evenly over the usable ones.
        progress: show a bar.

    Raises:
        LaserError: no transcripts at all, or no usable utterance.
    """
    if "text" not in speech.column_names:
        raise LaserError(
            f"split {name} has no transcripts. Expected a LibriSpeech tree with SPEAKER-CHAPTER.trans.txt files, or a "
            "data set with a column `text`"
        )
    ids, texts = list(speech["id"]), list(speech["text"])

    def look(row: int) -> Utterance:
        try:
            target = task.encode(texts[row] or "")
            waveform = decode_audio(speech[row]["audio"], min_seconds=shortest / SAMPLE_RATE).waveform
        except (UnusableText, BadAudio) as error:
            return Utterance(ids[row], row, reason=str(error), words=getattr(error, "words", ()))
        return Utterance(ids[row], row, len(waveform), target)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(look, range(len(speech)))
        found = list(tqdm(looks, total=len(speech), desc=f"reading {name}", disable=not progress, mininterval=1))
    usable = [utterance for utterance in found if not utterance.reason]
    split = Split(name, speech, usable, [utterance for utterance in found if utterance.reason])
    if split.skipped:
        counts = split.counts()["skipped"]
        words = ", ".join(list(counts.get("unknown_words_listed", ()))[:10])
        unknown = f"; {counts['unknown_words']} words without a pronunciation: {words}, ..." if words else ""
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts["by_kind"].items())
        logger.warning("%s: %d of %d utterances skipped (%s%s)", name, len(split.skipped), len(speech), kinds, unknown)
    if not usable:
        raise LaserError(
            f"split {name}: none of its {len(speech)} utterances can be used ({split.counts()['skipped']})"
        )
    if limit is not None and limit < len(usable):
        # Spread over the split: the first ones would be a few speakers.
        picks = torch.linspace(0, len(usable) - 1, limit).long().tolist()
        split = Split(name, speech, [usable[pick] for pick in picks], split.skipped)
    return split


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad entries of a `Split` to a batch.

    Returns:
        `waveforms` (batch, samples) with `lengths` in samples, or stored `states` (layers, batch, frames, dim) with
        `lengths` in frames; `targets` (batch, labels), `target_lengths` and `weights` (batch,), and a list `indices`.
        A share without utterances gives only an empty `indices`.
    """
    batch: dict[str, Any] = {"indices": [item["index"] for item in items]}
    if not items:
        return batch
    batch["targets"] = pad_sequence([torch.tensor(item["target"]) for item in items], True, 1)
    batch["target_lengths"] = torch.tensor([len(item["target"]) for item in items])
    batch["weights"] = torch.tensor([item["weight"] for item in items])
    if "states" in items[0]:
        batch["lengths"] = torch.tensor([item["states"].shape[1] for item in items])
        # (layers, frames, dim) -> (frames, layers, dim) and back: sequences are padded along their first dimension.
        padded = pad_sequence([item["states"].transpose(0, 1) for item in items])
        batch["states"] = padded.permute(2, 1, 0, 3).contiguous()
    else:
        batch["lengths"] = torch.tensor([len(item["waveform"]) for item in items])
        batch["waveforms"] = pad_sequence([item["waveform"] for item in items], True)
    return batch


def length_buckets(samples: Sequence[int], size: int, halve_above: int) -> list[list[int]]:
    """SUPERB's ASR batches: utterances by descending length in groups of `size`, halved when long.

    A full group whose longest utterance has more than `halve_above` samples becomes two. SUPERB compares with 2,000,
    an eighth of a second: every full group of 32 is two batches of 16. What is left at the end stays one group,
    however long; a single utterance is dropped. Equally long ones keep their order.

    Returns:
        Indices into `samples`.
    """
    order = sorted(range(len(samples)), key=lambda index: -samples[index])
    groups = []
    for start in range(0, len(order), size):
        group = order[start : start + size]
        if len(group) == size > 1 and samples[group[0]] > halve_above:
            groups += [group[: size // 2], group[size // 2 :]]
        elif len(group) == size or len(group) > 1:
            groups.append(group)
    return groups


def target_windows(labels: Sequence[int], samples: Sequence[int], size: int, halve_above: int) -> list[list[int]]:
    """SUPERB's PR batches: a window of `size` utterances slid over them by descending target length.

    There are as many windows as utterances; the last `size` are the same. A window whose first utterance has more than
    `halve_above` samples keeps its first half. Utterances of a window are in descending order of samples.

    Args:
        labels: labels of each target.
        samples: samples of each utterance.
        size, halve_above: SUPERB has 16 and 300,000 (18.75 s).

    Returns:
        Indices into `labels`.
    """
    order = sorted(range(len(labels)), key=lambda index: -labels[index])
    windows = []
    for position in range(len(order)):
        start = max(min(len(order) - size, position), 0)
        window = order[start : start + size]
        if samples[window[0]] > halve_above:
            window = window[: max(size // 2, 1)]
        windows.append(sorted(window, key=lambda index: -samples[index]))
    return windows


class UpdateSampler(torch.utils.data.Sampler[Share]):
    """Shares of one process in all updates of a run.

    A *group* is what SUPERB calls a batch. An update is one group (ASR) or two (PR); its loss is the mean over its
    groups of the mean over the utterances of a group, however groups are split into micro-batches and processes. The
    groups are shuffled in each round, from (seed, round). Updates run on over the ends of rounds, as gradient
    accumulation does in S3PRL. To the Trainer the run is one long epoch.

    Args:
        groups: utterances of each group.
        updates: of the run.
        groups_per_update: gradient accumulation of the recipe.
        micro_batch_size: utterances a process holds at once; `None` for whole groups.
        world_size, rank: number of processes, and which of them this is.
        seed: of the order.

    Attributes:
        micro_batches: of a process in one update: the Trainer's `gradient_accumulation_steps`.

    Raises:
        LaserError: no groups.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        updates: int,
        groups_per_update: int = 1,
        micro_batch_size: int | None = None,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        if not groups:
            raise LaserError("there is no batch to train on: at least two usable utterances are needed")
        self.groups = groups
        self.updates = updates
        self.groups_per_update = groups_per_update
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        largest = max(map(len, groups))
        self.splits = math.ceil(largest / (world_size * micro_batch_size)) if micro_batch_size else 1
        self.micro_batches = groups_per_update * self.splits

    def __len__(self) -> int:
        return self.updates * self.micro_batches

    def __iter__(self) -> Iterator[Share]:
        shares = self.splits * self.world_size
        for number in range(self.updates * self.groups_per_update):
            round_number, position = divmod(number, len(self.groups))
            if position == 0:
                sequence = np.random.SeedSequence([self.seed, round_number])
                order = np.random.default_rng(sequence).permutation(len(self.groups)).tolist()
            group = self.groups[order[position]]
            weight = 1 / (len(group) * self.groups_per_update)
            for split in range(self.splits):
                yield [(index, weight) for index in group[split * self.world_size + self.rank :: shares]]
