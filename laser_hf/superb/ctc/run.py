"""One command of a CTC task: read the corpus, train a head for each seed, decode, and write the record."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from ...cli import refuse_lonely_launch
from ...data import load_speech
from ...encoders import load_encoder
from ...errors import LaserError
from ...records import RESULTS, read_json, write_json
from ...runs import CONTENT, WRITING, RunFolder
from ..features import EncoderFeatures, pick_device
from ..frame_store import FrameStore, fill
from .data import Split, read_split
from .report import LOG_NAME, WEIGHTS_NAME, leave_run, summarise
from .task import CtcTask, changes, choose_recipes, is_superb
from .training import CtcTrainer

logger = logging.getLogger(__name__)

SUPERB_UTTERANCES = {"train": 28_539, "dev": 2_703, "test": 2_620}
"""Sizes of train-clean-100, dev-clean and test-clean, on which SUPERB's numbers are defined."""
OWNED = ("*/hyp.txt", "*/ref.txt", "*/worst.txt", "runs", "plots", LOG_NAME, WEIGHTS_NAME)
"""What a run leaves besides checkpoints, recipe and record: of several each below `seed-N` or `rate-R-seed-N`."""


def tidy(folder: RunFolder) -> None:
    """Delete what only an unfinished run needs."""
    for left in (*folder.path.glob("checkpoint-*"), folder.path / "features", folder.path / WRITING):
        shutil.rmtree(left, ignore_errors=True)


class Command:
    """What all runs of a command share: recipe, encoder, corpus, protocol.

    The protocol is the one asked for, or `quick` if the command differs from SUPERB's task: in values, data or lexicon.
    """

    def __init__(self, kind: type[CtcTask], arguments: argparse.Namespace) -> None:
        refuse_lonely_launch("-m laser_hf.superb ... --device cpu")
        self.arguments, self.began = arguments, time.time()
        if arguments.ddp_backend and os.environ.get("WORLD_SIZE", "1") == "1":
            raise LaserError("--ddp_backend is for several processes, started with accelerate launch")
        self.recipe, *_ = self.recipes = choose_recipes(arguments, kind.RECIPES)
        below = [f"{folder}/{name}" for folder in ("seed-*", "rate-*") for name in (*OWNED, RESULTS)]
        self.folder = RunFolder(arguments.output_dir, RESULTS, ("checkpoint-*", "features"), (*OWNED, *below))
        self.args = self.training_arguments()
        self.main = self.args.process_index == 0  # the process that writes
        if self.main:
            if self.folder.finished:  # and killed before it was tidy
                tidy(self.folder)
            self.folder.check(arguments.overwrite_output_dir)
        self.task = kind.from_arguments(arguments)
        encoder = load_encoder(arguments.model, arguments.revision, do_normalize=arguments.do_normalize)
        self.features = EncoderFeatures(encoder)
        self.model = self.features.describe(arguments.model)
        config = {name: value for name, value in encoder.base_config.to_dict().items() if name[0] != "_"}
        decides = [self.model["weights_sha256"], arguments.do_normalize, config]
        self.encoder = sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
        train, *_ = self.splits = self.read_splits()
        stack = getattr(self.recipe, "stack", 1)
        if all(self.features.frame_count(one.samples) // stack < len(one.target) for one in train.utterances):
            raise LaserError(f"split {train.name}: every target is longer than the frames of its utterance")

        self.changed = changes(self.recipe, kind.RECIPES["superb"]) | self.task.changed()
        here = {role: len(split) for role, split in zip(SUPERB_UTTERANCES, self.splits, strict=False)}
        if here != SUPERB_UTTERANCES:
            self.changed["utterances"] = {"superb": SUPERB_UTTERANCES, "here": here}
        is_superbs = all(is_superb(self.changed, recipe.learning_rate) for recipe in self.recipes)
        self.protocol = arguments.protocol if is_superbs else "quick"
        if self.main and self.protocol != arguments.protocol:
            why = "; ".join(f"{name} {one['superb']} -> {one['here']}" for name, one in self.changed.items())
            logger.warning("This is not SUPERB's recipe, and will be recorded as protocol quick, because of: %s", why)
        self.changed.pop("learning_rate", None)  # of several each head has its own
        self.title = f"{kind.NAME} on {Path(arguments.model).name} ({self.protocol})"
        if (kept := arguments.cache_features) != "no":
            everything = kept == "yes" or (kept, arguments.protocol) == ("auto", "quick")
            self.store_states(self.splits if everything else self.splits[1:2] if kept == "dev" else [])

    def training_arguments(self) -> TrainingArguments:
        """The Trainer's options."""
        given, recipe = vars(self.arguments), vars(self.recipe)
        decay = round(recipe.get("decay", 0) * recipe["max_steps"])
        return TrainingArguments(
            **{name: recipe[name] for name in ("max_steps", "learning_rate", "max_grad_norm", "eval_steps")},
            **{name: given[name] for name in ("seed", "dataloader_num_workers", "report_to", "ddp_backend")},
            output_dir=str(given["output_dir"]),
            disable_tqdm=given["disable_tqdm"],
            use_cpu=pick_device(given["device"]).type == "cpu",
            bf16=recipe["precision"] == "bf16",
            lr_scheduler_type="warmup_stable_decay" if decay else "constant",
            lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if decay else None,
            per_device_eval_batch_size=given["eval_batch_size"],
            eval_strategy="steps",
            save_steps=recipe["eval_steps"],
            save_total_limit=2,  # should the newest one be damaged
            logging_steps=given["logging_steps"] or max(recipe["eval_steps"] // 4, 1),
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
        )

    def read_splits(self) -> list[Split]:
        """The usable utterances of train, dev and tests; what an earlier start decoded is not decoded again."""
        given, shown = self.arguments, self.main and not self.arguments.disable_tqdm
        where = {"name": given.data_name, "revision": given.data_revision, "audio_column": given.audio_column}
        path, known, splits = self.folder.path / "features" / "recordings.json", {}, []
        with contextlib.suppress(LaserError):  # none yet, or damaged
            known = read_json(path, dict)
        for name in (given.train_split, given.dev_split, *given.test_split):
            speech, limit = load_speech(given.data, name, **where), None if splits else self.recipe.max_train_utterances
            splits.append(read_split(speech, name, self.task, known, self.features.shortest, limit, shown))
        if self.main:
            write_json(path, known)
        return splits

    def store_states(self, splits: Sequence[Split]) -> None:
        """Encode every utterance once; the main process encodes, the others read its files."""
        with self.args.main_process_first(local=False, desc="hidden states"):
            for split in splits:
                key = {"encoder": self.encoder, "utterances": split.digest()}
                place = self.folder.path / "features" / f"{self.splits.index(split)}-{split.folder_name}"
                split.store = FrameStore(place, range(self.features.layers), self.features.dim, key)
                if self.main:
                    self.features.encoder.to(self.args.device)
                    speech = ([utterance.id for utterance in split.utterances], split.samples, split.waveform)
                    progress = "" if self.arguments.disable_tqdm else f"hidden states, {split.name}"
                    fill(split.store, self.features, *speech, advice="use --cache_features no", progress=progress)

    def fingerprint(self) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that resumes it."""
        train, dev, *tests = (split.digest() for split in self.splits)
        rates = [recipe.learning_rate for recipe in self.recipes]
        return {
            "task": self.task.NAME,
            "recipe": dataclasses.asdict(self.recipe) | {"learning_rate": rates if len(rates) > 1 else rates[0]},
            **{name: getattr(self.arguments, name) for name in ("seed", "runs", "do_normalize")},
            CONTENT: {"model": self.encoder, "train_split": train, "dev_split": dev, "test_split": tests},
            **self.task.describe(),
        }

    def run(self) -> dict[str, Any]:
        """Train the heads, or go on with them, decode test and dev with the best weights, and finish the folder.

        Returns the record of `OUT/results.json`, which is empty on other processes than the first.
        """
        task, folder = self.task, self.folder
        with self.args.main_process_first(local=False, desc="preparing the output folder"):
            if self.main:
                folder.prepare(self.fingerprint())
            checkpoint = folder.last_checkpoint()
        heads, first = {}, self.arguments.seed
        for recipe, seed in product(self.recipes, range(first, first + self.arguments.runs)):
            set_seed(seed)
            heads[seed, recipe.learning_rate] = task.build_head(recipe, self.features.layers, self.features.dim)
        _, dev, *tests = self.splits
        trainer = CtcTrainer(self, heads)
        if checkpoint:
            logger.info("Resuming from %s", checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.load_best()
        decoded = [(split, trainer.decode(split)) for split in (*tests, dev)]
        record: dict[str, Any] = {}
        if self.main:
            records = []
            for number, (seed, rate) in enumerate(heads):
                named = f"rate-{rate:g}-seed-{seed}" if len(self.recipes) > 1 else f"seed-{seed}"
                place = folder.path / named if len(heads) > 1 else folder.path
                own = [(split, found[number][0]) for split, found in decoded]
                records.append(leave_run(self, place, trainer, number, own))
                if len(heads) > 1:
                    write_json(place / RESULTS, records[-1])
            record = records[0] if len(heads) == 1 else summarise(self, records)
            folder.finish(record)
            tidy(folder)
            logger.info("Everything is in %s", folder.path)
            for split in self.splits:
                if (skipped := split.counts()["skipped"])["share"] >= 0.02:
                    what = f"{skipped['share']:.0%} of {split.name} is left out: {skipped['by_kind']}"
                    print(f"Note: {what}" + "; --oov g2p keeps unknown words" * ("unknown_word" in skipped["by_kind"]))
            for metric in record["metrics"]:
                spread = f" ± {metric['standard_deviation']:.2f}" if "standard_deviation" in metric else ""
                print(f"{metric['split']} {metric['metric']}: {metric['value']:.2f}{spread} ({record['protocol']})")
        trainer.accelerator.wait_for_everyone()
        return record
