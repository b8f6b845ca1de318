"""The trained part: weighted sum of hidden states, SpecAugment where the recipe has it, and a CTC head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..features import WeightedSum


def ctc_losses(log_probs: Tensor, frames: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Loss of each utterance divided by the length of its target, (batch,) float32.

    Their mean is `torch.nn.CTCLoss(reduction="mean", zero_infinity=True)`: a target that does not fit into its frames
    counts 0. Class 0 is the blank. Log probabilities are (batch, frames, classes), of which `frames` (batch,) are in
    use; targets are (batch, labels), of which `target_lengths` (batch,) are.
    """
    log_probs = log_probs.float().transpose(0, 1)
    losses = F.ctc_loss(log_probs, targets, frames, target_lengths, reduction="none", zero_infinity=True)
    return losses / target_lengths.clamp(min=1).to(losses)


def time_warp(features: Tensor, window: int) -> Tensor:
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
    sides = ((features[None, None, :centre], place), (features[None, None, centre:], count - place))
    resized = [F.interpolate(side, (length, dim), mode="bicubic", align_corners=False) for side, length in sides]
    return torch.cat(resized, dim=2)[0, 0]


def draw_mask(batch: int, size: int, masks: int, width: int) -> Tensor:
    """Positions to clear, (batch, size) bool: for each utterance `masks` runs of 0 to `width` - 1 positions.

    A run starts in {0, ..., max(1, size - widest) - 1} where `widest` is the widest run of the whole batch.
    """
    widths = torch.randint(0, width, (batch, masks, 1))
    starts = torch.randint(0, max(1, size - int(widths.max())), (batch, masks, 1))
    position = torch.arange(size)
    return ((position >= starts) & (position < starts + widths)).any(1)


@dataclass(frozen=True)
class SpecAugment:
    """SpecAugment (Park et al., 2019) with S3PRL's numbers. Masked values are 0.

    Random numbers come from torch's CPU generator on every device: a seed gives the same masks everywhere.
    """

    warp_window: int = 5  # frames by which a moment moves at most; 0 for no warp
    feature_masks: int = 4  # runs of dimensions an utterance,
    feature_mask_width: int = 50  # each narrower than this
    time_masks: int = 2  # likewise of frames; placed anywhere in the padded batch, as in S3PRL
    time_mask_width: int = 40

    def __call__(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Augment a padded batch (batch, frames, dim) with `lengths` (batch,) frames in use."""
        batch, frames, dim = features.shape
        if self.warp_window:
            warped = [
                F.pad(time_warp(utterance[:length], self.warp_window), (0, 0, 0, frames - length))
                for utterance, length in zip(features, lengths.tolist(), strict=True)
            ]
            features = torch.stack(warped)
        of_features, of_time = (self.feature_masks, self.feature_mask_width), (self.time_masks, self.time_mask_width)
        for axis, size, (masks, width) in ((1, dim, of_features), (2, frames, of_time)):
            if masks:
                mask = draw_mask(batch, size, masks, width).unsqueeze(axis)
                features = features.masked_fill(mask.to(features.device), 0.0)
        return features


def reverse_valid(features: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first `lengths` (batch,) frames of each utterance of (batch, frames, dim); padding stays."""
    position = torch.arange(features.shape[1], device=features.device)
    lengths = lengths.to(features.device).unsqueeze(1)
    source = torch.where(position < lengths, lengths - 1 - position, position)
    return features.gather(1, source.unsqueeze(2).expand_as(features))


class BiLstm(nn.LSTM):
    """A bidirectional LSTM layer that reads each utterance of a padded batch as if it were alone.

    A GPU takes packed sequences. On a CPU their backward pass needs time quadratic in the frames; so the two directions
    run one by one, the second on reversed utterances, which gives the same up to rounding. `hidden_size` counts the
    units of one direction.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, input_size) -> (batch, frames, 2 * hidden_size); frames in the padding mean nothing."""
        if features.is_cuda:
            return self.packed(features, lengths)
        ahead = self._one_way(features, "")
        back = reverse_valid(self._one_way(reverse_valid(features, lengths), "_reverse"), lengths)
        return torch.cat((ahead, back), dim=2)

    def packed(self, features: Tensor, lengths: Tensor) -> Tensor:
        """`forward` as one call of cuDNN."""
        sequences = pack_padded_sequence(features, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(super().forward(sequences)[0], True, total_length=features.shape[1])[0]

    def _one_way(self, features: Tensor, way: str) -> Tensor:
        weights = [getattr(self, f"{name}_l0{way}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        start = features.new_zeros(1, len(features), self.hidden_size)
        return torch.lstm(features, (start, start), weights, True, 1, 0.0, self.training, False, True)[0]


class LstmHead(nn.Module):
    """Linear projection, bidirectional LSTM layers each with dropout behind it, linear output (SUPERB's ASR).

    Without LSTM layers, two linear maps and nothing between them, each frame by itself (SUPERB's PR).
    """

    def __init__(
        self, dim: int, classes: int, projection_size: int, lstm_size: int = 0, lstm_layers: int = 0, dropout: float = 0
    ):
        super().__init__()
        self.projection = nn.Linear(dim, projection_size)
        sizes = [projection_size] + [2 * lstm_size] * lstm_layers
        self.lstms = nn.ModuleList(BiLstm(size, lstm_size) for size in sizes[:-1])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(sizes[-1], classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) with `lengths` (batch,) -> logits (batch, frames, classes)."""
        hidden = self.projection(features)
        for lstm in self.lstms:
            hidden = self.dropout(lstm(hidden, lengths))
        return self.output(hidden)


class CtcHead(nn.Module):
    """Weighted sum of `layers` hidden states, `augment` in training, and a head that makes logits of frames.

    `stack` successive frames become one of the head's, and what is left of an utterance's end is dropped.
    """

    def __init__(self, layers: int, head: nn.Module, augment: SpecAugment | None = None, stack: int = 1):
        super().__init__()
        self.weighted_sum = WeightedSum(layers)
        self.head, self.augment, self.stack = head, augment, stack

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States (layers, batch, frames, dim), frames in use (batch,) -> (batch, frames // stack, classes) float32."""
        features = self.weighted_sum(states)
        if self.training and self.augment is not None:
            features = self.augment(features, lengths)
        count = features.shape[1] // self.stack
        features = features[:, : count * self.stack].reshape(len(features), count, -1)
        return self.head(features, lengths // self.stack).float().log_softmax(-1)


class Heads(nn.ModuleList):
    """Heads that see the same states, each with random numbers of its own: none knows of the others."""

    def forward(self, states: Tensor, lengths: Tensor, seeds: Sequence[int] | None = None) -> list[Tensor]:
        """What each head makes of a batch, as `CtcHead`; `seeds` are of what they draw in training."""
        found = []
        with torch.random.fork_rng([states.device] if states.is_cuda else []):
            for head, seed in zip(self, seeds or [0] * len(self), strict=True):
                torch.manual_seed(seed)
                found.append(head(states, lengths))
        return found
