"""From utterances to frames: hidden states of an encoder, or MFCCs and log mel energies to compare with."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import soundfile
import torch
import torchaudio
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.types import Device

from ..data import BadAudio, SpeedPitch, audio_seconds, decode_audio
from ..encoders import SAMPLE_RATE, SpeechEncoder, load_encoder, receptive_field
from ..errors import LaserError
from ..records import RESULTS, describe_model

SPECTRAL = ("mfcc", "logmel")
VIEWS = {"+2 semitones": (1.0, 2.0), "-2 semitones": (1.0, -2.0), "speed 0.9": (0.9, 0.0), "speed 1.1": (1.1, 0.0)}
"""Speed and pitch of the perturbed words that invariance is measured with: `--perturbed`."""


@dataclass(frozen=True)
class Utterance:
    """`duration` seconds from `start` of the file `audio`; the whole file without a duration."""

    name: str
    audio: Path
    start: float = 0.0
    duration: float | None = None
    speaker: str = ""
    view: str = ""  # of `VIEWS`; as it is if empty


def perturbed(waveform: torch.Tensor, view: str) -> torch.Tensor:
    """A waveform `(samples,)` as a view of `VIEWS` has it, `(about samples / speed,)`."""
    speed, pitch = VIEWS[view]
    return SpeedPitch().apply(waveform, speed=speed, pitch=pitch)


def read_waveform(utterance: Utterance, shortest: int = 1, gain: float = 1.0) -> torch.Tensor:
    """Samples of an utterance, `(samples,)` float32, mono, 16 kHz, times `gain`.

    `BadAudio` if they are missing, undecodable, empty, fewer than `shortest`, not finite, or silent.
    """
    source = str(utterance.audio) if utterance.duration is None else _read_part(utterance)
    waveform = decode_audio(source, min_seconds=0.0).waveform
    if len(waveform) < shortest:
        raise BadAudio("too_short", f"{len(waveform)} samples; one frame needs {shortest}")
    return (perturbed(waveform, utterance.view) if utterance.view else waveform) * gain


def _read_part(utterance: Utterance) -> dict[str, Any]:
    """Only the samples asked for: many queries may be cut from one long recording."""
    if not utterance.audio.is_file():
        raise BadAudio("undecodable", f"{utterance.audio}: no such file")
    try:
        with soundfile.SoundFile(utterance.audio) as file:
            first = round(utterance.start * file.samplerate)
            if not 0 <= first < file.frames or utterance.duration <= 0:
                part = f"{utterance.duration:g} s from {utterance.start:g} s"
                length = f"{file.frames / file.samplerate:.2f} s"
                raise BadAudio("empty", f"{part} lie outside of {utterance.audio} ({length})")
            file.seek(first)
            samples = file.read(round(utterance.duration * file.samplerate), dtype="float32", always_2d=True)
            return {"array": samples.T, "sampling_rate": file.samplerate}
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudio("undecodable", f"{utterance.audio}: {error}") from error


def read_times(*values: str, scale: float = 1.0) -> tuple[float, float] | None:
    """Start and duration in seconds, or `None` where they are no valid times; `scale` is their unit's per second."""
    try:
        start, duration = (float(value) / scale for value in values)
    except ValueError:
        return None
    return (start, duration) if math.isfinite(start + duration) and start >= 0 and duration > 0 else None


def sample_counts(utterances: Sequence[Utterance]) -> list[int]:
    """Samples at 16 kHz by the files' headers; 0 for a file that cannot be opened (reading it raises `BadAudio`)."""
    seconds = {path: audio_seconds(path) or 0.0 for path in {utterance.audio for utterance in utterances}}
    counts = []
    for utterance in utterances:
        length = seconds[utterance.audio]
        if utterance.duration is not None:
            length = min(utterance.duration, max(0.0, length - utterance.start))
        counts.append(round(length * SAMPLE_RATE / VIEWS.get(utterance.view, (1.0,))[0]))
    return counts


class EncoderFeatures:
    """Hidden states of an encoder on the device it is on; number 0 is the input of the first Transformer layer.

    The encoder runs in evaluation mode without gradients or random draws; its own mode is restored. Every utterance of
    a batch gets the frames that it gets alone: never more than `round(samples / 320)`, to which SUPERB cuts. `shortest`
    samples give one frame of dimension `dim`, and `frame_seconds` lie between two.
    """

    def __init__(self, encoder: SpeechEncoder):
        self.encoder = encoder
        self.layers, self.dim = encoder.num_layers + 1, encoder.hidden_size
        self.shortest = receptive_field(encoder.config)
        self.frame_seconds = math.prod(encoder.config.conv_stride) / SAMPLE_RATE

    def frame_count(self, samples: int) -> int:
        """Frames of a waveform of `samples`."""
        return int(self.encoder.frame_lengths(torch.tensor(samples)))

    def describe(self, name: str) -> dict[str, Any]:
        """Entries of a record about the model `name`; see `records.describe_model`."""
        about = describe_model(name, self.encoder.revision, self.encoder.model.state_dict())
        return about | {"do_normalize": self.encoder.do_normalize}

    @torch.no_grad()
    def states(
        self, waveforms: torch.Tensor, lengths: torch.Tensor, layers: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of a padded batch `(batch, samples)`, 16 kHz, of which `lengths` `(batch,)` are in use.

        Returns:
            States `(layers, batch, frames, dim)` of `layers`, all by default, zero beyond their utterance's frames, and
            frames in use `(batch,)`.
        """
        training = self.encoder.training
        self.encoder.eval()
        try:
            # Transformers draws a number for LayerDrop in evaluation mode too.
            with torch.random.fork_rng(devices=[]):
                output = self.encoder(waveforms, lengths, output_hidden_states=True)
        finally:
            self.encoder.train(training)
        states = torch.stack([output.hidden_states[layer] for layer in layers or range(self.layers)])
        padding = torch.arange(states.shape[2], device=states.device) >= output.lengths.unsqueeze(1)
        return states.masked_fill(padding[None, :, :, None], 0.0), output.lengths

    def __call__(self, waveforms: Sequence[torch.Tensor], layers: Sequence[int]) -> list[list[torch.Tensor]]:
        """Frames `[layer][waveform]`, each `(frames, dim)` float32 on the CPU, of 16 kHz waveforms `(samples,)`."""
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        batch = pad_sequence(list(waveforms), batch_first=True).to(next(self.encoder.parameters()).device)
        states, frames = self.states(batch, lengths, layers)
        states = states.float().cpu()
        return [[state[i, :count] for i, count in enumerate(frames.tolist())] for state in states]


class SpectralFeatures:
    """13 MFCCs (`mfcc`) or 23 log mel energies (`logmel`) of 25 ms every 10 ms, with their time differences.

    It has the attributes and methods of `EncoderFeatures` except `states`; there is one layer.
    """

    layers, shortest, frame_seconds = 1, 400, 0.01

    def __init__(self, kind: str):
        mel = {"n_fft": self.shortest, "hop_length": 160, "n_mels": 23, "center": False}
        spectrum = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **mel)
        self._transform, self.dim = lambda waveform: spectrum(waveform).clamp_min(1e-10).log(), 2 * 23
        if kind == "mfcc":
            self._transform, self.dim = torchaudio.transforms.MFCC(SAMPLE_RATE, 13, melkwargs=mel), 2 * 13

    def frame_count(self, samples: int) -> int:
        """Frames of a waveform of `samples`."""
        return max(0, (samples - self.shortest) // 160 + 1)

    def describe(self, name: str) -> dict[str, Any]:
        """Entries of a record about the features `name`."""
        return describe_model(name)

    def __call__(self, waveforms: Sequence[torch.Tensor], layers: Sequence[int]) -> list[list[torch.Tensor]]:
        """Frames `[layer][waveform]`, each `(frames, dim)` float32, of 16 kHz waveforms `(samples,)`."""
        values = map(self._transform, waveforms)
        frames = [torch.cat([one, torchaudio.functional.compute_deltas(one)]).T for one in values]
        return [frames for _ in layers]


Features = EncoderFeatures | SpectralFeatures


def add_arguments(parser: argparse.ArgumentParser, layer: bool = True) -> None:
    """Options that all tasks on frames have; `--layer` only with `layer`."""
    add = parser.add_argument
    add("--model", required=True, help="encoder id or folder, random:ID_OR_FOLDER (fresh weights), mfcc or logmel")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    text = "scale waveforms to mean 0 and variance 1; default: as the encoder's preprocessor says"
    add("--do_normalize", action=argparse.BooleanOptionalAction, help=text)
    if layer:
        add("--layer", default="-1", help="hidden state: 0 is the input of the first layer, -1 the last; 3,6,9; or all")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")
    add("--seed", type=int, default=0, help="of everything that is drawn, such as the weights of random:MODEL")
    add("--output_dir", type=Path, required=True, help=f"{RESULTS}, files and pictures go here")
    add("--overwrite_output_dir", action="store_true", help="delete what an earlier run left there")


def load_features(
    model: str, revision: str | None = None, seed: int = 0, device: Device = "cpu", do_normalize: bool | None = None
) -> Features:
    """Features by the name that `--model` takes; an encoder is moved to `device`.

    `model` is `mfcc`, `logmel`, an encoder's id or folder, or `random:MODEL` (MODEL's architecture, fresh weights from
    `seed`); `LaserError` if it cannot be loaded. `revision` is a branch, tag or commit on the Hub; `do_normalize`
    scales waveforms to mean 0 and variance 1; by default as the encoder's preprocessor says.
    """
    if model in SPECTRAL:
        return SpectralFeatures(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = load_encoder(model.removeprefix("random:"), revision, do_normalize=do_normalize)
        if model.startswith("random:"):
            fresh = type(encoder.model)(encoder.base_config)
            encoder = SpeechEncoder(fresh, encoder.base_config, encoder.do_normalize, encoder.revision)
    return EncoderFeatures(encoder.to(device))


def chosen_features(arguments: argparse.Namespace) -> tuple[Features, list[int]]:
    """Features and layers that the options of `add_arguments` name."""
    model, device = (arguments.model, arguments.revision, arguments.seed), pick_device(arguments.device)
    features = load_features(*model, device, arguments.do_normalize)
    return features, pick_layers(getattr(arguments, "layer", "all"), features.layers)


def pick_device(name: str) -> torch.device:
    """The device that `--device` names, `auto` taking a GPU if there is one; `LaserError` if this machine lacks it."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LaserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def pick_layers(asked: str, available: int) -> list[int]:
    """Numbers of the layers that `--layer` names: `all`, or numbers with commas, negative ones from the last.

    `LaserError` for no such layer, or no number.
    """
    if asked == "all":
        return list(range(available))
    try:
        layers = [int(layer) for layer in asked.split(",")]
    except ValueError:
        raise LaserError(f"--layer expects all, a number, or numbers with commas; got {asked!r}") from None
    if unknown := [layer for layer in layers if not -available <= layer < available]:
        raise LaserError(f"the model has layers 0 to {available - 1}, not {unknown[0]}")
    return list(dict.fromkeys(layer % available for layer in layers))


class WeightedSum(nn.Module):
    """Sum of `layers` hidden states with the softmax of learned weights, which start at zero: all layers alike."""

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(layers, batch, frames, dim)` -> `(batch, frames, dim)`."""
        # einsum would copy the states into another layout first.
        return (self.weights.softmax(0) @ states.flatten(1)).view(states.shape[1:])

    def shares(self) -> list[float]:
        """The softmaxed weights."""
        return self.weights.detach().double().softmax(0).tolist()


def plot_by_layer(panels: Mapping[str, Mapping[str, Mapping[int, float]]], path: Path, title: str, x: str = "") -> None:
    """Values by layer, or by what `x` names, as lines with labels, by title of the panel; two panels in a row."""
    from .. import figures

    columns, rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    figure, axes = figures.new_figure(rows, columns, (4.5 * columns, 3.1 * rows), squeeze=False)
    for axis, (label, lines) in zip(axes.flat, panels.items(), strict=False):
        for (name, points), colour in zip(lines.items(), cycle(figures.LINE_COLOURS), strict=False):
            axis.plot(list(points), list(points.values()), marker="o", label=name, color=colour)
        axis.set_title(label, fontsize=9)
        axis.set_xlabel(x or "hidden state")
        if not x:
            axis.set_xticks(sorted({layer for points in lines.values() for layer in points}))
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=8)
    figures.save(figure, path, title)


def plot_layers(panels: Mapping[str, Sequence[str]], metrics: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Entries of a record by layer: `panels` are names of metrics by title; a metric of views has a line for each."""
    lines: dict[str, dict[str, dict[int, float]]] = {}
    for label, names in panels.items():
        for entry in (entry for entry in metrics if entry["metric"] in names):
            for name, value in entry.get("views", {entry["metric"]: entry["value"]}).items():
                lines.setdefault(label, {}).setdefault(name, {})[entry["layer"]] = value
    plot_by_layer(lines, path, title)
