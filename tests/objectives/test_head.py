"""The projection head: its shapes, its two forms and the names its weights are stored under."""

from __future__ import annotations

import pytest
import torch

from laser_hf.objectives import ProjectionHead


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        (1, {"projection.weight": (5, 12), "projection.bias": (5,)}),
        (
            2,
            {
                "projection.0.weight": (5, 12),
                "projection.0.bias": (5,),
                "projection.2.weight": (5, 5),
                "projection.2.bias": (5,),
            },
        ),
    ],
)
def test_names_and_shapes_of_the_weights(layers, shapes):
    head = ProjectionHead(12, 5, layers)
    assert {name: tuple(weight.shape) for name, weight in head.state_dict().items()} == shapes
    assert head.output_dim == 5


@pytest.mark.parametrize("layers", [1, 2])
def test_frames_have_unit_norm_in_float32(layers):
    head = ProjectionHead(12, 5, layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frames = head(torch.randn(2, 7, 12))
    assert frames.dtype == torch.float32
    torch.testing.assert_close(frames.norm(dim=-1), torch.ones(2, 7))


def test_two_layers_have_a_relu_between():
    torch.manual_seed(0)
    head, frames = ProjectionHead(12, 5, 2), torch.randn(2, 7, 12)
    weights = head.state_dict()
    hidden = (frames @ weights["projection.0.weight"].T + weights["projection.0.bias"]).clamp(min=0)
    output = hidden @ weights["projection.2.weight"].T + weights["projection.2.bias"]
    torch.testing.assert_close(head(frames), output / output.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("layers", [0, 3])
def test_there_are_one_or_two_layers(layers):
    with pytest.raises(ValueError, match="layers must be 1"):
        ProjectionHead(12, 5, layers)
