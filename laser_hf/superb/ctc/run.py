"""One command of a CTC task: read the corpus, train a head for each seed, decode, and write the record."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ...cli import refuse_lonely_launch
from ...data import load_speech
from ...encoders import load_encoder
from ...errors import LaserError
from ...plugins import Option
from ...records import RESULTS, write_json
from ...runs import CONTENT, WRITING, RunFolder
from ..features import EncoderFeatures, pick_device
from ..frame_store import FrameStore, fill
from .data import Known, Split, read_split
from .heads import WEIGHTS_NAME
from .report import LOG_NAME, leave_run, summarise
from .task import CtcTask, changes, choose_recipes, is_superb
from .training import CtcTrainer

logger = logging.getLogger(__name__)

SUPERB_UTTERANCES = {"train": 28_539, "dev": 2_703, "test": 2_620}
"""Sizes of train-clean-100, dev-clean and test-clean, on which SUPERB's numbers are defined."""
WHOLE = {"runs": 1, "micro_batch_size": 1, "eval_batch_size": 1, "dataloader_num_workers": 0, "logging_steps": 1}
"""Smallest values of the options that are no values of a recipe."""
OWNED = ("*/hyp.txt", "*/ref.txt", "*/worst.txt", "runs", "plots", LOG_NAME, WEIGHTS_NAME)
"""What a run leaves besides checkpoints, recipe and record."""


def run(kind: type[CtcTask], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run as the command line says and return the record of `OUT/results.json` (empty on other processes)."""
    refuse_lonely_launch("-m laser_hf.superb ... --device cpu")
    command = Command(kind, arguments)
    record = command.train_and_test()
    if command.main:
        logger.info("Everything is in %s", command.folder.path)
        for split in command.splits:
            if (skipped := split.counts()["skipped"])["share"] >= 0.02:
                what = f"{skipped['share']:.0%} of the utterances of {split.name} are left out: {skipped['by_kind']}"
                print(f"Note: {what}" + "; --oov g2p keeps unknown words" * ("unknown_word" in skipped["by_kind"]))
        for metric in record["metrics"]:
            spread = f" ± {metric['standard_deviation']:.2f}" if "standard_deviation" in metric else ""
            print(f"{metric['split']} {metric['metric']}: {metric['value']:.2f}{spread} ({record['protocol']})")
    return record


def run_folder(path: Path) -> RunFolder:
    """The folder of one run, or of several in `seed-N` or `rate-R-seed-N`."""
    below = [f"{folder}/{name}" for folder in ("seed-*", "rate-*") for name in (*OWNED, RESULTS)]
    return RunFolder(path, RESULTS, progress=("checkpoint-*", "features"), owned=(*OWNED, *below))


def tidy(folder: RunFolder) -> None:
    """Delete what only an unfinished run needs."""
    for left in (*folder.path.glob("checkpoint-*"), folder.path / "features", folder.path / WRITING):
        shutil.rmtree(left, ignore_errors=True)


class Command:
    """What all runs of a command share: recipe, encoder, corpus, protocol.

    The protocol is the one asked for, or `quick` if the command differs from SUPERB's task: in values, data or lexicon.
    """

    def __init__(self, kind: type[CtcTask], arguments: argparse.Namespace) -> None:
        self.arguments, self.began = arguments, time.time()
        for name, low in WHOLE.items():
            Option(name, None, "", int, low=low, flag=f"--{name}").check(getattr(arguments, name))
        if arguments.ddp_backend and os.environ.get("WORLD_SIZE", "1") == "1":
            raise LaserError("--ddp_backend is for several processes, started with accelerate launch")
        self.recipes = choose_recipes(arguments, kind.RECIPES)
        self.recipe = self.recipes[0]
        self.use_cpu = pick_device(arguments.device).type == "cpu"
        self.folder = run_folder(arguments.output_dir)
        self.args = self.training_arguments()
        if unknown := set(self.args.report_to) - {*INTEGRATION_TO_CALLBACK}:
            raise LaserError(f"--report_to {unknown.pop()} is none of {', '.join(INTEGRATION_TO_CALLBACK)}")
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
        encoder = [self.model["weights_sha256"], arguments.do_normalize, config]
        self.encoder = sha256(json.dumps(encoder, sort_keys=True, default=str).encode()).hexdigest()
        names = (arguments.train_split, arguments.dev_split, *arguments.test_split)
        self.known = Known(self.folder.path / "features" / "recordings.json")
        self.splits = [self.read(name, train=place == 0) for place, name in enumerate(names)]
        if self.main:
            self.known.save()
        train = self.splits[0]
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
        arguments, recipe = self.arguments, self.recipe
        decay = round(getattr(recipe, "decay", 0) * recipe.max_steps)
        return TrainingArguments(
            output_dir=str(arguments.output_dir),
            max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="warmup_stable_decay" if decay else "constant",
            lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if decay else None,
            max_grad_norm=recipe.max_grad_norm,
            seed=arguments.seed,
            bf16=recipe.precision == "bf16",
            per_device_eval_batch_size=arguments.eval_batch_size,
            eval_strategy="steps",
            eval_steps=recipe.eval_steps,
            save_steps=recipe.eval_steps,
            save_total_limit=2,  # should the newest one be damaged
            logging_steps=arguments.logging_steps or max(recipe.eval_steps // 4, 1),
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_num_workers=arguments.dataloader_num_workers,
            report_to=arguments.report_to,
            use_cpu=self.use_cpu,
            ddp_backend=arguments.ddp_backend,
            ddp_find_unused_parameters=False,
            disable_tqdm=arguments.disable_tqdm,
        )

    def read(self, name: str, train: bool) -> Split:
        """The usable utterances of a split."""
        given, limit = self.arguments, self.recipe.max_train_utterances if train else None
        where = {"name": given.data_name, "revision": given.data_revision, "audio_column": given.audio_column}
        speech, shown = load_speech(given.data, name, **where), self.main and not given.disable_tqdm
        return read_split(speech, name, self.task, self.features.shortest, limit, shown, self.known)

    def store_states(self, splits: Sequence[Split]) -> None:
        """Encode every utterance once; the main process encodes, the others read its files."""
        with self.args.main_process_first(local=False, desc="hidden states"):
            for split in splits:
                key = {"encoder": self.encoder, "utterances": split.digest()}
                place = self.folder.path / "features" / f"{self.splits.index(split)}-{split.folder_name}"
                split.store = FrameStore(place, range(self.features.layers), self.features.dim, key)
                if self.main:
                    self.features.encoder.to(self.args.device)
                    names = [utterance.id for utterance in split.utterances]
                    progress = "" if self.arguments.disable_tqdm else f"hidden states, {split.name}"
                    how = {"advice": "use --cache_features no", "progress": progress}
                    fill(split.store, self.features, names, split.samples, split.waveform, **how)

    def fingerprint(self) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that resumes it."""
        roles, digests = ("train_split", "dev_split"), [split.digest() for split in self.splits]
        rates = [recipe.learning_rate for recipe in self.recipes]
        return {
            "task": self.task.NAME,
            "recipe": dataclasses.asdict(self.recipe) | {"learning_rate": rates if len(rates) > 1 else rates[0]},
            "seed": self.arguments.seed,
            "runs": self.arguments.runs,
            "do_normalize": self.arguments.do_normalize,
            CONTENT: {"model": self.encoder, **dict(zip(roles, digests, strict=False)), "test_split": digests[2:]},
            **self.task.describe(),
        }

    def train_and_test(self) -> dict[str, Any]:
        """Train the heads, or go on with them, decode test and dev with the best weights, and finish the folder."""
        args, task, folder = self.args, self.task, self.folder
        with args.main_process_first(local=False, desc="preparing the output folder"):
            if self.main:
                folder.prepare(self.fingerprint())
            checkpoint = folder.last_checkpoint()
        heads = {}
        for recipe in self.recipes:
            for seed in range(self.arguments.seed, self.arguments.seed + self.arguments.runs):
                set_seed(seed)
                heads[seed, recipe.learning_rate] = task.build_head(recipe, self.features.layers, self.features.dim)
        train, dev, *tests = self.splits
        size = self.arguments.micro_batch_size
        trainer = CtcTrainer(heads, self.features, task, self.recipe, args, train, dev, size)
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
        trainer.accelerator.wait_for_everyone()
        return record
