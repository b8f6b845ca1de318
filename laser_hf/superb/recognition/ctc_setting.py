"""What all runs of one `asr` or `pr` command have in common, and in what it differs from SUPERB's task."""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .corpus import Split
from .ctc_tasks import CtcTask
from .featurizer import FrozenFeatures
from .recipe import Recipe, changes, is_superb

SUPERB_UTTERANCES = {"train": 28_539, "dev": 2_703, "test": 2_620}
"""Sizes of train-clean-100, dev-clean and test-clean, on which SUPERB's numbers are defined."""


@dataclass
class Setting:
    """Command line, task, recipe, encoder and corpus of a command.

    Attributes:
        arguments: the command line.
        recipe: values of the recipe as chosen.
        superb: SUPERB's values of the same recipe.
        task: targets and metrics.
        features: the frozen encoder's hidden states.
        model: the encoder as a record names it, from `describe_model`.
        train: utterances to train on.
        dev: utterances by which the best probe is chosen.
        tests: splits that are reported, the first one as the task's primary metric.
    """

    arguments: argparse.Namespace
    recipe: Recipe
    superb: Recipe
    task: CtcTask
    features: FrozenFeatures
    model: dict[str, Any]
    train: Split
    dev: Split
    tests: list[Split]

    @property
    def splits(self) -> list[Split]:
        """All splits, training first."""
        return [self.train, self.dev, *self.tests]

    @cached_property
    def changed(self) -> dict[str, Any]:
        """In what this command differs from SUPERB's task: values, data, lexicon."""
        changed: dict[str, Any] = changes(self.recipe, self.superb)
        here = {"train": len(self.train), "dev": len(self.dev), "test": len(self.tests[0])}
        if here != SUPERB_UTTERANCES:
            changed["utterances"] = {"superb": SUPERB_UTTERANCES, "here": here}
        if self.task.name == "pr" and not self.task.lexicon.is_superbs:
            changed["lexicon"] = {"superb": "its two files", "here": self.task.lexicon.source}
        return changed

    @property
    def protocol(self) -> str:
        """The protocol asked for, or "quick" where the command differs from SUPERB's task."""
        return self.arguments.protocol if is_superb(self.changed, self.recipe.learning_rate) else "quick"

    @property
    def title(self) -> str:
        """Heading of the plots."""
        return f"{self.task.name} on {Path(self.arguments.model).name} ({self.protocol})"

    def fingerprint(self, seed: int) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that resumes it."""
        return {
            "task": self.task.name,
            "recipe": dataclasses.asdict(self.recipe),
            "seed": seed,
            "model": self.model["weights_sha256"],
            "do_normalize": self.arguments.do_normalize,
            "utterances": [split.digest() for split in self.splits],
            **self.task.describe(),
        }

    def describe_probe(self, seed: int) -> dict[str, Any]:
        """What must be known to rebuild and use the probe of a run."""
        return {
            "task": self.task.name,
            "protocol": self.protocol,
            "recipe": dataclasses.asdict(self.recipe),
            "layers": self.features.layers,
            "dim": self.features.dim,
            "vocabulary": list(self.task.vocabulary),
            **self.model,
            "do_normalize": self.arguments.do_normalize,
            "seed": seed,
        }

    def describe(self) -> dict[str, Any]:
        """What the records of all runs of a command have in common."""
        arguments = self.arguments
        return {
            "task": self.task.name,
            "protocol": self.protocol,
            "model": self.model,
            "data": {
                "source": arguments.data,
                "name": arguments.data_name,
                "revision": data_revision(self.train.speech) or arguments.data_revision,
                "train": self.train.counts(),
                "dev": self.dev.counts(),
                "test": [split.counts() for split in self.tests],
            },
            "hyper_parameters": {
                **dataclasses.asdict(self.recipe),
                "optimizer": "Adam",
                "frozen_encoder": True,
                "do_normalize": arguments.do_normalize,
                "cached_features": self.train.cache is not None,
                "micro_batch_size": arguments.micro_batch_size,
                **self.task.describe(),
            },
            "changed_from_superb": self.changed,
        }


def data_revision(speech: Any) -> str | None:
    """Commit of a hub data set, from the addresses of its files."""
    for address in speech.info.download_checksums or ():
        found = re.search(r"@([0-9a-f]{40})/", str(address))
        if found:
            return found.group(1)
    return None
