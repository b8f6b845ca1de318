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

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms `(batch, samples)` and their lengths in samples, `(batch,)`.

        Returns:
            `projected` `(batch, frames, projection_dim)` with unit norm, `frames` `(batch, frames, dim)`
            without graph, and `lengths` in frames, `(batch,)`.
        """
        output = self.encoder(waveforms, lengths)
        return {
            "projected": self.head(output.frames),
            "frames": output.frames.detach(),
            "lengths": output.lengths,
        }
