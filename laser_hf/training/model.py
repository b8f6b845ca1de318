"""The module that is trained: an encoder and the projection that the loss is computed on."""

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
    """

    def __init__(self, encoder: SpeechEncoder, projection_dim: int = 256):
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(encoder.hidden_size, projection_dim)

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | list[int]) -> dict[str, torch.Tensor]:
        """Waveforms `(batch, samples)` and their lengths in samples, `(batch,)`.

        Lengths on the CPU, or as a list, spare a CUDA device the waiting for their values.

        Returns:
            `projected` `(batch, frames, projection_dim)` with unit norm, `frames` `(batch, frames, dim)`
            without graph, and `lengths` in frames, `(batch,)`, on the device of the waveforms.
        """
        output = self.encoder(waveforms, torch.as_tensor(lengths))
        return {
            "projected": self.head(output.frames),
            "frames": output.frames.detach(),
            "lengths": output.lengths,
        }

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
