"""What decides the result of a probe, as SUPERB has it and as a small corpus and a CPU can bear."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any

PROTOCOL_HELP = (
    "superb: the exact recipe, for full LibriSpeech and a GPU. quick: for small corpora and CPUs; its numbers are no "
    "SUPERB numbers, and every record says so"
)
TUNABLE = ("learning_rate",)
"""The one value SUPERB's rules let everyone tune (1e-1 to 1e-7); another value keeps the protocol's name."""


def _value(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class Recipe:
    """Values common to both probes. Defaults are SUPERB's."""

    max_steps: int = _value(200_000, "optimiser steps")
    eval_steps: int = _value(2_000, "steps between two decodings of the dev split, which choose the probe")
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
    """CTC on phones: a frame-wise linear probe.

    The learning rate is the one the published HuBERT and WavLM numbers were made with; S3PRL's configuration file has
    1e-2, with which they are not reached.
    """

    max_steps: int = _value(100_000, "optimiser steps")
    eval_steps: int = _value(1_000, "steps between two decodings of the dev split, which choose the probe")
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


def add_recipe_arguments(parser: argparse.ArgumentParser, recipes: dict[str, Recipe]) -> None:
    """One option for each value of the recipe; left out, the protocol decides."""
    group = parser.add_argument_group(
        "recipe", "values of the protocol (superb / quick); changing one makes the record say so, and not say superb"
    )
    superb, quick = recipes["superb"], recipes["quick"]
    for entry in dataclasses.fields(superb):
        if entry.name == "precision":
            continue  # --bf16
        values = getattr(superb, entry.name), getattr(quick, entry.name)
        group.add_argument(
            f"--{entry.name}",
            type=entry.metadata.get("kind", type(values[0])),
            default=argparse.SUPPRESS,
            help=f"{entry.metadata['help']} ({_shown(values[0])} / {_shown(values[1])})",
        )


def _shown(value: Any) -> str:
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def choose_recipe(arguments: argparse.Namespace, recipes: dict[str, Recipe]) -> Recipe:
    """The protocol's recipe with the values given on the command line.

    Raises:
        ValueError: a value out of range.
    """
    recipe = recipes[arguments.protocol]
    given = {
        entry.name: getattr(arguments, entry.name)
        for entry in dataclasses.fields(recipe)
        if hasattr(arguments, entry.name)
    }
    recipe = dataclasses.replace(recipe, **given, precision="bf16" if arguments.bf16 else "fp32")
    for name in ("max_steps", "eval_steps", "batch_size", "projection_size", "learning_rate", "max_grad_norm"):
        if not getattr(recipe, name) > 0:
            raise ValueError(f"--{name} must be positive, got {getattr(recipe, name)}")
    if recipe.max_train_utterances is not None and recipe.max_train_utterances < 2:
        raise ValueError(f"--max_train_utterances must be at least 2, got {recipe.max_train_utterances}")
    return recipe


def changes(recipe: Recipe, superb: Recipe) -> dict[str, dict[str, Any]]:
    """Values in which `recipe` differs from SUPERB's: `{name: {"superb": ..., "here": ...}}`."""
    return {
        name: {"superb": value, "here": getattr(recipe, name)}
        for name, value in dataclasses.asdict(superb).items()
        if getattr(recipe, name) != value
    }


def is_superb(changed: dict[str, Any], learning_rate: float) -> bool:
    """Whether a run with these changes may carry the name superb: SUPERB lets the learning rate be tuned."""
    return set(changed) <= set(TUNABLE) and 1e-7 <= learning_rate <= 1e-1
