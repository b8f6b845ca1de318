"""Options that `asr` and `pr` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..results import PROTOCOLS
from .recipe import PROTOCOL_HELP, Recipe, add_recipe_arguments


def add_arguments(parser: argparse.ArgumentParser, recipes: dict[str, Recipe]) -> None:
    """Options that both tasks have."""
    add = parser.add_argument
    add("--model", required=True, help="encoder: hub id or folder (HuBERT, WavLM, wav2vec 2.0, data2vec-audio)")
    add("--model_revision", help="branch, tag or commit of the encoder")
    add(
        "--do_normalize",
        action="store_true",
        help="scale every waveform to zero mean and unit variance (base models: no; large ones: as pre-trained)",
    )
    add("--data", required=True, help="a LibriSpeech tree with transcripts, a saved data set, or a hub id")
    add("--data_name", help="configuration of a hub data set")
    add("--data_revision", help="revision of a hub data set")
    add("--audio_column", default="audio", help="audio column of a data set (its text column: `text`)")
    add("--train_split", default="train-clean-100", help="split, or sub-folder of the tree")
    add("--dev_split", default="dev-clean", help="chooses the probe")
    add("--test_split", default=["test-clean"], nargs="+", help="one or several; the first one gives the result")
    add("--output_dir", type=Path, required=True, help="results.json, probe, decoded files and plots go here")
    add("--protocol", choices=PROTOCOLS, default="superb", help=PROTOCOL_HELP)
    add("--runs", type=int, default=1, help="repeat with the seeds SEED, SEED+1, ...; mean and standard deviation")
    add("--seed", type=int, default=1337, help="of the (first) run")
    add_recipe_arguments(parser, recipes)
    machine = parser.add_argument_group("machine", "no effect on the result, but through rounding and random draws")
    add = machine.add_argument
    add("--bf16", action="store_true", help="mixed precision; not SUPERB's, and the record says so")
    add("--micro_batch_size", type=int, help="utterances in memory at once in training; default: the whole batch")
    add("--eval_batch_size", type=int, default=16, help="utterances decoded at once")
    add(
        "--cache_features",
        choices=("auto", "yes", "no"),
        default="auto",
        help="encode every utterance once and keep its hidden states on disk (float32); auto: with protocol quick",
    )
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode audio")
    add("--save_steps", type=int, help="steps between two checkpoints; default: as eval_steps")
    add("--logging_steps", type=int, help="steps between two lines of the log; default: a quarter of eval_steps")
    add("--report_to", default="tensorboard", help="where to log: tensorboard, wandb, none")
    add("--use_cpu", action="store_true", help="even if there is a GPU")
    add("--ddp_backend", help="gloo for several processes on a CPU")
    add("--disable_tqdm", action="store_true", help="no progress bars")
    add("--overwrite_output_dir", action="store_true", help="start over: delete what an earlier run left there")
