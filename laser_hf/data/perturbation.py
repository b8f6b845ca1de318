"""What a perturbation is, how several are composed, and where its random numbers come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..plugins import Plugin


def draw_generator(seed: int, epoch: int, utterance_id: str) -> np.random.Generator:
    """Random numbers of seed, epoch (0-based) and utterance alone, whatever the order, processes and resuming."""
    digest = hashlib.sha256(f"{int(seed)}\n{int(epoch)}\n{utterance_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


class Perturbation(Plugin, ABC):
    """Makes the perturbed view of an utterance at 16 kHz.

    `draw` chooses parameters and `apply` carries them out, so that they can be logged and repeated. A subclass
    describes itself as `Plugin` says; its constructor takes its `options`. It writes `apply` or `apply_batch`;
    `docs/extending.md` has an example.

    Attributes:
        keeps_duration: both views have the same number of samples.
        changes: what the views differ in, in words for a model card.
        robust: what an encoder trained with it is meant to be, such as `noise-robust`; empty if that says nothing.
        batched: `apply` also works on the device that trains.
    """

    keeps_duration: bool = False
    changes: tuple[str, ...] = ()
    robust: ClassVar[str] = ""
    batched: ClassVar[bool] = False
    needs = (("draw",), ("apply", "apply_batch"))

    def content(self) -> dict[str, str]:
        """Digests of files that options name, by `Option.dest`: a run is resumed only where they are the same."""
        return {}

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Choose the parameters: keyword arguments of `apply`, as JSON values."""

    def draw_for(self, rng: np.random.Generator, utterance_id: str) -> dict[str, Any]:
        """`draw` for an utterance. Override it if the draw depends on the speaker."""
        return self.draw(rng)

    def apply(self, waveform: torch.Tensor, **drawn: Any) -> torch.Tensor:
        """Perturb `waveform` `(samples,)`; returns `(other samples,)`. A `BadAudio` raised here skips the pair."""
        if type(self).apply_batch is Perturbation.apply_batch:
            raise NotImplementedError(f"{type(self).__name__} has neither apply nor apply_batch")
        return self.apply_batch([waveform], [drawn])[0]

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """`apply` for waveforms `(samples,)` of any lengths, with what was drawn for each."""
        return [self.apply(waveform, **one) for waveform, one in zip(waveforms, drawn, strict=True)]

    def describe(self, drawn: Mapping[str, Any]) -> str:
        """What was drawn, in words, such as `speed 1.1, +2 semitones`."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in drawn.items()) or self.name


class Compose(Perturbation):
    """Several perturbations, one after the other. Drawn: `parts`, what each of them drew."""

    name = "compose"

    def __init__(self, parts: Sequence[Perturbation]) -> None:
        self.parts = tuple(parts)
        self.keeps_duration = all(part.keeps_duration for part in self.parts)
        self.changes = tuple(dict.fromkeys(change for part in self.parts for change in part.changes))
        self.batched = all(part.batched for part in self.parts)

    def content(self) -> dict[str, str]:
        return {dest: digest for part in self.parts for dest, digest in part.content().items()}

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"parts": [part.draw(rng) for part in self.parts]}

    def draw_for(self, rng: np.random.Generator, utterance_id: str) -> dict[str, Any]:
        return {"parts": [part.draw_for(rng, utterance_id) for part in self.parts]}

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        for index, part in enumerate(self.parts):
            waveforms = part.apply_batch(waveforms, [one["parts"][index] for one in drawn])
        return waveforms

    def describe(self, drawn: Mapping[str, Any]) -> str:
        return ", ".join(part.describe(one) for part, one in zip(self.parts, drawn["parts"], strict=True))
