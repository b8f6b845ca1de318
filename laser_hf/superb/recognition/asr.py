"""Automatic speech recognition after SUPERB: characters by CTC on a frozen encoder, greedy decoding, no language model.

Weighted sum of all hidden states, SpecAugment, linear projection to 1024, two bidirectional LSTM layers of 1024 with
dropout, 200,000 updates of Adam at 1e-4 with 16 utterances each; the probe with the lowest WER on dev-clean is tested
(S3PRL's `downstream/asr`; Yang et al., 2021).
"""

from __future__ import annotations

import argparse

from . import ctc_options, recipe

HELP = "automatic speech recognition: word error rate of a CTC probe on characters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m laser_hf.superb asr`."""
    ctc_options.add_arguments(parser, recipe.ASR)


def run(arguments: argparse.Namespace) -> dict:
    """Train, choose, test; return the record."""
    from .ctc_run import run_command
    from .ctc_tasks import AsrTask

    return run_command(arguments, recipe.ASR, AsrTask)
