"""Transcribed speech of a probe: which utterances can be used, their lengths and targets, and padded batches."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ...data import BadAudio, decode_audio, load_speech
from ...encoders import SAMPLE_RATE
from .batches import Share
from .featurizer import FeatureCache

logger = logging.getLogger(__name__)

LISTED = 50
"""Skipped utterances (and unknown words) that a record lists by name; all of them are counted."""


class CorpusError(ValueError):
    """A split with nothing usable in it, or without transcripts; the message says how to mend it."""


class UnusableText(ValueError):
    """A transcript without a target. `kind` can be counted, `words` names the unknown ones."""

    def __init__(self, kind: str, reason: str, words: Sequence[str] = ()) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.words = list(words)


@dataclass
class Skips:
    """What was left out of a split, and why."""

    utterances: dict[str, str] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, utterance: str, reason: str, words: Sequence[str] = ()) -> None:
        """Note one utterance; `reason` is `kind: explanation`."""
        self.utterances[utterance] = reason
        self.words.update(words)

    def summary(self) -> dict[str, Any]:
        """Counts by kind, and the first names, for a record."""
        kinds = Counter(reason.partition(":")[0] for reason in self.utterances.values())
        summary: dict[str, Any] = {
            "utterances": len(self.utterances),
            "by_kind": dict(sorted(kinds.items())),
            "listed": dict(list(self.utterances.items())[:LISTED]),
        }
        if self.words:
            summary["unknown_words"] = len(self.words)
            summary["unknown_words_listed"] = dict(self.words.most_common(LISTED))
        return summary


@dataclass
class Utterance:
    """A usable utterance: `row` in its data set, length in samples at 16 kHz, CTC target."""

    id: str
    row: int
    samples: int
    target: list[int]


class Split(torch.utils.data.Dataset):
    """Usable utterances of one split, decoded or looked up when asked for.

    Args:
        name: of the split.
        speech: data set with `id`, `audio` and `text`.
        utterances: the usable ones.
        skips: the others.
    """

    def __init__(self, name: str, speech: Any, utterances: list[Utterance], skips: Skips):
        self.name = name
        self.speech = speech
        self.utterances = utterances
        self.skips = skips
        self.cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def samples(self) -> list[int]:
        """Length of each utterance."""
        return [utterance.samples for utterance in self.utterances]

    @property
    def labels(self) -> list[int]:
        """Length of each target."""
        return [len(utterance.target) for utterance in self.utterances]

    def waveform(self, index: int) -> torch.Tensor:
        """Waveform of a usable utterance, (samples,)."""
        return decode_audio(self.speech[self.utterances[index].row]["audio"]).waveform

    def digest(self) -> str:
        """SHA-256 over ids and lengths: changes when the utterances do."""
        content = json.dumps([[utterance.id, utterance.samples] for utterance in self.utterances])
        return hashlib.sha256(content.encode()).hexdigest()

    def __getitem__(self, item: tuple[int, float]) -> dict[str, Any]:
        index, weight = item
        entry: dict[str, Any] = {"index": index, "weight": weight, "target": self.utterances[index].target}
        if self.cache is not None:
            entry["states"] = self.cache[index]
        else:
            entry["waveform"] = self.waveform(index)
        return entry

    def counts(self) -> dict[str, Any]:
        """Utterances, hours and what was skipped, for a record."""
        return {
            "split": self.name,
            "utterances": len(self),
            "hours": round(sum(self.samples) / SAMPLE_RATE / 3600, 4),
            "skipped": self.skips.summary(),
        }


class Waveforms:
    """`waveforms[i]` of a split, decoded on demand."""

    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.split.waveform(index)


def read_split(
    source: str,
    split: str,
    encode: Callable[[str], list[int]],
    *,
    name: str | None = None,
    revision: str | None = None,
    audio_column: str = "audio",
    token: str | None = None,
    limit: int | None = None,
    shortest: int = 400,
    progress: bool = True,
) -> Split:
    """Open a split, decode every utterance once and keep those that can be used.

    Args:
        source, split, name, revision, audio_column, token: as for `laser_hf.data.load_speech`.
        encode: CTC target of a transcript; raises `UnusableText`.
        limit: keep so many, spread evenly over the usable ones.
        shortest: samples an utterance needs (one frame).
        progress: show a bar.

    Raises:
        CorpusError: no transcripts at all, or no usable utterance.
        SpeechSourceError: the source cannot be read.
    """
    speech = load_speech(source, split, name=name, audio_column=audio_column, revision=revision, token=token)
    if "text" not in speech.column_names:
        raise CorpusError(
            f"{source}, split {split}: no transcripts. Expected a LibriSpeech tree with "
            "SPEAKER-CHAPTER.trans.txt files, or a data set with a column `text`"
        )
    ids, texts = list(speech["id"]), list(speech["text"])
    utterances, skips = [], Skips()

    def look(row: int) -> Utterance | tuple[str, str, list[str]]:
        try:
            if texts[row] is None or not texts[row].strip():
                raise UnusableText("missing_transcript", "no words in it" if texts[row] is not None else "none found")
            target = encode(texts[row])
            waveform = decode_audio(speech[row]["audio"], min_seconds=shortest / SAMPLE_RATE).waveform
        except UnusableText as error:
            return ids[row], str(error), error.words
        except BadAudio as error:
            return ids[row], str(error), []
        return Utterance(ids[row], row, len(waveform), target)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(look, range(len(speech)))
        for result in tqdm(found, total=len(speech), desc=f"reading {split}", disable=not progress, mininterval=1):
            if isinstance(result, Utterance):
                utterances.append(result)
            else:
                skips.add(*result)
    for utterance, reason in skips.utterances.items():
        logger.debug("skipped utterance %s: %s", utterance, reason)
    if skips.utterances:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skips.summary()["by_kind"].items())
        logger.warning("%s: %d of %d utterances skipped (%s)", split, len(skips.utterances), len(speech), kinds)
        if skips.words:
            words = ", ".join(word for word, _ in skips.words.most_common(10))
            logger.warning("%s: %d different words without a pronunciation (%s, ...)", split, len(skips.words), words)
    if not utterances:
        raise CorpusError(
            f"{source}, split {split}: none of its {len(speech)} utterances can be used ({skips.summary()})"
        )
    if limit is not None and limit < len(utterances):
        # The first ones would be a few speakers.
        picks = torch.linspace(0, len(utterances) - 1, limit).long().tolist()
        utterances = [utterances[pick] for pick in picks]
    return Split(split, speech, utterances, skips)


def collate(items: Share | list[dict[str, Any]]) -> dict[str, Any]:
    """Pad entries of a `Split` to a batch.

    Returns:
        `waveforms` (batch, samples) with `lengths` in samples, or cached `states` (layers, batch, frames, dim) with
        `lengths` in frames; `targets` (batch, labels), `target_lengths` and `weights` (batch,), and a list `indices`.
        A share without utterances gives only an empty `indices`.
    """
    batch: dict[str, Any] = {"indices": [item["index"] for item in items]}
    if not items:
        return batch
    targets = [torch.tensor(item["target"]) for item in items]
    batch["targets"] = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=1)
    batch["target_lengths"] = torch.tensor([len(target) for target in targets])
    batch["weights"] = torch.tensor([item["weight"] for item in items])
    if "states" in items[0]:
        lengths = [item["states"].shape[1] for item in items]
        layers, _, dim = items[0]["states"].shape
        states = torch.zeros(layers, len(items), max(lengths), dim)
        for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
            states[:, row, :length] = item["states"]
        batch["states"] = states
    else:
        waveforms = [item["waveform"] for item in items]
        lengths = [len(waveform) for waveform in waveforms]
        batch["waveforms"] = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    batch["lengths"] = torch.tensor(lengths)
    return batch
