"""The perturbed view of an utterance: what every perturbation is, its random draws, and building one by name.

A perturbation is split in two so that what was done to an utterance can be logged and repeated:
``draw`` chooses the parameters and ``apply`` carries them out. :func:`draw_generator` makes the choice depend
on the seed, the epoch and the utterance alone. ``apply_batch`` does for a ragged batch, on whatever device it lies,
what ``apply`` does for one waveform.

New ones subclass :class:`Perturbation`, take a name with :func:`register_perturbation` and are then composed
by name: ``build_perturbation(["speed_pitch", {"name": "noise", ...}])``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch


def draw_generator(seed: int, epoch: int, utterance_id: str) -> np.random.Generator:
    """Random numbers that depend on seed, epoch and utterance alone.

    Neither the order of the utterances, nor the number of workers or nodes, nor a resumed run changes what
    is drawn. The three are hashed with SHA-256, which unlike Python's ``hash`` is the same in every process.

    Args:
        seed: of the run.
        epoch: 0-based.
        utterance_id: any text.
    """
    digest = hashlib.sha256(f"{int(seed)}\n{int(epoch)}\n{utterance_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


class Perturbation(ABC):
    """Makes the second view of an utterance. Called with a waveform and a random generator.

    Attributes:
        sample_rate: the rate it works at, Hz; None if it works at any.
    """

    sample_rate: int | None = None

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Choose the parameters: the keyword arguments of :meth:`apply`, plain numbers or text."""

    def draw_for(self, rng: np.random.Generator, utterance_id: str) -> dict[str, Any]:
        """:meth:`draw` for an utterance; to be overridden where the draw depends on whose voice it is."""
        return self.draw(rng)

    @abstractmethod
    def apply(self, waveform: torch.Tensor, **drawn: Any) -> torch.Tensor:
        """Perturb ``waveform (samples,)`` with these parameters; returns ``(other samples,)``."""

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """:meth:`apply` for a ragged batch: ``(samples,)`` each, on any device, with what was drawn for each.

        Raises:
            NotImplementedError: this perturbation has no batched form, see :attr:`batched`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no batched form: it can perturb in the data-loading workers only "
            "(--perturb_on worker). Give the class an apply_batch(waveforms, drawn) to perturb on the device."
        )

    @property
    def batched(self) -> bool:
        """Whether :meth:`apply_batch` is there."""
        return type(self).apply_batch is not Perturbation.apply_batch

    def __call__(self, waveform: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Draw and apply: ``(samples,)`` to ``(other samples,)``."""
        return self.apply(waveform, **self.draw(rng))


_REGISTRY: dict[str, type[Perturbation]] = {}
_Class = TypeVar("_Class", bound=type[Perturbation])


def register_perturbation(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make a :class:`Perturbation` known to :func:`build_perturbation` under ``name``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: _Class) -> _Class:
        if _REGISTRY.setdefault(name, cls) is not cls:
            raise ValueError(f"the perturbation name {name!r} is taken by {_REGISTRY[name].__name__}")
        return cls

    return register


class Compose(Perturbation):
    """Several perturbations, one after the other. Drawn: ``parts``, what each of them drew.

    Raises:
        ValueError: there is none, or they work at different rates.
    """

    def __init__(self, parts: Sequence[Perturbation]) -> None:
        if not parts:
            raise ValueError("Compose needs at least one perturbation")
        rates = {part.sample_rate for part in parts} - {None}
        if len(rates) > 1:
            raise ValueError(f"perturbations for different rates cannot be composed: {sorted(rates)} Hz")
        self.sample_rate = rates.pop() if rates else None
        self.parts = tuple(parts)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """``{"parts": [...]}``, in order."""
        return {"parts": [part.draw(rng) for part in self.parts]}

    def draw_for(self, rng: np.random.Generator, utterance_id: str) -> dict[str, Any]:
        """``{"parts": [...]}``, in order."""
        return {"parts": [part.draw_for(rng, utterance_id) for part in self.parts]}

    def apply(self, waveform: torch.Tensor, *, parts: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """``(samples,)`` to ``(other samples,)``."""
        for part, drawn in zip(self.parts, parts, strict=True):
            waveform = part.apply(waveform, **drawn)
        return waveform

    def apply_batch(self, waveforms: Sequence[torch.Tensor], drawn: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """``(samples,)`` to ``(other samples,)`` each.

        Raises:
            NotImplementedError: a part has no batched form.
        """
        waveforms = list(waveforms)
        for index, part in enumerate(self.parts):
            waveforms = part.apply_batch(waveforms, [one["parts"][index] for one in drawn])
        return waveforms

    @property
    def batched(self) -> bool:
        """Whether all parts have a batched form."""
        return all(part.batched for part in self.parts)

    def __repr__(self) -> str:
        return f"Compose({list(self.parts)})"


def build_perturbation(config: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> Perturbation:
    """Build a perturbation from what a JSON preset can hold.

    Args:
        config: a name (``"speed_pitch"``), a mapping with ``name`` and the arguments of that class, or a
            list of these to apply in order.

    Raises:
        ValueError: unknown name, missing ``name``, or arguments the class does not take.
    """
    if isinstance(config, Sequence) and not isinstance(config, str):
        return Compose([build_perturbation(part) for part in config])
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = options.pop("name", None)
    if name not in _REGISTRY:
        raise ValueError(f"unknown perturbation {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    try:
        return _REGISTRY[name](**options)
    except TypeError as error:
        raise ValueError(f"perturbation {name!r}: {error}") from error


def check_rate(sample_rate: Any) -> int:
    """A sample rate in Hz as an int, or a ValueError that says what is wrong with it."""
    if isinstance(sample_rate, bool) or int(sample_rate) != sample_rate or sample_rate <= 0:
        raise ValueError(f"sample_rate must be a positive whole number of Hz, got {sample_rate!r}")
    return int(sample_rate)


def check_numbers(name: str, values: Any, neutral: str) -> tuple[float, ...]:
    """A flat, non-empty tuple of numbers, or a ValueError that says what is wrong with ``values``."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise ValueError(f"{name} must be a list of numbers, got {values!r}")
    if len(values) == 0:
        raise ValueError(f"{name} is empty; give {neutral} for no change")
    for value in values:
        if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
            raise ValueError(f"{name} must be a flat list of numbers, got the nested list {values!r}; flatten it")
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} must hold numbers only, got {value!r} in {values!r}")
    return tuple(value if isinstance(value, int) else float(value) for value in values)
