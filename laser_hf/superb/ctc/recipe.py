"""What decides the result of a CTC head, as SUPERB has it or for a small corpus and a CPU, and its options."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import LaserError


def _value(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class Recipe:
    """Values of both tasks. The defaults are SUPERB's."""

    max_steps: int = _value(200_000, "updates")
    eval_steps: int = _value(2_000, "updates between two decodings of the dev split, which choose the head")
    learning_rate: float = _value(1e-4, "of Adam, constant")
    max_grad_norm: float = _value(1.0, "gradients are clipped to this norm")
    batch_size: int = _value(16, "utterances of a batch")
    projection_size: int = _value(1024, "dimension to which features are projected first")
    max_train_utterances: int | None = _value(
        None, "train on so many utterances, spread evenly over the split", kind=int
    )
    precision: str = _value("fp32", "fp32 or bf16 (mixed)")


@dataclass(frozen=True)
class AsrRecipe(Recipe):
    """CTC on characters: two bidirectional LSTM layers, SpecAugment on the weighted sum."""

    halve_above_samples: int = _value(2_000, "twice batch_size utterances are one batch up to this length (samples)")
    lstm_size: int = _value(1024, "units of an LSTM, per direction")
    lstm_layers: int = _value(2, "bidirectional LSTM layers")
    dropout: float = _value(0.2, "after each LSTM layer")
    warp_window: int = _value(5, "SpecAugment: frames by which time is warped at most")
    feature_masks: int = _value(4, "SpecAugment: masks over dimensions")
    feature_mask_width: int = _value(50, "SpecAugment: their width stays below this")
    time_masks: int = _value(2, "SpecAugment: masks over time")
    time_mask_width: int = _value(40, "SpecAugment: their width in frames stays below this")


@dataclass(frozen=True)
class PrRecipe(Recipe):
    """CTC on phones: a linear head for each frame.

    The published HuBERT and WavLM numbers were made with this learning rate. S3PRL's configuration file has 1e-2, with
    which they are not reached.
    """

    max_steps: int = _value(100_000, "updates")
    eval_steps: int = _value(1_000, "updates between two decodings of the dev split, which choose the head")
    learning_rate: float = _value(5e-4, "of Adam, constant (S3PRL's file has 1e-2: too high)")
    projection_size: int = _value(256, "dimension between the two linear layers")
    halve_above_samples: int = _value(300_000, "a batch that starts with a longer utterance (samples) is halved")
    batches_per_update: int = _value(2, "gradient accumulation")


ASR = {
    "superb": AsrRecipe(),
    "quick": AsrRecipe(
        max_steps=600,
        eval_steps=100,
        learning_rate=3e-3,
        batch_size=8,
        projection_size=128,
        max_train_utterances=600,
        lstm_size=128,
        warp_window=0,
        feature_masks=2,
        feature_mask_width=16,
        time_masks=1,
    ),
}
PR = {
    "superb": PrRecipe(),
    "quick": PrRecipe(max_steps=200, eval_steps=50, learning_rate=5e-3, batch_size=8, max_train_utterances=300),
}


def choose_recipe(arguments: argparse.Namespace, recipes: dict[str, Recipe]) -> Recipe:
    """The protocol's recipe with the values given on the command line.

    Raises:
        LaserError: a value out of range.
    """
    recipe = recipes[arguments.protocol]
    given = {name: value for name, value in vars(arguments).items() if name in dataclasses.asdict(recipe)}
    recipe = dataclasses.replace(recipe, **given, precision="bf16" if arguments.bf16 else "fp32")
    for name in ("max_steps", "eval_steps", "batch_size", "projection_size", "learning_rate", "max_grad_norm"):
        if not getattr(recipe, name) > 0:
            raise LaserError(f"--{name} must be positive, got {getattr(recipe, name)}")
    if recipe.max_train_utterances is not None and recipe.max_train_utterances < 2:
        raise LaserError(f"--max_train_utterances must be at least 2, got {recipe.max_train_utterances}")
    return recipe


def changes(recipe: Recipe, superb: Recipe) -> dict[str, dict[str, Any]]:
    """Values in which `recipe` differs from SUPERB's: `{name: {"superb": ..., "here": ...}}`."""
    return {
        name: {"superb": value, "here": getattr(recipe, name)}
        for name, value in dataclasses.asdict(superb).items()
        if getattr(recipe, name) != value
    }


def is_superb(changed: dict[str, Any], learning_rate: float) -> bool:
    """Whether a run with these changes may carry the name superb: SUPERB's rules let the learning rate be tuned."""
    return set(changed) <= {"learning_rate"} and 1e-7 <= learning_rate <= 1e-1


def add_arguments(parser: argparse.ArgumentParser, recipes: Mapping[str, Recipe]) -> None:
    """Options of every CTC task; one for each value of the recipe, which the protocol decides if it is not given."""
    add = parser.add_argument
    add("--model", required=True, help="encoder: hub id or folder (HuBERT, WavLM, wav2vec 2.0, data2vec-audio)")
    add("--revision", help="branch, tag or commit of the encoder")
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
    add("--dev_split", default="dev-clean", help="chooses the head")
    add("--test_split", default=["test-clean"], nargs="+", help="one or several; the first one gives the result")
    add("--output_dir", type=Path, required=True, help="results.json, head, decoded files and plots go here")
    add("--overwrite_output_dir", action="store_true", help="start over: delete what an earlier run left there")
    add(
        "--protocol",
        choices=tuple(recipes),
        default="superb",
        help="superb: the exact recipe, for full LibriSpeech and a GPU. quick: for small corpora and CPUs; its numbers "
        "are no SUPERB numbers, and every record says so",
    )
    add("--runs", type=int, default=1, help="repeat with the seeds SEED, SEED+1, ...; mean and standard deviation")
    add("--seed", type=int, default=1337, help="of the (first) run")
    add = parser.add_argument_group(
        "recipe", "values of the protocol (superb / quick); a changed value is recorded, and is not called superb"
    ).add_argument
    superb, quick = recipes["superb"], recipes["quick"]
    for entry in dataclasses.fields(superb):
        if entry.name == "precision":
            continue  # --bf16
        values = getattr(superb, entry.name), getattr(quick, entry.name)
        shown = " / ".join("all" if value is None else f"{value:g}" for value in values)
        kind = entry.metadata.get("kind", type(values[0]))
        add(f"--{entry.name}", type=kind, default=argparse.SUPPRESS, help=f"{entry.metadata['help']} ({shown})")
    add = parser.add_argument_group("machine", "these change a result by rounding and random draws only").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    add("--bf16", action="store_true", help="mixed precision; not SUPERB's, and the record says so")
    add("--micro_batch_size", type=int, help="utterances in memory at once in training; by default the whole batch")
    add("--eval_batch_size", type=int, default=16, help="utterances decoded at once")
    add(
        "--cache_features",
        choices=("auto", "yes", "no"),
        default="auto",
        help="encode every utterance once and keep its hidden states on disk (float32); auto: with protocol quick",
    )
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode audio")
    add("--logging_steps", type=int, help="updates between two lines of the log; by default a quarter of eval_steps")
    add("--report_to", default="tensorboard", help="where to log: tensorboard, wandb, none")
    add("--ddp_backend", help="gloo for several processes on a CPU")
    add("--disable_tqdm", action="store_true", help="no progress bars")
