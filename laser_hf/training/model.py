"""The module that is trained: an encoder, the projection that the loss is computed on, and SCORE's frozen twin."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from ..encoders import SAMPLE_RATE, SpeechEncoder
from ..objectives import Objective, ProjectionHead
from .batches import Batch, stack_views


class AlignmentModel(nn.Module):
    """Encoder and projection head; both views of all pairs go through one forward call.

    The Trainer sets `objective`, the loss. `twin` is the frozen encoder of the second views, if there is one.
    """

    objective: Objective

    def __init__(self, encoder: SpeechEncoder, projection_dim: int = 256, projection_layers: int = 1):
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(encoder.hidden_size, projection_dim, projection_layers)
        self.twin: SpeechEncoder | None = None
        self._twin_dropout = True

    def add_twin(self, dropout: bool = True) -> None:
        """Encode second views by a frozen copy of the encoder as it is now (SCORE), in training with `dropout`."""
        # Hidden from nn.Module: no parameters, no state_dict entries.
        self.__dict__["twin"] = copy.deepcopy(self.encoder).requires_grad_(False)
        self._twin_dropout = dropout
        self.train(self.training)

    def _apply(self, fn, recurse=True):
        if self.twin is not None:
            self.twin._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> AlignmentModel:
        """As `nn.Module.train`; the twin follows if it has dropout."""
        if self.twin is not None:
            self.twin.train(mode and self._twin_dropout)
        return super().train(mode)

    def activation_checkpointing_enable(self, **how: Any) -> None:
        """Compute the encoder's activations again in the backward pass; `how` as for transformers' models."""
        for name in how.keys() & {"activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"}:
            # Behind frozen layers the re-entrant kind gives no gradient.
            how[name] = {**(how[name] or {}), "use_reentrant": False}
        model = self.encoder.model
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(**how)

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name in transformers before 5.24

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | Sequence[int]) -> dict[str, torch.Tensor]:
        """Encode and project zero-padded waveforms `(batch, samples)`; a twin encodes the second half of the batch.

        `lengths` are samples in use, `(batch,)`; a list or a CPU tensor avoids a host sync. Returns `projected`, unit
        vectors `(batch, frames, projection_dim)`, `frames` without graph `(batch, frames, dim)`, and their `lengths`.
        """
        lengths = torch.as_tensor(lengths)
        if self.twin is None:
            output = self.encoder(waveforms, lengths)
            frames, frame_lengths = output.frames, output.lengths
        else:
            half = len(waveforms) // 2
            own = self.encoder(waveforms[:half], lengths[:half])
            with torch.no_grad():
                other = self.twin(waveforms[half:], lengths[half:])
            both = own.frames, other.frames
            longest = max(part.shape[1] for part in both)
            frames = torch.cat([nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in both])
            frame_lengths = torch.cat((own.lengths, other.lengths))
        return {"projected": self.head(frames), "frames": frames.detach(), "lengths": frame_lengths}

    def frames_of(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames of utterances of `lengths` samples, `(batch,)`."""
        return self.encoder.frame_lengths(lengths)

    def compile_layers(self, backend: str, mode: str | None = None) -> None:
        """`torch.compile` each Transformer layer in place, for batches and frames of any size.

        The layers share their code, which is compiled a few times (trained or frozen, with and without padding). The
        convolutions are not compiled. Names of parameters do not change. On the CPU "inductor" needs a C++ compiler.
        """
        for layer in self.encoder.model.encoder.layers:
            layer.compile(backend=backend, mode=mode, dynamic=True)


def pair_terms(
    model: nn.Module, core: AlignmentModel, batch: Batch, swap: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]:
    """The objective's terms of a micro-batch of `pad_pairs`, which may hold no pair; its lengths are on the CPU.

    `model` is `core`, which holds encoder and objective, or what wraps it to exchange gradients; for `swap` see
    `stack_views`. Returns terms, each `(pairs,)`; projected frames of the first views, `(pairs, frames, dim)`; and the
    frames in use of all first and then of all second views.
    """
    if count := len(batch["ids"]):
        waveforms, lengths = stack_views(batch, swap)
    else:  # others wait for this process's gradients, and for its part of a loss that all compute together
        lengths = torch.full((2,), SAMPLE_RATE // 10)
        waveforms = torch.zeros(2, SAMPLE_RATE // 10, device=next(core.parameters()).device)
    about = "" if torch.is_grad_enabled() else "held-out "
    with record_function(f"{about}encode"):
        # As plain numbers: DDP would move a tensor to the device, where reading it is a host sync.
        projected = model(waveforms, lengths.tolist())["projected"]
    frames = core.frames_of(lengths)
    (x, y), (m, n) = projected.chunk(2), frames.chunk(2)  # the loss checks lengths on the CPU
    views = x[:count, : int(m.max())], m[:count], y[:count, : int(n.max())], n[:count]
    with record_function(f"{about}loss"):
        terms = core.objective(*views)
    if not count:
        anchor = 0.0 * projected.sum() + sum(0.0 * p.sum() for p in core.objective.parameters())
        terms = {name: value + anchor for name, value in terms.items()}
    return terms, x[:count], frames.tolist()
