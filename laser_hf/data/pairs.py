"""From an utterance to the two views a correspondence objective compares, while the data is being read."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import torch

from .columns import Speech
from .decode import BadAudio, Decoded, check_finite, decode_audio
from .perturbation import Perturbation, draw_generator

COLUMNS = ("id", "clean", "perturbed", "drawn", "skip", "seconds")
"""Columns of a pair."""


class PairTransform:
    """Decodes utterances and perturbs them: a batch of columns in, a batch of columns out.

    To be set on a dataset by :func:`with_pairs`. What a pair looks like depends on ``seed``, the epoch and
    the utterance's id alone. The epoch lies in shared memory, so that :meth:`set_epoch` called in the main
    process reaches dataloader workers that are already running; call it before the epoch's first batch is
    asked for.

    Args:
        perturbation: makes the second view.
        seed: of the draws.
        sample_rate: of both views, Hz.
        min_seconds: shorter utterances are skipped.
        max_seconds: longer ones are skipped; None, as in the paper, for whole utterances of any length.
        decode: what decodes: :func:`laser_hf.data.decode.decode_audio`, or a :class:`laser_hf.data.DecodedCache`.
        perturb: False leaves the second view to whoever gets the pairs (``Perturbation.apply_batch`` on the
            device that trains): ``perturbed`` is None, and ``drawn`` says what is to be done. The draws
            are the same.
        crop_seconds: of longer utterances a part of this length is taken, at a place drawn anew each epoch, and
            both views are made from it; None for whole utterances. The perturbation's draws are the same.

    Raises:
        ValueError: the perturbation works at another rate, or the limits contradict each other.
    """

    def __init__(
        self,
        perturbation: Perturbation,
        seed: int = 0,
        sample_rate: int = 16000,
        min_seconds: float = 0.1,
        max_seconds: float | None = None,
        decode: Callable[..., Decoded] = decode_audio,
        perturb: bool = True,
        crop_seconds: float | None = None,
    ) -> None:
        if perturbation.sample_rate not in (None, sample_rate):
            raise ValueError(
                f"the perturbation works at {perturbation.sample_rate} Hz, the pairs are asked for at {sample_rate} Hz"
            )
        if max_seconds is not None and max_seconds < min_seconds:
            raise ValueError(f"max_seconds {max_seconds} is below min_seconds {min_seconds}")
        if crop_seconds is not None and not max(min_seconds, 1 / sample_rate) <= crop_seconds < float("inf"):
            raise ValueError(
                f"crop_seconds must be positive and at least min_seconds ({min_seconds}), got {crop_seconds}; "
                "None for whole utterances"
            )
        self.perturbation = perturbation
        self.seed = seed
        self.sample_rate = sample_rate
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.decode = decode
        self.perturb = perturb
        self.crop_seconds = crop_seconds
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch the next draws belong to, 0-based."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, here and in all running workers."""
        self._epoch.fill_(epoch)

    def at_epoch(self, epoch: int) -> PairTransform:
        """The same transform with an epoch of its own that nothing else can change."""
        fixed = copy.copy(self)
        fixed._epoch = torch.tensor(epoch)
        return fixed

    def __deepcopy__(self, memo: dict[int, Any]) -> PairTransform:
        # datasets copies itself deeply here and there; a copy of the counter would no longer be shared.
        return self

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """``{"id": [...], "audio": [...]}`` to the columns of :meth:`pair`."""
        pairs = [self.pair(utterance, audio) for utterance, audio in zip(batch["id"], batch["audio"], strict=True)]
        return {column: [pair[column] for pair in pairs] for column in COLUMNS}

    def pair(self, utterance_id: str, audio: Any) -> dict[str, Any]:
        """Both views of one utterance.

        Args:
            utterance_id: names the utterance in the draws and in the log.
            audio: as :func:`laser_hf.data.decode.decode_audio` takes it.

        Returns:
            ``id``; ``clean`` and ``perturbed``, each ``(samples,)`` float32; ``drawn``, the parameters of the
            perturbation (such as ``speed`` and ``pitch``); ``skip``, empty. For audio that cannot be used the views are
            None, ``drawn`` is empty, and ``skip`` is ``"kind: reason"``. ``seconds``: what it took this
            process to ``decode`` and to ``perturb``.

        Raises:
            RuntimeError: the perturbation itself failed; the message names the utterance.
        """
        seconds = {"decode": 0.0, "perturb": 0.0}
        pair = {"id": utterance_id, "clean": None, "perturbed": None, "drawn": {}, "skip": "", "seconds": seconds}
        try:
            with _clocked(seconds, "decode"):
                clean = self.decode(
                    audio, self.sample_rate, min_seconds=self.min_seconds, max_seconds=self.max_seconds
                ).waveform
            clean = self._cropped(clean, utterance_id)
            drawn = self.perturbation.draw_for(draw_generator(self.seed, self.epoch, utterance_id), utterance_id)
            perturbed = None
            if self.perturb:
                with _clocked(seconds, "perturb"):
                    perturbed = self._perturbed(clean, drawn, utterance_id)
        except BadAudio as error:
            return pair | {"skip": str(error)}
        return pair | {"clean": clean, "perturbed": perturbed, "drawn": drawn}

    def _cropped(self, clean: torch.Tensor, utterance_id: str) -> torch.Tensor:
        spare = len(clean) - round(self.crop_seconds * self.sample_rate) if self.crop_seconds is not None else 0
        if spare <= 0:
            return clean
        start = int(draw_generator(self.seed, self.epoch, f"{utterance_id}\ncrop").integers(spare + 1))
        # A copy: a view would take the whole utterance along from the worker to the main process.
        return clean[start : start + len(clean) - spare].clone()

    def _perturbed(self, clean: torch.Tensor, drawn: Mapping[str, Any], utterance_id: str) -> torch.Tensor:
        try:
            perturbed = self.perturbation.apply(clean, **drawn)
        except Exception as error:
            raise RuntimeError(f"perturbing {utterance_id!r} with {drawn} failed: {error}") from error
        check_finite(perturbed, f"perturbed view {drawn}")
        return perturbed


@contextmanager
def _clocked(seconds: dict[str, float], part: str):
    """Add the time of a block to ``seconds[part]``, also when it raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] += time.perf_counter() - start


class _PairOfExample:
    """The transform for one example of a stream."""

    def __init__(self, transform: PairTransform) -> None:
        self.transform = transform

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return self.transform.pair(example["id"], example["audio"])


def with_pairs(dataset: Speech, transform: PairTransform) -> Speech:
    """The dataset with its utterances turned into pairs when they are read; nothing is stored.

    Map-style datasets get ``set_transform``; streams, which have none, a lazy ``map`` of which no result is
    encoded to Arrow. Both give the same items, see :meth:`PairTransform.pair`. Shuffle and split a stream
    before, so that its buffer holds compressed audio.

    Args:
        dataset: as :func:`laser_hf.data.speech.load_speech` returns it; left as it is.
        transform: keep it, to call ``transform.set_epoch``.

    Returns:
        A dataset of items with the keys :data:`COLUMNS`. For the Trainer, set
        ``remove_unused_columns=False``.
    """
    if isinstance(dataset, datasets.IterableDataset):
        columns = list(dataset.features) if dataset.features is not None else list(next(iter(dataset), {}))
        return dataset.map(_PairOfExample(transform), remove_columns=columns)
    return dataset.with_transform(transform)
