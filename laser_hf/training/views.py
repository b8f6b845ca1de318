"""Both views of a micro-batch as one input of the model, and which side of a pair is trained on against a twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..data import draw_generator


def drawn_sides(seed: int, step: int, ids: Sequence[str]) -> torch.Tensor:
    """Whether the trained side hears the perturbed view: one bool a pair, drawn as the released SCORE code does.

    By seed, update and utterance alone, like the perturbation's draws: resuming and cutting change nothing.
    """
    return torch.tensor([draw_generator(seed, step, f"{name}\nside").random() < 0.5 for name in ids])


def stack_views(batch: Mapping[str, Any], swap: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms `(2 * pairs, samples)` and lengths `(2 * pairs,)`: the clean views first, where `swap` the perturbed.

    In one input, as DDP wants one forward call; padding changes no frame. Lengths and `swap` stay on the CPU.
    """
    clean, perturbed = batch["clean"], batch["perturbed"]
    longest = max(clean.shape[1], perturbed.shape[1])
    clean, perturbed = (nn.functional.pad(view, (0, longest - view.shape[1])) for view in (clean, perturbed))
    lengths = batch["clean_lengths"], batch["perturbed_lengths"]
    if swap is None:
        return torch.cat((clean, perturbed)), torch.cat(lengths)
    on_device = swap.to(clean.device, non_blocking=True).unsqueeze(1)
    waveforms = torch.where(on_device, perturbed, clean), torch.where(on_device, clean, perturbed)
    swapped = torch.where(swap, lengths[1], lengths[0]), torch.where(swap, lengths[0], lengths[1])
    return torch.cat(waveforms), torch.cat(swapped)
