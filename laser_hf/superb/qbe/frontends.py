"""Frames of speech to align: hidden states of an encoder, or MFCCs and log mel energies to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torchaudio
from torch.nn.utils.rnn import pad_sequence

from ...encoders import SAMPLE_RATE, SpeechEncoder, load_encoder, receptive_field

SPECTRAL = ("mfcc", "logmel")


class Frontend(Protocol):
    """Turns waveforms into frames, one or several kinds ("layers") at once.

    Attributes:
        layers: number of layers.
        dim: dimension of a frame.
        shortest: samples that give one frame.
        frame_seconds: time from one frame to the next.
    """

    layers: int
    dim: int
    shortest: int
    frame_seconds: float

    def frame_count(self, samples: int) -> int:
        """Frames of a waveform of `samples`."""
        ...

    def __call__(self, waveforms: Sequence[torch.Tensor], layers: Sequence[int]) -> list[list[torch.Tensor]]:
        """Frames `[layer][waveform]`, each (frames, dim) float32 on the CPU, of 16 kHz waveforms (samples,)."""
        ...


class EncoderFrontend:
    """Hidden states of a `SpeechEncoder`, 0 being the input of the first Transformer layer.

    Utterances are padded into one batch and come out as each would alone. SUPERB cuts the frames of an utterance to
    `round(samples / 320)`; alone, an encoder with a hop of 320 never has more than that, so nothing is left to cut.
    """

    def __init__(self, encoder: SpeechEncoder, device: torch.device | str = "cpu"):
        self.encoder = encoder.to(device).eval()
        self.device = torch.device(device)
        self.layers, self.dim = encoder.num_layers + 1, encoder.hidden_size
        self.shortest = receptive_field(encoder.config)
        hop = 1
        for stride in encoder.config.conv_stride:
            hop *= stride
        self.frame_seconds = hop / SAMPLE_RATE

    def frame_count(self, samples: int) -> int:
        return int(self.encoder.frame_lengths(torch.tensor([samples])))

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[torch.Tensor], layers: Sequence[int]) -> list[list[torch.Tensor]]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=self.device)
        batch = pad_sequence(list(waveforms), batch_first=True).to(self.device)
        output = self.encoder(batch, lengths, output_hidden_states=True)
        frames = output.lengths.tolist()
        states = [output.hidden_states[layer].float().cpu() for layer in layers]
        return [[state[i, :count] for i, count in enumerate(frames)] for state in states]


class SpectralFrontend:
    """13 MFCCs ("mfcc") or 23 log mel energies ("logmel") of 25 ms, with `deltas` orders of time differences.

    Raises:
        ValueError: an unknown kind, or a frame rate that is no divisor of the sampling rate.
    """

    layers = 1

    def __init__(self, kind: str, frames_per_second: int = 100, deltas: int = 1):
        if kind not in SPECTRAL:
            raise ValueError(f"unknown features {kind!r}; expected {' or '.join(SPECTRAL)}")
        if frames_per_second < 1 or SAMPLE_RATE % frames_per_second:
            raise ValueError(f"frames_per_second must divide {SAMPLE_RATE}, got {frames_per_second}")
        self.hop = SAMPLE_RATE // frames_per_second
        self.deltas, self.shortest, self.frame_seconds = deltas, 400, 1 / frames_per_second
        mel = {"n_fft": self.shortest, "hop_length": self.hop, "n_mels": 23, "center": False}
        if kind == "mfcc":
            self._transform = torchaudio.transforms.MFCC(SAMPLE_RATE, 13, melkwargs=mel)
        else:
            spectrum = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **mel)
            self._transform = lambda waveform: spectrum(waveform).clamp_min(1e-10).log()
        self.dim = (13 if kind == "mfcc" else 23) * (1 + deltas)

    def frame_count(self, samples: int) -> int:
        return max(0, (samples - self.shortest) // self.hop + 1)

    def __call__(self, waveforms: Sequence[torch.Tensor], layers: Sequence[int]) -> list[list[torch.Tensor]]:
        frames = [self._frames(waveform) for waveform in waveforms]
        return [frames for _ in layers]

    def _frames(self, waveform: torch.Tensor) -> torch.Tensor:
        orders = [self._transform(waveform)]
        for _ in range(self.deltas):
            orders.append(torchaudio.functional.compute_deltas(orders[-1]))
        return torch.cat(orders).T


def load_frontend(
    model: str,
    *,
    revision: str | None = None,
    seed: int = 0,
    frames_per_second: int = 100,
    deltas: int = 1,
    device: torch.device | str = "cpu",
) -> EncoderFrontend | SpectralFrontend:
    """`mfcc`, `logmel`, `random:MODEL` (MODEL's architecture, fresh weights), or an encoder id or folder.

    Raises:
        LaserError: an encoder that cannot be loaded.
    """
    if model in SPECTRAL:
        return SpectralFrontend(model, frames_per_second, deltas)
    if not model.startswith("random:"):
        return EncoderFrontend(load_encoder(model, revision), device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        like = load_encoder(model.removeprefix("random:"), revision)
        fresh = type(like.model)(like.base_config)
    return EncoderFrontend(SpeechEncoder(fresh, like.base_config, like.do_normalize, like.revision), device)


def choose_layers(asked: str, available: int) -> list[int]:
    """Numbers of the layers that `asked` names: "all", or numbers with commas, negative ones from the last.

    Raises:
        ValueError: no such layer, or no number.
    """
    if asked == "all":
        return list(range(available))
    try:
        layers = [int(layer) for layer in asked.split(",")]
    except ValueError:
        raise ValueError(f"--layer expects all, a number, or numbers with commas; got {asked!r}") from None
    unknown = [layer for layer in layers if not -available <= layer < available]
    if unknown:
        raise ValueError(f"the model has layers 0 to {available - 1}, not {unknown[0]}")
    return list(dict.fromkeys(layer % available for layer in layers))
