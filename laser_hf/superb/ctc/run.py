"""One command of a CTC task: read the corpus, train a head for each seed, decode, and write the record."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ...cli import refuse_lonely_launch
from ...data import load_speech
from ...encoders import load_encoder
from ...errors import LaserError
from ...plugins import Option
from ...records import RESULTS, plain, read_json, read_record, write_json
from ...runs import CONTENT, RECIPE_NAME, WRITING, RunFolder
from ..features import EncoderFeatures, pick_device
from ..frame_store import FrameStore, fill
from .data import Split, read_split
from .heads import WEIGHTS_NAME
from .report import make_record, plot_layer_weights, plot_training, summarise, write_decoded
from .task import CtcTask, changes, choose_recipe, is_superb
from .training import CtcTrainer

logger = logging.getLogger(__name__)

SUPERB_UTTERANCES = {"train": 28_539, "dev": 2_703, "test": 2_620}
"""Sizes of train-clean-100, dev-clean and test-clean, on which SUPERB's numbers are defined."""
WHOLE = {"runs": 1, "micro_batch_size": 1, "eval_batch_size": 1, "dataloader_num_workers": 0, "logging_steps": 1}
"""Smallest values of the options that are no values of a recipe."""
LOG_NAME = "training_log.json"
OWNED = ("*/hyp.txt", "*/ref.txt", "*/worst.txt", "runs", "plots", "features", LOG_NAME, WEIGHTS_NAME)
"""What a run leaves besides checkpoints, recipe and record."""


def run(kind: type[CtcTask], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run as the command line says and return the record of `OUT/results.json` (empty on other processes)."""
    began = time.time()
    refuse_lonely_launch("-m laser_hf.superb ... --device cpu")
    command = Command(kind, arguments)
    if arguments.runs == 1:
        record = command.train_and_test(arguments.seed, command.folder, began)
    else:
        seeds = range(arguments.seed, arguments.seed + arguments.runs)
        records = [command.run_of_several(seed, time.time() if number else began) for number, seed in enumerate(seeds)]
        record = summarise(command, records) if command.main else {}
        command.finish(command.folder, record)
    if command.main:
        logger.info("Everything is in %s", command.folder.path)
        for split in command.splits:
            if (skipped := split.counts()["skipped"])["share"] >= 0.02:
                what = f"{skipped['utterances']} utterances of {split.name} are skipped: {skipped['by_kind']}"
                print(f"Note: {skipped['share']:.0%} of the data is not measured. {what}")
        for metric in record["metrics"]:
            spread = f" ± {metric['standard_deviation']:.2f}" if "standard_deviation" in metric else ""
            print(f"{metric['split']} {metric['metric']}: {metric['value']:.2f}{spread} ({command.protocol})")
    return record


def run_folder(path: Path) -> RunFolder:
    """The folder of one run, or of several in `seed-N`."""
    below = (*OWNED, "checkpoint-*", "broken-checkpoint-*", RECIPE_NAME, RESULTS)
    return RunFolder(path, RESULTS, owned=(*OWNED, *(f"seed-*/{name}" for name in below)))


def tidy(folder: RunFolder) -> None:
    """Delete what only an unfinished run needs."""
    for left in (*folder.path.glob("checkpoint-*"), folder.path / "features", folder.path / WRITING):
        shutil.rmtree(left, ignore_errors=True)


class Command:
    """What all runs of a command share: recipe, encoder, corpus, protocol.

    The protocol is the one asked for, or `quick` if the command differs from SUPERB's task: in values, data or lexicon.
    """

    def __init__(self, kind: type[CtcTask], arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        for name, low in WHOLE.items():
            Option(name, None, "", int, low=low, flag=f"--{name}").check(getattr(arguments, name))
        if arguments.ddp_backend and os.environ.get("WORLD_SIZE", "1") == "1":
            raise LaserError("--ddp_backend is for several processes, started with accelerate launch")
        self.recipe = choose_recipe(arguments, kind.RECIPES)
        self.use_cpu = pick_device(arguments.device).type == "cpu"
        self.folder = run_folder(arguments.output_dir)
        self.args = self.training_arguments(kind, arguments.output_dir, arguments.seed)
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
        self.splits = [self.read(name, train=place == 0) for place, name in enumerate(names)]
        train = self.splits[0]
        if all(self.features.frame_count(one.samples) < len(one.target) for one in train.utterances):
            raise LaserError(f"split {train.name}: every target is longer than the frames of its utterance")

        self.changed = changes(self.recipe, kind.RECIPES["superb"]) | self.task.changed()
        here = {role: len(split) for role, split in zip(SUPERB_UTTERANCES, self.splits, strict=False)}
        if here != SUPERB_UTTERANCES:
            self.changed["utterances"] = {"superb": SUPERB_UTTERANCES, "here": here}
        self.protocol = arguments.protocol if is_superb(self.changed, self.recipe.learning_rate) else "quick"
        if self.main and self.protocol != arguments.protocol:
            why = "; ".join(f"{name} {one['superb']} -> {one['here']}" for name, one in self.changed.items())
            logger.warning("This is not SUPERB's recipe, and will be recorded as protocol quick, because of: %s", why)
        self.title = f"{kind.NAME} on {Path(arguments.model).name} ({self.protocol})"
        if arguments.cache_features == "yes" or (arguments.cache_features, arguments.protocol) == ("auto", "quick"):
            self.store_states()

    def finish(self, folder: RunFolder, record: dict[str, Any]) -> None:
        """Write the record of a run, which completes it."""
        if self.main:
            folder.finish(record)
            tidy(folder)

    def training_arguments(self, kind: type[CtcTask], output_dir: Path, seed: int) -> TrainingArguments:
        """The Trainer's options for one run."""
        arguments, recipe = self.arguments, self.recipe
        return TrainingArguments(
            output_dir=str(output_dir),
            max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate,
            optim="adamw_torch",  # without weight decay it is Adam, with torch's defaults as in S3PRL
            lr_scheduler_type="constant",
            max_grad_norm=recipe.max_grad_norm,
            seed=seed,
            bf16=recipe.precision == "bf16",
            per_device_eval_batch_size=arguments.eval_batch_size,
            eval_strategy="steps",
            eval_steps=recipe.eval_steps,
            save_steps=recipe.eval_steps,
            save_total_limit=2,  # the best one, and one that is whole while the next one is written
            metric_for_best_model=kind.PRIMARY,  # CtcTrainer.load_best
            greater_is_better=False,
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
        return read_split(speech, name, self.task, self.features.shortest, limit, shown)

    def store_states(self) -> None:
        """Encode every utterance once; the main process encodes, the others read its files."""
        with self.args.main_process_first(local=False, desc="hidden states"):
            for number, split in enumerate(self.splits):
                key = {"encoder": self.encoder, "utterances": split.digest()}
                place = self.folder.path / "features" / f"{number}-{split.folder_name}"
                split.store = FrameStore(place, range(self.features.layers), self.features.dim, key)
                if self.main:
                    self.features.encoder.to(self.args.device)
                    names = [utterance.id for utterance in split.utterances]
                    progress = "" if self.arguments.disable_tqdm else f"hidden states, {split.name}"
                    how = {"advice": "use --cache_features no", "progress": progress}
                    fill(split.store, self.features, names, split.samples, split.waveform, **how)

    def fingerprint(self, seed: int) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that resumes it."""
        roles, digests = ("train_split", "dev_split"), [split.digest() for split in self.splits]
        return {
            "task": self.task.NAME,
            "recipe": dataclasses.asdict(self.recipe),
            "seed": seed,
            "do_normalize": self.arguments.do_normalize,
            CONTENT: {"model": self.encoder, **dict(zip(roles, digests, strict=False)), "test_split": digests[2:]},
            **self.task.describe(),
        }

    def run_of_several(self, seed: int, began: float) -> dict[str, Any]:
        """The record of one of several runs; a finished one is not repeated."""
        folder = run_folder(self.folder.path / f"seed-{seed}")
        if folder.finished and read_json(folder.path / RECIPE_NAME) == plain(self.fingerprint(seed)):
            logger.info("seed %d is finished: %s", seed, folder.path)
            return read_record(folder.path / RESULTS)
        return self.train_and_test(seed, folder, began)

    def train_and_test(self, seed: int, folder: RunFolder, began: float) -> dict[str, Any]:
        """Train a head, or go on with it, decode test and dev with the best one, and finish the folder."""
        args, task = self.training_arguments(type(self.task), folder.path, seed), self.task
        with args.main_process_first(local=False, desc="preparing the output folder"):
            if self.main:
                folder.prepare(self.fingerprint(seed))
            checkpoint = folder.last_checkpoint()
        set_seed(seed)
        head = task.build_head(self.recipe, self.features.layers, self.features.dim)
        train, dev, *tests = self.splits
        size = self.arguments.micro_batch_size
        trainer = CtcTrainer(head, self.features, task, self.recipe, args, train, dev, size)
        before = time.time() - began
        if checkpoint:
            logger.info("Resuming from %s", checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trained, selected = trainer.trained_seconds(), trainer.load_best()
        metrics: list[dict[str, Any]] = []
        for split in (*tests, dev):
            decoded, _ = trainer.decode(split)
            values = task.metrics(decoded)
            metrics += [{"metric": m, "value": v, "unit": "percent", "split": split.name} for m, v in values.items()]
            if self.main:
                write_decoded(folder.path / split.folder_name, decoded, task)
        record: dict[str, Any] = {}
        if self.main:
            history, shares = trainer.state.log_history, head.weighted_sum.shares()
            save_file({name: weight.cpu() for name, weight in head.state_dict().items()}, folder.path / WEIGHTS_NAME)
            write_json(folder.path / LOG_NAME, {"log": history})
            plot_layer_weights({f"seed {seed}": shares}, folder.path / "plots" / "layer_weights.png", self.title)
            plot_training(history, task.PRIMARY, folder.path / "plots" / "training.png", self.title)
            about: dict[str, Any] = {"selected": selected, "layer_weights": shares}
            about["head"] = {"layers": self.features.layers, "dim": self.features.dim, "labels": list(task.LABELS)}
            about["head"]["parameters"] = sum(p.numel() for p in head.parameters())
            about["training"] = {
                "updates": trainer.state.global_step,
                "seconds": round(trained, 1),
                "updates_left_out": trainer.left_out(),
                "processes": args.world_size,
            }
            record = make_record(self, seed, before + trainer.trained_seconds(), metrics, **about)
            self.finish(folder, record)
        trainer.accelerator.wait_for_everyone()
        return record
