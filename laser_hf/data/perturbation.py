"""The perturbed view of an utterance: speed, then pitch (LASER, section 3; Meghanani & Hain 2024).

A perturbation is split in two so that what was done to an utterance can be logged and repeated:
``draw`` chooses the parameters and ``apply`` carries them out. :func:`draw_generator` makes the choice depend
on the seed, the epoch and the utterance alone.

New ones subclass :class:`Perturbation`, take a name with :func:`register_perturbation` and are then composed
by name: ``build_perturbation(["speed_pitch", {"name": "noise", ...}])``.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch

from .resampling import resample
from .stretch import MIN_SAMPLES, stretch


def speed(waveform: torch.Tensor, factor: float, sample_rate: int = 16000) -> torch.Tensor:
    """Play a waveform ``factor`` times as fast; its pitch moves with it.

    As ``torchaudio.transforms.SpeedPerturbation``: resampling from ``int(factor * sample_rate)`` to
    ``sample_rate``.

    Args:
        waveform: ``(..., samples)``, floating point.
        factor: above 1 shortens, below 1 lengthens; 1 gives the waveform back.
        sample_rate: Hz.

    Returns:
        ``(..., ceil(samples * sample_rate / int(factor * sample_rate)))``.

    Raises:
        ValueError: the factor is not a positive, finite number.
    """
    _check_speed(factor, sample_rate)
    return resample(waveform, int(factor * sample_rate), sample_rate)


def pitch_shift(waveform: torch.Tensor, sample_rate: int, n_steps: float) -> torch.Tensor:
    """Shift the pitch, keeping the length.

    The steps of ``torchaudio.transforms.PitchShift(sample_rate, n_steps)``: stretch by a phase vocoder
    (``n_fft`` 512, hop 128, Hann), resample from ``int(sample_rate * 2 ** (n_steps / 12))``, cut or zero-pad
    to the input length. Only the resampling differs, see :func:`laser_hf.data.resampling.resample`: it needs
    a table of at most 2 MB where torchaudio builds a kernel of up to 1.15 GB, and computes the filter's phase
    in float64 where torchaudio computes it in float32 (a difference below 5e-4 of full scale on speech).

    Args:
        waveform: ``(..., samples)``, floating point, at least 257 samples.
        sample_rate: Hz.
        n_steps: semitones, any real number; 0 gives the waveform back.

    Returns:
        ``(..., samples)``.

    Raises:
        ValueError: the waveform is shorter than 257 samples, or ``n_steps`` is not finite.
    """
    _check_pitch(n_steps)
    samples = waveform.shape[-1]
    if samples < MIN_SAMPLES:
        raise ValueError(f"pitch_shift needs at least {MIN_SAMPLES} samples, got {samples}")
    if n_steps == 0:
        return waveform.clone()
    rate = 2.0 ** (-float(n_steps) / 12)
    shifted = resample(stretch(waveform, rate), int(sample_rate / rate), sample_rate)[..., :samples]
    return torch.nn.functional.pad(shifted, (0, samples - shifted.shape[-1]))


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

    @abstractmethod
    def apply(self, waveform: torch.Tensor, **drawn: Any) -> torch.Tensor:
        """Perturb ``waveform (samples,)`` with these parameters; returns ``(other samples,)``."""

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


@register_perturbation("speed_pitch")
class SpeedPitch(Perturbation):
    """LASER's second view: ``pitch_shift(speed(x))``, both chosen uniformly, the pitch always shifted.

    Section 3 of the paper; lists as in the authors' recipe for HuBERT. Drawn: ``speed`` (factor) and
    ``pitch`` (semitones).

    Args:
        speed_factors: at least one positive factor; ``[1.0]`` for no change of speed.
        pitch_steps: at least one number of semitones; ``[0]`` for no change of pitch.
        sample_rate: Hz.

    Raises:
        ValueError: a list is empty, or holds anything but suitable numbers.
    """

    def __init__(
        self,
        speed_factors: Sequence[float] = (0.9, 1.0, 1.1),
        pitch_steps: Sequence[float] = (-2, 2),
        sample_rate: int = 16000,
    ) -> None:
        if isinstance(sample_rate, bool) or int(sample_rate) != sample_rate or sample_rate <= 0:
            raise ValueError(f"sample_rate must be a positive whole number of Hz, got {sample_rate!r}")
        self.sample_rate = int(sample_rate)
        self.speed_factors = _numbers("speed_factors", speed_factors, "[1.0]")
        self.pitch_steps = _numbers("pitch_steps", pitch_steps, "[0]")
        for factor in self.speed_factors:
            _check_speed(factor, self.sample_rate)
        for step in self.pitch_steps:
            _check_pitch(step)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """``{"speed": factor, "pitch": semitones}``; the speed is drawn first."""
        factor = self.speed_factors[int(rng.integers(len(self.speed_factors)))]
        return {"speed": factor, "pitch": self.pitch_steps[int(rng.integers(len(self.pitch_steps)))]}

    def apply(self, waveform: torch.Tensor, *, speed: float, pitch: float) -> torch.Tensor:
        """``(samples,)`` to ``(about samples / speed,)``."""
        return pitch_shift(_speed(waveform, speed, self.sample_rate), self.sample_rate, pitch)

    def __repr__(self) -> str:
        return f"SpeedPitch({list(self.speed_factors)}, {list(self.pitch_steps)}, {self.sample_rate})"


_speed = speed  # ``speed`` is an argument inside SpeedPitch.apply


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

    def apply(self, waveform: torch.Tensor, *, parts: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """``(samples,)`` to ``(other samples,)``."""
        for part, drawn in zip(self.parts, parts, strict=True):
            waveform = part.apply(waveform, **drawn)
        return waveform

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


def _numbers(name: str, values: Any, neutral: str) -> tuple[float, ...]:
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


def _check_speed(factor: float, sample_rate: int) -> None:
    if not (math.isfinite(factor) and int(factor * sample_rate) >= 1):
        raise ValueError(f"a speed factor must be positive and finite, got {factor!r}")


def _check_pitch(n_steps: float) -> None:
    if not math.isfinite(n_steps):
        raise ValueError(f"a pitch step must be a finite number of semitones, got {n_steps!r}")
