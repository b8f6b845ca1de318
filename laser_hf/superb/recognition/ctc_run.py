"""One `asr` or `pr` command: corpus, hidden states, and one or several runs with different seeds."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from ...encoders import load_encoder, receptive_field
from ...records import read_json, write_json
from ..results import FILE_NAME, describe_model
from .corpus import Split, Waveforms, read_split
from .ctc_record import write_run, write_summary
from .ctc_setting import Setting
from .ctc_tasks import CtcTask
from .decoded_files import write_decoded
from .featurizer import FeatureCache, FrozenFeatures
from .probe_training import ProbeTrainer
from .probes import build_probe
from .recipe import Recipe, choose_recipe
from .run_folder import (
    RECIPE_NAME,
    RunError,
    check_fingerprint,
    last_complete_checkpoint,
    prepare_folder,
    split_folder,
)

logger = logging.getLogger(__name__)


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
        self.setting = setting = self.prepare()
        if self.main and arguments.protocol == "superb" and setting.protocol != "superb":
            logger.warning(
                "This is not SUPERB's recipe, and will be recorded as protocol quick, because of: %s",
                "; ".join(f"{name} {change['superb']} -> {change['here']}" for name, change in setting.changed.items()),
            )
        self.cache_features(self.training_arguments(self.output_dir, arguments.seed))
        if arguments.runs == 1:
            record = self.run_once(arguments.seed, self.output_dir)
        else:
            seeds = range(arguments.seed, arguments.seed + arguments.runs)
            records = [self.run_or_reuse(seed) for seed in seeds]
            record = write_summary(setting, self.output_dir, records, self.began) if self.main else {}
        if self.main:
            for split in setting.splits:
                if split.cache is not None:
                    split.cache.delete()
            logger.info("Everything is in %s", self.output_dir)
            for metric in record["metrics"]:
                spread = f" ± {metric['standard_deviation']:.2f}" if "standard_deviation" in metric else ""
                print(f"{metric['split']} {metric['metric']}: {metric['value']:.2f}{spread} ({setting.protocol})")
        return record

    def prepare(self) -> Setting:
        """Load the encoder and read the corpus."""
        arguments = self.arguments
        encoder = load_encoder(arguments.model, revision=arguments.model_revision, do_normalize=arguments.do_normalize)
        shortest = receptive_field(encoder.config)

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

        return Setting(
            arguments,
            recipe=self.recipe,
            superb=self.superb,
            task=self.task,
            features=FrozenFeatures(encoder),
            model=describe_model(arguments.model, encoder),
            train=read(arguments.train_split, self.recipe.max_train_utterances),
            dev=read(arguments.dev_split),
            tests=[read(split) for split in arguments.test_split],
        )

    def cache_features(self, args: TrainingArguments) -> None:
        """Encode every utterance once, where that pays."""
        choice = self.arguments.cache_features
        if choice == "no" or (choice == "auto" and self.arguments.protocol != "quick"):
            return
        features = self.setting.features
        features.to(args.device)
        with args.main_process_first(local=False, desc="hidden states"):
            for number, split in enumerate(self.setting.splits):
                cache = FeatureCache(self.output_dir / "features", f"{number}-{split_folder(split.name)}")
                key = {
                    "weights": self.setting.model["weights_sha256"],
                    "do_normalize": self.arguments.do_normalize,
                    "utterances": split.digest(),
                }
                if self.main:
                    cache.build(features, Waveforms(split), split.samples, key, args.device)
                split.cache = cache

    # ---- one run ----

    def run_or_reuse(self, seed: int) -> dict[str, Any]:
        """The record of one of several runs; finished ones are not repeated."""
        folder = self.output_dir / f"seed-{seed}"
        if (folder / FILE_NAME).is_file() and read_json(folder / RECIPE_NAME) == self.setting.fingerprint(seed):
            logger.info("seed %d is finished: %s", seed, folder)
            return read_json(folder / FILE_NAME)
        prepare_folder(folder, False)
        return self.run_once(seed, folder)

    def run_once(self, seed: int, folder: Path) -> dict[str, Any]:
        began = self.began if folder == self.output_dir else time.time()
        args, setting = self.training_arguments(folder, seed), self.setting
        fingerprint = setting.fingerprint(seed)
        with args.main_process_first(local=False, desc="preparing the output folder"):
            checkpoint = last_complete_checkpoint(folder)
            check_fingerprint(folder, checkpoint, fingerprint)
            if self.main:
                write_json(folder / RECIPE_NAME, fingerprint)
        set_seed(seed)
        probe = build_probe(self.recipe, setting.features.layers, setting.features.dim, len(self.task.vocabulary))
        trainer = ProbeTrainer(
            probe,
            setting.features,
            self.task,
            self.recipe,
            args,
            setting.train,
            setting.dev,
            self.arguments.micro_batch_size,
            self.arguments.eval_batch_size,
        )
        if checkpoint:
            logger.info("Resuming from %s", checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.accelerator.wait_for_everyone()
        trainer.load_best()
        metrics: list[dict[str, Any]] = []
        for split in (*setting.tests, setting.dev):
            decoded, _ = trainer.decode(split, f"decoding {split.name}")
            values = self.task.metrics(decoded)
            metrics += [{"metric": m, "value": v, "unit": "percent", "split": split.name} for m, v in values.items()]
            if self.main:
                write_decoded(folder / split_folder(split.name), decoded, self.task.written, self.task.name)
        record: dict[str, Any] = {}
        if self.main:
            record = write_run(setting, folder, seed, trainer, metrics, began)
            trainer.delete_best()
            for left in folder.glob("checkpoint-*"):
                shutil.rmtree(left)
        trainer.accelerator.wait_for_everyone()
        return record


def _set_up_logging(main: bool) -> None:
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING
    )
    logging.getLogger("laser_hf").setLevel(logging.INFO if main else logging.ERROR)
    transformers_logging.set_verbosity_warning()
