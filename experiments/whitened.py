"""Measure an encoder with its last layer whitened by PCA: a control that trains nothing.

python -m experiments.whitened qbe --speech LibriSpeech/train-clean-5 --model MODEL ... (as `laser-hf superb qbe`)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

from laser_hf.data import decode_audio
from laser_hf.superb import __main__ as superb
from laser_hf.superb import features

FLOOR = 1e-6
"""Smallest variance of a principal component, as a share of the largest."""


class Whitened:
    """Features of an encoder whose last layer has mean 0 and covariance 1 over `waveforms`, each `(samples,)`."""

    def __init__(self, encoder: features.EncoderFeatures, waveforms: Sequence[torch.Tensor]):
        self.encoder, self.last = encoder, encoder.layers - 1
        frames = torch.cat([encoder([waveform], [self.last])[0][0] for waveform in tqdm(waveforms, unit="utterance")])
        frames = frames.double()
        self.mean = frames.mean(0)
        variances, axes = torch.linalg.eigh(torch.cov(frames.T))
        self.matrix = axes / variances.clamp_min(FLOOR * variances[-1]).sqrt()

    def __getattr__(self, name: str):
        return getattr(self.encoder, name)

    def __call__(self, waveforms: Sequence[torch.Tensor], layers: Sequence[int]) -> list[list[torch.Tensor]]:
        """As `EncoderFeatures.__call__`."""
        found = self.encoder(waveforms, layers)
        for place, layer in enumerate(layers):
            if layer == self.last:
                found[place] = [((one.double() - self.mean) @ self.matrix).float() for one in found[place]]
        return found


def main(argv: list[str] | None = None) -> None:
    """Run a task of `laser-hf superb` on whitened features."""
    parser = argparse.ArgumentParser(prog="python -m experiments.whitened", description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("qbe", "discrimination", "sid"))
    parser.add_argument("--speech", type=Path, required=True, help="folder of audio that gives mean and covariance")
    arguments, words = parser.parse_known_args(argv)
    paths = sorted(path for path in arguments.speech.rglob("*") if path.suffix in (".flac", ".wav", ".ogg", ".opus"))
    if not paths:
        sys.exit(f"no audio below {arguments.speech}")
    waveforms = [decode_audio(str(path)).waveform for path in paths]
    load = features.load_features
    with mock.patch.object(features, "load_features", lambda *args: Whitened(load(*args), waveforms)):
        superb.main([arguments.task, *words])


if __name__ == "__main__":
    main()
