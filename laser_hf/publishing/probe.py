"""One second of made-up sound, and what an encoder makes of it: by this a reloaded encoder is recognised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

VALUES = 64
"""Numbers kept of the frames."""
TOLERANCE = 1e-3
"""Allowed difference in units of the root mean square of the numbers kept: far more than processors differ by."""


def probe_waveform(sampling_rate: int = 16_000) -> list[float]:
    """A second of tones that come and go: quiet and with an offset, so that normalising it changes the frames."""
    wave = [0.004] * sampling_rate
    for pitch in (180.0, 450.0, 1170.0, 2300.0):
        for index in range(sampling_rate):
            angle = 2 * math.pi * index / sampling_rate
            if math.sin(3 * angle + pitch) > 0:
                wave[index] += 0.004 * math.sin(pitch * angle)
    return wave


def describe_frames(frames: torch.Tensor) -> dict[str, Any]:
    """Size of `frames` (frames, dimension) and `VALUES` numbers of them, evenly spaced, as plain JSON."""
    flat = frames.detach().float().cpu().reshape(-1)
    picks = torch.linspace(0, len(flat) - 1, min(VALUES, len(flat)), dtype=torch.float64).long()
    return {"frames": frames.shape[0], "dimension": frames.shape[1], "values": flat[picks].tolist()}


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """How two descriptions of frames differ, or `None` when they are of the same encoder."""
    sizes = [f"{d['frames']} frames of {d['dimension']}" for d in (expected, found)]
    if sizes[0] != sizes[1]:
        return f"{sizes[1]} instead of {sizes[0]}"
    pairs = list(zip(expected["values"], found["values"], strict=True))
    scale = math.sqrt(sum(value**2 for value, _ in pairs) / len(pairs))
    worst = max(abs(a - b) for a, b in pairs)
    if worst <= TOLERANCE * scale:
        return None
    return f"frames that differ by up to {worst:.3g} from those at the end of training (values of about {scale:.3g})"
