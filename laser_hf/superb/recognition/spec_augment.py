"""SpecAugment on features, as SUPERB's ASR task trains with it (Park et al., 2019; numbers of S3PRL).

Random numbers come from torch's generator of the CPU, whatever the device, so that a seed gives the same masks
everywhere and a resumed run goes on with the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


def time_warp(features: torch.Tensor, window: int) -> torch.Tensor:
    """Move a random moment of one utterance (frames, dim) by up to `window` frames; the length stays.

    Of T frames the centre is drawn from {window, ..., T - window - 1} and its new place from
    {centre - window + 1, ..., centre + window}; both sides are resized by bicubic interpolation. Utterances of at
    most 2 * window frames stay as they are.
    """
    count, dim = features.shape
    if count - window <= window:
        return features
    centre = int(torch.randint(window, count - window, ()))
    place = int(torch.randint(centre - window, centre + window, ())) + 1
    image = features[None, None]
    sides = [
        F.interpolate(side, (length, dim), mode="bicubic", align_corners=False)
        for side, length in ((image[:, :, :centre], place), (image[:, :, centre:], count - place))
    ]
    return torch.cat(sides, dim=2)[0, 0]


def draw_mask(batch: int, size: int, masks: int, width: int) -> torch.Tensor:
    """Positions to clear, (batch, size) bool: for each utterance `masks` runs of 0 to `width` - 1 positions.

    A run starts in {0, ..., max(1, size - widest) - 1} where `widest` is the widest run of the whole batch.
    """
    widths = torch.randint(0, width, (batch, masks, 1))
    starts = torch.randint(0, max(1, size - int(widths.max())), (batch, masks, 1))
    position = torch.arange(size)
    return ((position >= starts) & (position < starts + widths)).any(1)


@dataclass(frozen=True)
class SpecAugment:
    """Time warp, then masks over dimensions, then masks over time; masked values are 0.

    Attributes:
        warp_window: frames by which a moment moves at most; 0 for no warp.
        feature_masks, feature_mask_width: runs of dimensions an utterance, each narrower than the width.
        time_masks, time_mask_width: likewise of frames; placed anywhere in the padded batch, as in S3PRL.
    """

    warp_window: int = 5
    feature_masks: int = 4
    feature_mask_width: int = 50
    time_masks: int = 2
    time_mask_width: int = 40

    def __call__(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Augment a padded batch (batch, frames, dim) with `lengths` (batch,) frames in use."""
        batch, frames, dim = features.shape
        if self.warp_window:
            warped = [
                F.pad(time_warp(utterance[:length], self.warp_window), (0, 0, 0, frames - length))
                for utterance, length in zip(features, lengths.tolist(), strict=True)
            ]
            features = torch.stack(warped)
        if self.feature_masks:
            mask = draw_mask(batch, dim, self.feature_masks, self.feature_mask_width)
            features = features.masked_fill(mask.to(features.device).unsqueeze(1), 0.0)
        if self.time_masks:
            mask = draw_mask(batch, frames, self.time_masks, self.time_mask_width)
            features = features.masked_fill(mask.to(features.device).unsqueeze(2), 0.0)
        return features
