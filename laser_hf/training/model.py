"""The module that is trained: an encoder, the projection that the loss is computed on, and SCORE's frozen twin."""

from __future__ import annotations

import torch
from torch import nn

from ..encoders import SpeechEncoder
from ..objectives import ProjectionHead


class AlignmentModel(nn.Module):
    """Encoder and projection head; both views of all pairs go through one forward call.

    Args:
        encoder: as loaded and frozen.
        projection_dim: dimension of the projected frames (256 in the paper).
        projection_layers: linear layers of the projection.
        twin: encoder of the second half of every batch, frozen here: SCORE's other side, with the initial weights of
            the encoder. It belongs neither to the parameters nor to the state that is saved.
        twin_dropout: whether it has dropout while the encoder trains, as in SCORE's released code.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        projection_dim: int = 256,
        projection_layers: int = 1,
        twin: SpeechEncoder | None = None,
        twin_dropout: bool = True,
    ):
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(encoder.hidden_size, projection_dim, projection_layers)
        # In a tuple, a module is none of this module's own.
        self._twin = () if twin is None else (twin.requires_grad_(False),)
        self.twin_dropout = twin_dropout

    @property
    def twin(self) -> SpeechEncoder | None:
        """The frozen encoder of the second views, if there is one."""
        return self._twin[0] if self._twin else None

    def _apply(self, fn, recurse=True):
        if self.twin is not None:
            self.twin._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> AlignmentModel:
        """As `nn.Module.train`; the twin follows if it is to have dropout."""
        if self.twin is not None:
            self.twin.train(mode and self.twin_dropout)
        return super().train(mode)

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | list[int]) -> dict[str, torch.Tensor]:
        """Waveforms `(batch, samples)` and their lengths in samples, `(batch,)`.

        Lengths on the CPU, or as a list, spare a CUDA device the waiting for their values. With a twin, it encodes the
        second half of the batch.

        Returns:
            `projected` `(batch, frames, projection_dim)` with unit norm, `frames` `(batch, frames, dim)`
            without graph, and `lengths` in frames, `(batch,)`, on the device of the waveforms.
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
            longest = max(own.frames.shape[1], other.frames.shape[1])
            frames = torch.cat(
                [nn.functional.pad(f, (0, 0, 0, longest - f.shape[1])) for f in (own.frames, other.frames)]
            )
            frame_lengths = torch.cat((own.lengths, other.lengths))
        return {"projected": self.head(frames), "frames": frames.detach(), "lengths": frame_lengths}

    def compile_layers(self, backend: str, mode: str | None = None) -> None:
        """`torch.compile` each Transformer layer in place, for batches and frames of any size.

        The layers share their code, so that it is compiled a few times (trained or frozen, with and without padding)
        and not once per layer or length; lengths are symbols in it from the start. What depends on each
        utterance's length (the convolutions and their exact normalisation) stays as it is. Names of parameters do
        not change.

        Args:
            backend, mode: as for `torch.compile`; on the CPU "inductor" needs a C++ compiler.
        """
        for layer in self.encoder.model.encoder.layers:
            layer.compile(backend=backend, mode=mode, dynamic=True)
