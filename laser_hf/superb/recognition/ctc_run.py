"""One `asr` or `pr` command: corpus, one or several runs with different seeds, probe, decoded files, record, plots."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from ...encoders import load_encoder, receptive_field
from ...records import read_json, write_json
from ..results import FILE_NAME, describe_model, write_results
from .corpus import Split, Waveforms, read_split
from .ctc_tasks import CtcTask
from .decoded_files import write_decoded
from .featurizer import FeatureCache, FrozenFeatures
from .figures import plot_layer_weights, plot_probe_training
from .probe_training import STATE_NAME, ProbeTrainer
from .probes import build_probe, save_probe
from .recipe import Recipe, changes, choose_recipe, is_superb

logger = logging.getLogger(__name__)

SUPERB_UTTERANCES = {"train": 28_539, "dev": 2_703, "test": 2_620}
"""Sizes of train-clean-100, dev-clean and test-clean, on which SUPERB's numbers are defined."""
RECIPE_NAME = "recipe.json"
LOG_NAME = "training_log.json"


class RunError(ValueError):
    """A run that cannot start as asked; the message says how to mend it."""


def run_command(arguments: argparse.Namespace, recipes: dict[str, Recipe], make_task: Callable[[], CtcTask]) -> dict:
    """Run as the command line says and return the record of `OUT/results.json`.

    Errors a user can mend end the process with their message and exit status 1.
    """
    began = time.time()
    try:
        return _Command(arguments, recipes, make_task, began).run()
    except (ValueError, OSError) as error:
        logger.debug("", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def launched_alone() -> bool:
    """Whether `accelerate launch --cpu --num_processes N` left this process without its companions."""
    env = os.environ
    alone = not any(name in env for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
    return alone and "MASTER_ADDR" in env and env.get("ACCELERATE_USE_CPU", "").lower() == "true"


class _Command:
    def __init__(
        self,
        arguments: argparse.Namespace,
        recipes: dict[str, Recipe],
        make_task: Callable[[], CtcTask],
        began: float,
    ):
        self.arguments = arguments
        self.began = began
        if arguments.runs < 1:
            raise RunError(f"--runs must be positive, got {arguments.runs}")
        if launched_alone():
            raise RunError(
                "accelerate launch --cpu started one process although several were asked for: without MPI it can do no "
                "more. Use: accelerate launch --multi_gpu --num_processes 2 -m laser_hf.superb ... --use_cpu "
                "--ddp_backend gloo"
            )
        self.recipe = choose_recipe(arguments, recipes)
        self.superb = recipes["superb"]
        self.output_dir = Path(arguments.output_dir)
        self.main = self.training_arguments(self.output_dir, arguments.seed).process_index == 0
        _set_up_logging(self.main)
        if self.main:
            prepare_folder(self.output_dir, arguments.overwrite_output_dir)
        self.task = make_task()

    def training_arguments(self, output_dir: Path, seed: int) -> TrainingArguments:
        """The Trainer's options for one run."""
        arguments, recipe = self.arguments, self.recipe
        return TrainingArguments(
            output_dir=str(output_dir),
            max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=recipe.max_grad_norm,
            seed=seed,
            bf16=arguments.bf16,
            eval_strategy="steps",
            eval_steps=recipe.eval_steps,
            save_strategy="steps",
            save_steps=arguments.save_steps or recipe.eval_steps,
            save_total_limit=1,
            logging_steps=arguments.logging_steps or max(recipe.eval_steps // 4, 1),
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_num_workers=arguments.dataloader_num_workers,
            report_to=arguments.report_to,
            use_cpu=arguments.use_cpu,
            ddp_backend=arguments.ddp_backend,
            ddp_find_unused_parameters=False,
            disable_tqdm=arguments.disable_tqdm,
        )

    # ---- what all runs share ----

    def run(self) -> dict[str, Any]:
        arguments = self.arguments
        encoder = load_encoder(arguments.model, revision=arguments.model_revision, do_normalize=arguments.do_normalize)
        self.features = FrozenFeatures(encoder)
        self.model = describe_model(arguments.model, encoder)
        self.read_corpus(receptive_field(encoder.config))
        self.changed = self.changes()
        self.protocol = arguments.protocol if is_superb(self.changed, self.recipe.learning_rate) else "quick"
        if self.main and arguments.protocol == "superb" and self.protocol != "superb":
            logger.warning(
                "This is not SUPERB's recipe, and will be recorded as protocol quick, because of: %s",
                "; ".join(f"{name} {change['superb']} -> {change['here']}" for name, change in self.changed.items()),
            )
        seeds = range(arguments.seed, arguments.seed + arguments.runs)
        self.cache_features(self.training_arguments(self.output_dir, arguments.seed))
        if arguments.runs == 1:
            record = self.run_once(arguments.seed, self.output_dir)
        else:
            records = [self.run_or_reuse(seed) for seed in seeds]
            record = self.summarise(records) if self.main else {}
        if self.main:
            for split in self.splits():
                if split.cache is not None:
                    split.cache.delete()
            logger.info("Everything is in %s", self.output_dir)
            for metric in record["metrics"]:
                spread = f" ± {metric['standard_deviation']:.2f}" if "standard_deviation" in metric else ""
                print(f"{metric['split']} {metric['metric']}: {metric['value']:.2f}{spread} ({self.protocol})")
        return record

    def read_corpus(self, shortest: int) -> None:
        arguments = self.arguments

        def read(split: str, limit: int | None = None) -> Split:
            return read_split(
                arguments.data,
                split,
                self.task.encode,
                name=arguments.data_name,
                revision=arguments.data_revision,
                audio_column=arguments.audio_column,
                limit=limit,
                shortest=shortest,
                progress=self.main and not arguments.disable_tqdm,
            )

        self.train = read(arguments.train_split, self.recipe.max_train_utterances)
        self.dev = read(arguments.dev_split)
        self.tests = [read(split) for split in arguments.test_split]

    def splits(self) -> list[Split]:
        return [self.train, self.dev, *self.tests]

    def changes(self) -> dict[str, Any]:
        """In what this command differs from SUPERB's task: values, data, lexicon."""
        changed: dict[str, Any] = changes(self.recipe, self.superb)
        here = {"train": len(self.train), "dev": len(self.dev), "test": len(self.tests[0])}
        if here != SUPERB_UTTERANCES:
            changed["utterances"] = {"superb": SUPERB_UTTERANCES, "here": here}
        if self.task.name == "pr" and not self.task.lexicon.is_superbs:
            changed["lexicon"] = {"superb": "its two files", "here": self.task.lexicon.source}
        return changed

    def cache_features(self, args: TrainingArguments) -> None:
        """Encode every utterance once, where that pays."""
        choice = self.arguments.cache_features
        if choice == "no" or (choice == "auto" and self.arguments.protocol != "quick"):
            return
        self.features.to(args.device)
        with args.main_process_first(local=False, desc="hidden states"):
            for number, split in enumerate(self.splits()):
                cache = FeatureCache(self.output_dir / "features", f"{number}-{_file_name(split.name)}")
                key = {
                    "weights": self.model["weights_sha256"],
                    "do_normalize": self.arguments.do_normalize,
                    "utterances": split.digest(),
                }
                if self.main:
                    cache.build(self.features, Waveforms(split), split.samples, key, args.device)
                split.cache = cache

    # ---- one run ----

    def run_or_reuse(self, seed: int) -> dict[str, Any]:
        """The record of one of several runs; finished ones are not repeated."""
        folder = self.output_dir / f"seed-{seed}"
        if (folder / FILE_NAME).is_file() and read_json(folder / RECIPE_NAME) == self.fingerprint(seed):
            logger.info("seed %d is finished: %s", seed, folder)
            return read_json(folder / FILE_NAME)
        prepare_folder(folder, False)
        return self.run_once(seed, folder)

    def fingerprint(self, seed: int) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that resumes it."""
        return {
            "task": self.task.name,
            "recipe": dataclasses.asdict(self.recipe),
            "seed": seed,
            "model": self.model["weights_sha256"],
            "do_normalize": self.arguments.do_normalize,
            "utterances": [split.digest() for split in self.splits()],
            **self.task.describe(),
        }

    def run_once(self, seed: int, folder: Path) -> dict[str, Any]:
        began = self.began if folder == self.output_dir else time.time()
        args = self.training_arguments(folder, seed)
        fingerprint = self.fingerprint(seed)
        with args.main_process_first(local=False, desc="preparing the output folder"):
            checkpoint = last_complete_checkpoint(folder)
            check_fingerprint(folder, checkpoint, fingerprint)
            if self.main:
                write_json(folder / RECIPE_NAME, fingerprint)
        set_seed(seed)
        probe = build_probe(self.recipe, self.features.layers, self.features.dim, len(self.task.vocabulary))
        trainer = ProbeTrainer(
            probe,
            self.features,
            self.task,
            self.recipe,
            args,
            self.train,
            self.dev,
            self.arguments.micro_batch_size,
            self.arguments.eval_batch_size,
        )
        if checkpoint:
            logger.info("Resuming from %s", checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.accelerator.wait_for_everyone()
        trainer.load_best()
        metrics, dev_metrics = [], []
        for split in (*self.tests, self.dev):
            decoded, _ = trainer.decode(split, f"decoding {split.name}")
            values = self.task.metrics(decoded)
            entries = [{"metric": m, "value": v, "unit": "percent", "split": split.name} for m, v in values.items()]
            (dev_metrics if split is self.dev else metrics).extend(entries)
            if self.main:
                write_decoded(folder / _file_name(split.name), decoded, self.task.written, self.task.name)
        record: dict[str, Any] = {}
        if self.main:
            record = self.finish(folder, seed, trainer, [*metrics, *dev_metrics], began)
        trainer.accelerator.wait_for_everyone()
        return record

    def finish(self, folder: Path, seed: int, trainer: ProbeTrainer, metrics: list[dict], began: float) -> dict:
        """Leave probe, plots and record of one run."""
        probe, state = trainer.model, trainer.own_state()
        shares = probe.weighted_sum.shares()
        save_probe(
            folder,
            probe,
            {
                "task": self.task.name,
                "protocol": self.protocol,
                "recipe": dataclasses.asdict(self.recipe),
                "layers": self.features.layers,
                "dim": self.features.dim,
                "vocabulary": list(self.task.vocabulary),
                **self.model,
                "do_normalize": self.arguments.do_normalize,
                "seed": seed,
            },
        )
        write_json(folder / LOG_NAME, {"log": trainer.state.log_history})
        plots = folder / "plots"
        plots.mkdir(exist_ok=True)
        title = f"{self.task.name} on {Path(self.arguments.model).name} ({self.protocol})"
        plot_layer_weights({f"seed {seed}": shares}, plots / "layer_weights.png", title)
        plot_probe_training(trainer.state.log_history, self.task.primary, plots / "training.png", title)
        record = write_results(
            folder,
            seed=seed,
            wall_seconds=time.time() - began,
            metrics=metrics,
            selected={
                "step": state["best_step"],
                "rule": f"lowest dev {self.task.primary}, looked at every {self.recipe.eval_steps} updates"
                if state["best_step"] is not None
                else "last update: no dev value was low enough to be kept",
            },
            layer_weights=shares,
            training={
                "updates": trainer.state.global_step,
                "seconds": round(state["trained_seconds"], 1),
                "updates_left_out": state["not_finite"],
                "probe_parameters": sum(p.numel() for p in probe.parameters()),
                "processes": trainer.args.world_size,
            },
            **self.description(),
        )
        trainer.delete_best()
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return record

    def description(self) -> dict[str, Any]:
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

    def summarise(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Mean and standard deviation (of a sample: n - 1) over runs, all of which are kept."""
        metrics = []
        for entries in zip(*(record["metrics"] for record in records), strict=True):
            values = [entry["value"] for entry in entries]
            metrics.append(
                {**entries[0], "value": statistics.fmean(values), "standard_deviation": statistics.stdev(values)}
            )
        seeds = [record["seed"] for record in records]
        layers = zip(*(record["layer_weights"] for record in records), strict=True)
        plots = self.output_dir / "plots"
        plots.mkdir(exist_ok=True)
        weights = {f"seed {record['seed']}": record["layer_weights"] for record in records}
        title = f"{self.task.name} on {Path(self.arguments.model).name} ({self.protocol})"
        plot_layer_weights(weights, plots / "layer_weights.png", title)
        return write_results(
            self.output_dir,
            seed=seeds[0],
            wall_seconds=time.time() - self.began,
            metrics=metrics,
            layer_weights=[statistics.fmean(layer) for layer in layers],
            runs=[
                {
                    "seed": record["seed"],
                    "metrics": record["metrics"],
                    "selected": record["selected"],
                    "layer_weights": record["layer_weights"],
                    "wall_seconds": record["wall_seconds"],
                }
                for record in records
            ],
            **self.description(),
        )


# ------------------------------------------------------------------------------------------------ folders


def _set_up_logging(main: bool) -> None:
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING
    )
    logging.getLogger("laser_hf").setLevel(logging.INFO if main else logging.ERROR)
    transformers_logging.set_verbosity_warning()


def _file_name(split: str) -> str:
    return re.sub(r"[^\w.-]+", "_", split)


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make a folder for a run.

    Raises:
        RunError: it cannot be written, or holds a finished run.
    """
    if overwrite:
        clear(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise RunError(f"cannot write to --output_dir {folder} ({error.strerror}); choose another folder") from error
    if (folder / FILE_NAME).exists():
        raise RunError(
            f"{folder} holds a finished run ({FILE_NAME}); choose another --output_dir, or start over with "
            "--overwrite_output_dir"
        )


def clear(folder: Path) -> None:
    """Delete what earlier runs left in a folder, and nothing else."""
    for run in [folder, *folder.glob("seed-*")]:
        if not (run / RECIPE_NAME).is_file() and run != folder:
            continue
        for pattern in ("checkpoint-*", "broken-checkpoint-*", "runs", "plots", "features"):
            for found in run.glob(pattern):
                shutil.rmtree(found)
        for found in [path for name in ("hyp.txt", "ref.txt", "worst.txt") for path in run.glob(f"*/{name}")]:
            found.unlink()
            if not any(found.parent.iterdir()):
                found.parent.rmdir()
        for pattern in (FILE_NAME, RECIPE_NAME, LOG_NAME, "probe.json", "probe.safetensors", "best-*.safetensors"):
            for found in run.glob(pattern):
                found.unlink()


def last_complete_checkpoint(folder: Path) -> str | None:
    """Newest checkpoint whose writing was not interrupted; incomplete ones are moved out of the way."""
    while (checkpoint := get_last_checkpoint(str(folder))) is not None:
        # The probe's own state is written last.
        if (Path(checkpoint) / STATE_NAME).is_file():
            return checkpoint
        aside = folder / f"broken-{Path(checkpoint).name}"
        logger.warning("%s is incomplete; it is left aside as %s", checkpoint, aside.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
    return None


def check_fingerprint(folder: Path, checkpoint: str | None, fingerprint: dict[str, Any]) -> None:
    """Refuse to resume a run of another recipe, encoder or corpus.

    Raises:
        RunError: it is another one.
    """
    if checkpoint is None or not (folder / RECIPE_NAME).is_file():
        return
    before, now = read_json(folder / RECIPE_NAME), fingerprint
    differs = [name for name in now if before.get(name) != now[name]]
    if differs:
        details = [
            f"--{name} {before['recipe'].get(name)} -> {value}"
            for name, value in now["recipe"].items()
            if before["recipe"].get(name) != value
        ]
        raise RunError(
            f"{folder} holds an unfinished run of another {', '.join(differs)} "
            f"({'; '.join(details) or 'see ' + RECIPE_NAME}). Give the old values to resume it, choose another "
            "--output_dir, or start over with --overwrite_output_dir"
        )


def data_revision(speech: Any) -> str | None:
    """Commit of a hub data set, from the addresses of its files."""
    for address in speech.info.download_checksums or ():
        found = re.search(r"@([0-9a-f]{40})/", str(address))
        if found:
            return found.group(1)
    return None
