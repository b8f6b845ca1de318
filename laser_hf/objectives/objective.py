"""What training objectives share: the base class, and the projection head that they are computed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from ..ops.soft_dtw.api import check_frames, check_lengths
from ..plugins import Plugin


class Objective(Plugin, nn.Module):
    """A loss of a ragged batch of pairs of views, computed on projected frames.

    A method derives from it, fills in class attributes (also those of `Plugin`) and writes `terms`. One with weights of
    its own, such as Spin, makes them in `__init__` and overrides `build` to learn the dimension of the frames.

    Examples:
        >>> # my_losses.py, for `--objective my_losses:Huber --objective_options delta=0.5`
        >>> class Huber(Objective):
        ...     name, title, summary = "huber", "Huber", "Each frame is pulled towards the other view's frame."
        ...     options = (Option("delta", 1.0, "where the square ends", above=0),)
        ...     equal_lengths = True
        ...     def terms(self, x, m, y, n):
        ...         used = frames_in_use(m, x.shape[1]).unsqueeze(2)
        ...         error = torch.nn.functional.huber_loss(x * used, y * used, reduction="none", delta=self.delta)
        ...         return {"total": error.sum(dim=(1, 2))}

    Attributes:
        term_labels: name of each loss term and its label in plots; the first, "total", is differentiated.
        short_labels: what the lines of a training's log call them; by default their names.
        term_names: names of the terms, in order; follows from `term_labels`.
        unit: what the loss of an update is a mean of: "pairs", or "frames" (terms are sums over the frames of a pair).
        needs_twin: the second frames come from a frozen copy of the encoder with its initial weights.
        equal_lengths: the two views of a pair must have equally many frames.
        anti_collapse: option to raise when the frames become alike, such as "--alpha"; empty if there is none.
    """

    term_labels: ClassVar[Mapping[str, str]] = {"total": "total loss"}
    short_labels: ClassVar[Mapping[str, str]] = {}
    term_names: ClassVar[tuple[str, ...]] = ("total",)
    unit: ClassVar[str] = "pairs"
    needs_twin: ClassVar[bool] = False
    equal_lengths: ClassVar[bool] = False
    anti_collapse: ClassVar[str] = ""
    needs = (("terms",),)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.term_names = tuple(cls.term_labels)
        if cls.term_names[:1] != ("total",) or cls.unit not in ("pairs", "frames"):
            raise TypeError(f"{cls.__name__}: term_labels must begin with 'total', and unit be 'pairs' or 'frames'")

    def __init__(self, **options: Any):
        """Check `options` (by name; those left out get their defaults) and keep each as an attribute.

        Raises:
            LaserError: an option that the class does not have, or a value out of its range.
        """
        super().__init__()
        for name, value in self.checked(options).items():
            setattr(self, name, value)

    @classmethod
    def build(cls, dim: int, **values: Any) -> Objective:
        """An objective on frames of `dim` dimensions, from option values by `Option.dest`; raises as `__init__`."""
        return cls(**cls.checked(values))

    @classmethod
    def log_labels(cls) -> dict[str, str]:
        """What the log calls the terms, by their names there: `total` is `loss`."""
        names = ("loss" if name == "total" else name for name in cls.term_names)
        return {name: cls.short_labels.get(name, name.replace("_", " ")) for name in names}

    def prepare_update(self) -> None:
        """Do what must happen before the first forward call of each optimiser update; by default nothing."""

    def forward(
        self, x: torch.Tensor, lengths_x: torch.Tensor | None, y: torch.Tensor, lengths_y: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Loss terms of each pair, in float32 whatever autocast says (float64 stays float64).

        Args:
            x: projected unit-norm frames of the clean views, `(batch, m, dim)`; the batch may be empty. With a twin:
                frames of the trained encoder.
            y: frames of the perturbed views, `(batch, n, dim)`. With a twin: frames of the twin.
            lengths_x, lengths_y: frames in use, `(batch,)`, at least 1; `None` for all. They are checked if they are on
                the CPU, where that needs no host sync.

        Returns:
            A tensor `(batch,)` under each of `term_names`. Padding changes neither a value nor a gradient.

        Raises:
            ValueError: wrong shapes, lengths out of range, or views of unequal length where they must be equal.
        """
        with torch.autocast(device_type=x.device.type, enabled=False):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            x, y = x.to(dtype), y.to(dtype)
            check_frames(x, y)
            m = check_lengths(lengths_x, len(x), x.shape[1], x.device, "lengths_x")
            n = check_lengths(lengths_y, len(y), y.shape[1], y.device, "lengths_y")
            if self.equal_lengths:
                self._check_equal_lengths(x, lengths_x, y, lengths_y)
            terms = self.terms(x, m, y, n)
        shapes = {name: tuple(value.shape) for name, value in terms.items()}
        expected = dict.fromkeys(self.term_names, (len(x),))
        if shapes != expected:
            raise ValueError(f"{type(self).__name__}.terms must return terms of shapes {expected}, got {shapes}")
        return terms

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss terms of each pair; the part that a method writes.

        Args:
            x, y: frames `(batch, frames, dim)` of the two views, both float32 or both float64, autocast off.
            m, n: frames in use, `(batch,)` int64, on the same device; what lies behind them must have no effect.
        """
        raise NotImplementedError(f"{type(self).__name__} must define terms(x, m, y, n)")

    def _check_equal_lengths(self, x, lengths_x, y, lengths_y) -> None:
        m, n = (
            torch.full((len(view),), view.shape[1]) if lengths is None else torch.as_tensor(lengths)
            for view, lengths in ((x, lengths_x), (y, lengths_y))
        )
        seen = m.device.type == n.device.type == "cpu"  # reading them elsewhere is a host sync
        if x.shape[1] != y.shape[1] or (seen and not torch.equal(m, n)):
            given = f"{m.tolist()} of {x.shape[1]} and {n.tolist()} of {y.shape[1]}"
            needs = f"{self.title or type(self).__name__} needs perturbations that keep the duration"
            raise ValueError(f"the two views must have equally many frames, got {given}; {needs}")

    def extra_repr(self) -> str:
        return ", ".join(f"{option.name}={getattr(self, option.name)!r}" for option in self.options)


class ProjectionHead(nn.Module):
    """Projection of every frame, then L2 normalisation, shared by the two views and thrown away after training.

    LASER, Sec. 2.1 (768 -> 256).

    Args:
        input_dim: hidden size of the encoder.
        output_dim: dimension of the projected frames.
        layers: 1 for a linear map; 2 for linear, ReLU, linear, as SCORE has it for WavLM; else a `ValueError`.
    """

    def __init__(self, input_dim: int, output_dim: int = 256, layers: int = 1):
        super().__init__()
        if layers not in (1, 2):
            raise ValueError(f"layers must be 1 (linear) or 2 (linear, ReLU, linear), got {layers!r}")
        self.output_dim = output_dim
        self.projection = nn.Linear(input_dim, output_dim)
        if layers == 2:
            self.projection = nn.Sequential(self.projection, nn.ReLU(), nn.Linear(output_dim, output_dim))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames `(batch, frames, input_dim)` to unit vectors `(batch, frames, output_dim)`, always float32."""
        # The norm of a bf16 vector is off by up to 0.4 %; the loss must not see that.
        return nn.functional.normalize(self.projection(frames).float(), dim=-1)
