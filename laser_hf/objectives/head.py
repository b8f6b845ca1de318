"""The projection that an objective is computed on and that is thrown away after training (LASER, Sec. 2.1)."""

from __future__ import annotations

import torch
from torch import nn


class ProjectionHead(nn.Module):
    """Projection of every frame, then L2 normalisation, shared by the two views (768 -> 256 in the paper).

    Args:
        input_dim: hidden size of the encoder.
        output_dim: dimension of the projected frames.
        layers: 1 for a linear map; 2 for linear, ReLU, linear, as SCORE has it for WavLM (768 -> 256 -> 256).

    Raises:
        ValueError: another number of layers.
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
