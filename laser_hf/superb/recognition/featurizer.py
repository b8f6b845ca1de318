"""Hidden states of a frozen encoder, and their learned weighted sum (SUPERB's featurizer)."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ...encoders import SpeechEncoder
from ...records import read_json, write_json

logger = logging.getLogger(__name__)


def superb_frame_length(samples: int, stride: int = 320) -> int:
    """Frames that SUPERB keeps of an utterance: `round(samples / stride)`, halves to the even number.

    A convolutional front-end without padding makes this many frames of it or one fewer.
    """
    return round(samples / stride)


class FrozenFeatures(nn.Module):
    """All hidden states of an encoder that stays in evaluation mode and gets no gradient.

    Each utterance keeps `min(frames the encoder makes of it alone, superb_frame_length)` frames, which is what SUPERB
    evaluates. In training, where S3PRL pads waveforms to a batch, shorter utterances keep there one frame more in three
    cases of four, made partly of padding; here padding never shows.

    Args:
        encoder: any; it is frozen here.
    """

    def __init__(self, encoder: SpeechEncoder):
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.stride = math.prod(encoder.config.conv_stride)

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Stay in evaluation mode."""
        return super().train(False)

    @property
    def layers(self) -> int:
        """Hidden states an utterance has: the input of the first Transformer layer and every layer's output."""
        return self.encoder.num_layers + 1

    @property
    def dim(self) -> int:
        """Dimension of a frame."""
        return self.encoder.hidden_size

    @torch.no_grad()
    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a padded batch.

        Args:
            waveforms: (batch, samples), 16 kHz.
            lengths: samples in use, (batch,).

        Returns:
            States (layers, batch, frames, dim), zero beyond their utterance's frames, and frames in use (batch,).
        """
        output = self.encoder(waveforms, lengths, output_hidden_states=True)
        if len(output.hidden_states) != self.layers:
            raise ValueError(f"expected {self.layers} hidden states of the encoder, got {len(output.hidden_states)}")
        kept = [superb_frame_length(samples, self.stride) for samples in lengths.tolist()]
        frames = torch.minimum(output.lengths, torch.tensor(kept, device=output.lengths.device))
        if int((output.lengths - frames).abs().max()) >= 5:
            raise ValueError(f"frames {output.lengths.tolist()} are not those of a stride of {self.stride} samples")
        states = torch.stack(output.hidden_states)[:, :, : int(frames.max())]
        padding = torch.arange(states.shape[2], device=states.device) >= frames.unsqueeze(1)
        return states.masked_fill(padding[None, :, :, None], 0.0), frames


class WeightedSum(nn.Module):
    """Sum of hidden states with the softmax of learned weights, which start at zero: all layers alike.

    Args:
        layers: hidden states.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(layers, batch, frames, dim) -> (batch, frames, dim)."""
        # einsum would copy the states into another layout first.
        return (self.weights.softmax(0) @ states.flatten(1)).view(states.shape[1:])

    def shares(self) -> list[float]:
        """The softmaxed weights."""
        return self.weights.detach().double().softmax(0).tolist()


class FeatureCache:
    """Hidden states of utterances on disk, exactly as the encoder gave them (float32), mapped into memory.

    Worth it where an encoder would see every utterance many times on a CPU. One file `FOLDER/NAME.f32` of frames
    (frames, layers, dim), utterance after utterance, and a JSON file beside it that says what it holds.

    Args:
        folder, name: where; one cache a split.
    """

    def __init__(self, folder: str | Path, name: str):
        self.path = Path(folder) / f"{name}.f32"
        self.about = self.path.with_suffix(".json")
        self._frames: np.memmap | None = None

    def build(
        self,
        features: FrozenFeatures,
        waveforms: Any,
        samples: Sequence[int],
        key: dict[str, Any],
        device: torch.device | str = "cpu",
        batch_seconds: float = 60.0,
    ) -> None:
        """Encode all utterances unless a complete cache of the same `key` is there already.

        Args:
            features: the encoder.
            waveforms: `waveforms[i]` is (samples[i],).
            samples: length of each utterance.
            key: what decides the values: encoder, precision, utterances.
            device: where `features` is.
            batch_seconds: speech encoded at once.

        Raises:
            OSError: not enough space for it.
        """
        frames = [
            min(int(features.encoder.frame_lengths(torch.tensor(n))), superb_frame_length(n, features.stride))
            for n in samples
        ]
        offsets = np.concatenate(([0], np.cumsum(frames))).tolist()
        about = {"key": key, "offsets": offsets, "layers": features.layers, "dim": features.dim}
        if self.about.is_file() and self.path.is_file() and read_json(self.about) == about:
            return
        self.about.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        shape = (offsets[-1], features.layers, features.dim)
        self.path.unlink(missing_ok=True)
        needed, free = 4 * math.prod(shape), shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise OSError(
                f"the hidden states of {len(frames)} utterances take {needed / 2**30:.1f} GiB, and "
                f"{self.path.parent} has {free / 2**30:.1f} GiB left; use --cache_features no, or fewer utterances"
            )
        stored = np.memmap(self.path, np.float32, "w+", shape=shape)
        progress = tqdm(total=round(sum(samples) / 16_000), unit="s of speech", desc=f"hidden states, {self.path.stem}")
        with progress:
            for batch in _similar_lengths(samples, round(batch_seconds * 16_000)):
                wave = nn.utils.rnn.pad_sequence([waveforms[index] for index in batch], batch_first=True)
                lengths = torch.tensor([samples[index] for index in batch])
                states, counts = features(wave.to(device), lengths.to(device))
                states = states.float().permute(1, 2, 0, 3).cpu().numpy()
                for row, (index, count) in enumerate(zip(batch, counts.tolist(), strict=True)):
                    stored[offsets[index] : offsets[index] + count] = states[row, :count]
                progress.update(round(sum(samples[index] for index in batch) / 16_000))
        stored.flush()
        write_json(self.about, about)

    def __getitem__(self, index: int) -> torch.Tensor:
        """States of one utterance, (layers, frames, dim)."""
        if self._frames is None:
            about = read_json(self.about)
            self._offsets = about["offsets"]
            shape = (self._offsets[-1], about["layers"], about["dim"])
            self._frames = np.memmap(self.path, np.float32, "r", shape=shape)
        start, end = self._offsets[index : index + 2]
        return torch.from_numpy(np.array(self._frames[start:end])).transpose(0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None}  # a worker maps the file itself

    def delete(self) -> None:
        """Give the space back."""
        self._frames = None
        for path in (self.about, self.path):
            path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not os.listdir(self.path.parent):
            self.path.parent.rmdir()


def _similar_lengths(samples: Sequence[int], limit: int) -> list[list[int]]:
    """Indices by descending length in batches of at most `limit` samples (padding included), at least one each."""
    batches: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lambda index: -samples[index]):
        if batches and samples[batches[-1][0]] * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
