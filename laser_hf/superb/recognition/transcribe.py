"""Transcribe audio files with a trained ASR or PR probe: `python -m laser_hf.superb transcribe --probe OUT FILE...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ...data import BadAudio, decode_audio
from ...encoders import SAMPLE_RATE, load_encoder, receptive_field
from ...records import located, tensors_digest
from .ctc_tasks import TASKS
from .featurizer import FrozenFeatures
from .probes import load_probe

HELP = "transcribe audio files with the probe that an asr or pr run left"


class Transcriber:
    """A frozen encoder and a trained probe.

    Args:
        folder: output folder of an `asr` or `pr` run.
        model: encoder (hub id or folder) if it no longer lies where the run found it.
        device: where to run.

    Raises:
        FileNotFoundError: the folder holds no probe.
        ValueError: the encoder's weights are not those the probe was trained on.
    """

    def __init__(self, folder: str | Path, model: str | None = None, device: torch.device | str = "cpu"):
        self.probe, config = load_probe(Path(folder))
        self.task = TASKS[config["task"]]
        name = model or located(config["model"])
        revision = None if model else config["model_revision"]
        encoder = load_encoder(name, revision=revision, do_normalize=config["do_normalize"])
        if tensors_digest(encoder.model.state_dict()) != config["weights_sha256"]:
            raise ValueError(
                f"the weights of {name} are not those that the probe in {folder} was trained on ({config['model']}); "
                "give the right encoder with --model"
            )
        self.features = FrozenFeatures(encoder).to(device)
        self.probe.to(device)
        self.device = torch.device(device)
        self.shortest = receptive_field(encoder.config)

    @torch.no_grad()
    def __call__(self, waveform: torch.Tensor) -> str:
        """Words (or phones) of a waveform (samples,) at 16 kHz."""
        lengths = torch.tensor([len(waveform)], device=self.device)
        states, frames = self.features(waveform[None].to(self.device), lengths)
        path = self.probe(states, frames)[0].argmax(-1).tolist()
        return self.task.written(self.task.decode(path))

    def files(self, paths: Sequence[Path]) -> Iterator[tuple[Path, str | BadAudio]]:
        """Each path with its transcript, or with why it could not be used."""
        for path in paths:
            try:
                waveform = decode_audio(path, min_seconds=self.shortest / SAMPLE_RATE).waveform
                yield path, self(waveform)
            except BadAudio as error:
                yield path, error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m laser_hf.superb transcribe`."""
    parser.add_argument("--probe", type=Path, required=True, help="output folder of an asr or pr run")
    parser.add_argument("--model", help="the encoder, if it no longer lies where the run found it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".flac .wav .ogg .opus .mp3, any rate")


def run(arguments: argparse.Namespace) -> dict[str, str]:
    """Print `file<TAB>transcript` for each file and return the transcripts; exit status 1 if a file was unusable."""
    try:
        transcriber = Transcriber(arguments.probe, arguments.model, arguments.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    transcripts, bad = {}, 0
    for path, result in transcriber.files(arguments.files):
        if isinstance(result, BadAudio):
            bad += 1
            print(f"{path}: not transcribed, {result}", file=sys.stderr)
        else:
            transcripts[str(path)] = result
            print(f"{path}\t{result}")
    if bad:
        sys.exit(1)
    return transcripts
