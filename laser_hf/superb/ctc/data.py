"""Transcribed speech of a CTC head: usable utterances, and how updates are dealt to processes."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ...data import BadAudio, decode_audio
from ...encoders import SAMPLE_RATE
from ...errors import LaserError
from ..frame_store import FrameStore
from .task import LISTED, CtcTask, UnusableText

logger = logging.getLogger(__name__)


@dataclass
class Utterance:
    """An utterance in a `row` of a data set: usable, with a target, or skipped for a reason."""

    id: str
    row: int
    samples: int = 0  # at 16 kHz
    sha256: str = ""  # of them
    units: Sequence[str] = ()  # of the transcript, also those without a label
    target: Sequence[int] = ()
    reason: str = ""  # why it is skipped, as `kind: explanation`
    words: Sequence[str] = ()  # those without a pronunciation


@dataclass(eq=False)
class Split(torch.utils.data.Dataset):
    """Usable utterances of one split, by (index, weight in the update's loss)."""

    name: str
    speech: Any  # data set with `id`, `audio` and `text`
    utterances: list[Utterance]
    skipped: list[Utterance]
    usable: int  # of the whole split, of which `utterances` may be a part
    unknown: Counter[str] = field(default_factory=Counter)  # units without a label
    store: FrameStore | None = None  # hidden states; without it, waveforms are encoded each time

    @property
    def samples(self) -> list[int]:
        """Length of each utterance."""
        return [utterance.samples for utterance in self.utterances]

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def folder_name(self) -> str:
        """Name of the folder of its decoded files."""
        return re.sub(r"[^\w.-]+", "_", self.name)

    def waveform(self, index: int) -> torch.Tensor:
        """Waveform of a usable utterance, `(samples,)`."""
        return decode_audio(self.speech[self.utterances[index].row]["audio"]).waveform

    def digest(self) -> str:
        """Changes when ids, samples or targets of the utterances do."""
        content = json.dumps([[one.id, one.sha256, one.target] for one in self.utterances])
        return sha256(content.encode()).hexdigest()[:16]

    def __getitem__(self, item: tuple[int, float]) -> dict[str, Any]:
        index, weight = item
        frames = {"waveform": self.waveform(index)} if self.store is None else {"states": self.store[index]}
        return {"index": index, "weight": weight, "target": torch.tensor(self.utterances[index].target), **frames}

    def counts(self) -> dict[str, Any]:
        """Utterances, hours and what was skipped, for a record."""
        count, words = len(self.skipped), Counter(word for entry in self.skipped for word in entry.words)
        skipped: dict[str, Any] = {
            "utterances": count,
            "share": round(count / max(count + self.usable, 1), 4),
            "by_kind": dict(sorted(Counter(entry.reason.partition(":")[0] for entry in self.skipped).items())),
            "listed": {entry.id: entry.reason for entry in self.skipped[:LISTED]},
        }
        if words:
            skipped |= {"unknown_words": len(words), "unknown_words_listed": dict(words.most_common(LISTED))}
        hours = round(sum(self.samples) / SAMPLE_RATE / 3600, 4)
        unknown = {"count": self.unknown.total(), "listed": dict(self.unknown.most_common(LISTED))}
        found = {"split": self.name, "utterances": len(self), "hours": hours, "skipped": skipped}
        return found | ({"unknown_units": unknown} if self.unknown else {})


def look(audio: Any, shortest: int, known: dict[str, Any]) -> tuple[int, str, str]:
    """Samples of a recording, digest of its waveform, and what is wrong with it if it cannot be used.

    `known` holds what decoding found before, by the digest of the file's bytes.
    """
    data, path = audio.get("bytes"), audio.get("path")
    with contextlib.suppress(OSError, TypeError):  # decoding says what is wrong
        data = Path(path).read_bytes() if data is None else data
    key = None if data is None else f"{sha256(data).hexdigest()} {shortest}"
    if key in known:
        return tuple(known[key])
    try:
        waveform = decode_audio(audio, min_seconds=shortest / SAMPLE_RATE).waveform
        found = len(waveform), sha256(waveform.numpy()).hexdigest(), ""
    except BadAudio as error:
        found = 0, "", str(error)
    return known.setdefault(key, found) if key else found


def read_split(
    speech: Any, name: str, task: CtcTask, known: dict, shortest: int = 400, limit: int | None = None, bar: bool = True
) -> Split:
    """Decode every utterance of a split, from `laser_hf.data.load_speech`, once and keep those that can be used.

    An utterance needs `shortest` samples (one frame). `limit` keeps so many, spread evenly over the usable ones. What
    is `known` is not decoded again: see `look`. `LaserError` for no transcripts at all, no usable utterance, or if half
    of the text has no label.
    """
    if "text" not in speech.column_names:
        raise LaserError(f"split {name} has no transcripts: no SPEAKER-CHAPTER.trans.txt files, or no column `text`")
    ids, texts = list(speech["id"]), [text or "" for text in speech["text"]]

    def read(row: int) -> Utterance:
        try:
            units, target = task.units(texts[row]), task.encode(texts[row])
        except UnusableText as error:
            return Utterance(ids[row], row, reason=str(error), words=error.words)
        samples, digest, reason = look(speech[row]["audio"], shortest, known)
        return Utterance(ids[row], row, samples, digest, units, target, reason)

    shown = {"total": len(ids), "desc": f"reading {name}", "disable": not bar or None, "mininterval": 1}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(read, range(len(ids))), **shown))
    usable = [utterance for utterance in found if not utterance.reason]
    split = Split(name, speech, usable, [utterance for utterance in found if utterance.reason], len(usable))
    skipped = split.counts()["skipped"]
    if not usable:
        raise LaserError(f"split {name}: none of its {len(found)} utterances can be used ({skipped})")
    if split.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped["by_kind"].items())
        if words := list(skipped.get("unknown_words_listed", ())):
            kinds += f"; {skipped['unknown_words']} words without a pronunciation: {', '.join(words[:10])}, ..."
        logger.warning("%s: %d of %d utterances skipped (%s)", name, len(split.skipped), len(found), kinds)
    if limit is not None and limit < len(usable):  # the first ones would be a few speakers
        split.utterances = [usable[pick] for pick in torch.linspace(0, len(usable) - 1, limit).long().tolist()]
    split.unknown = Counter(unit for one in split.utterances for unit in one.units if unit not in task.LABELS)
    if split.unknown:
        share = split.unknown.total() / sum(len(one.units) for one in split.utterances)
        listed = " ".join(unit for unit, _ in split.unknown.most_common(20))
        what = f"split {name}: {share:.1%} of its text has no label in {task.NAME}: {listed}"
        if share >= 0.5:
            raise LaserError(f"{what}. Known are {' '.join(label for label in task.LABELS if label[0] != '<')}")
        logger.warning("%s. Each counts as an error", what)
    return split


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad entries of a `Split` to a batch.

    It has `waveforms` (batch, samples) with `lengths` in samples, or stored `states` (layers, batch, frames, dim) with
    `lengths` in frames; `targets` (batch, labels), `target_lengths` and `weights` (batch,), and a list `indices`. A
    share without utterances gives only an empty `indices`.
    """
    batch: dict[str, Any] = {"indices": [item["index"] for item in items]}
    if not items:
        return batch
    batch["targets"] = pad_sequence([item["target"] for item in items], True, 1)
    batch["target_lengths"] = torch.tensor([len(item["target"]) for item in items])
    batch["weights"], stored = torch.tensor([item["weight"] for item in items]), "states" in items[0]
    # Sequences are padded along their first dimension; that of states is the layer.
    frames = [item["states"].transpose(0, 1) if stored else item["waveform"] for item in items]
    batch["lengths"], padded = torch.tensor([len(one) for one in frames]), pad_sequence(frames, True)
    return batch | ({"states": padded.permute(2, 0, 1, 3).contiguous()} if stored else {"waveforms": padded})


@dataclass(eq=False)
class UpdateSampler(torch.utils.data.Sampler[list[tuple[int, float]]]):
    """Shares of one process in all updates of a run: micro-batches of (utterance, its weight in the update's loss).

    A *group* is what SUPERB calls a batch. An update is one group (ASR) or two (PR); its loss is the mean over its
    groups of the mean over the utterances of a group, however groups are split into micro-batches and processes. The
    groups are shuffled in each round, from (seed, round). Updates run on over the ends of rounds, as gradient
    accumulation does in S3PRL. To the Trainer the run is one long epoch.

    `micro_batches` is how many a process has in one update: the Trainer's `gradient_accumulation_steps`.
    """

    groups: Sequence[Sequence[int]]  # utterances of each; `LaserError` for none
    updates: int
    groups_per_update: int = 1  # gradient accumulation of the recipe
    micro_batch_size: int | None = None  # utterances a process holds at once; whole groups by default
    world_size: int = 1  # processes
    rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.groups:
            raise LaserError("there is no batch to train on: at least two usable utterances are needed")
        largest = max(map(len, self.groups))
        self.splits = math.ceil(largest / (self.world_size * (self.micro_batch_size or largest)))
        self.micro_batches = self.groups_per_update * self.splits

    def __len__(self) -> int:
        return self.updates * self.micro_batches

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        shares = self.splits * self.world_size
        for number in range(self.updates * self.groups_per_update):
            round_number, position = divmod(number, len(self.groups))
            if position == 0:
                order = np.random.default_rng([self.seed, round_number]).permutation(len(self.groups)).tolist()
            group = self.groups[order[position]]
            weight = 1 / (len(group) * self.groups_per_update)
            for split in range(self.splits):
                yield [(index, weight) for index in group[split * self.world_size + self.rank :: shares]]
