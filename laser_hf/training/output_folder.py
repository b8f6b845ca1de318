"""The folder of a run: usable or refused, what to resume in it, and what an earlier run left there."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from ..records import read_json, write_json
from . import finite
from .options import Options
from .profile import PROFILE_NAME

logger = logging.getLogger(__name__)

RECORD_NAME = "laser_config.json"
HISTORY_NAME = "training_log.json"
RECIPE_NAME = "recipe.json"


class RunError(RuntimeError):
    """A run that cannot start as asked; the message says how to mend it."""


def prepare_output_dir(options: Options) -> str | None:
    """Make `output_dir` usable and return the checkpoint to resume from, if any.

    Raises:
        RunError: a folder that cannot be written, holds a finished run, or a run of another recipe.
    """
    args, output_dir = options.training, Path(options.training.output_dir)
    recipe = options.recipe()
    with args.main_process_first(local=False, desc="preparing the output folder"):
        if args.process_index == 0:
            if args.overwrite_output_dir:
                _clear(output_dir)
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
                probe = output_dir / ".writable"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise RunError(
                    f"cannot write to --output_dir {output_dir} ({error.strerror}); choose another folder"
                ) from error
            if (output_dir / RECORD_NAME).exists():
                raise RunError(
                    f"{output_dir} holds a finished run ({RECORD_NAME}); choose another --output_dir, or start over "
                    "with --overwrite_output_dir"
                )
            if (output_dir / "trainer_state.json").exists():
                raise RunError(f"{output_dir} is itself a checkpoint; give the folder above it as --output_dir")
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("True", "true", True) or checkpoint is None:
        checkpoint = last_complete_checkpoint(output_dir)
    elif not Path(checkpoint, "trainer_state.json").is_file():
        raise RunError(f"--resume_from_checkpoint {checkpoint} is not a checkpoint (it has no trainer_state.json)")
    if args.resume_from_checkpoint in ("True", "true", True) and checkpoint is None:
        raise RunError(f"nothing to resume: no complete checkpoint in {output_dir}")
    if checkpoint and (output_dir / RECIPE_NAME).exists():
        before = read_json(output_dir / RECIPE_NAME)
        changed = sorted(
            f"--{name} {before[group].get(name)} -> {value}"
            for group, values in recipe.items()
            for name, value in values.items()
            if before.get(group, {}).get(name) != value
        )
        if changed:
            raise RunError(
                f"{output_dir} holds an unfinished run of another recipe ({'; '.join(changed)}). Give the old values "
                "to resume it, choose another --output_dir, or start over with --overwrite_output_dir"
            )
    if args.process_index == 0:
        write_json(output_dir / RECIPE_NAME, recipe)
    return checkpoint


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """Newest checkpoint whose writing was not interrupted; incomplete ones are moved out of the way."""
    while (checkpoint := get_last_checkpoint(str(output_dir))) is not None:
        # The Trainer writes the weights first and its state last.
        if all((Path(checkpoint) / name).is_file() for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt")):
            return checkpoint
        logger.warning("%s is incomplete; it is left aside as broken-%s", checkpoint, Path(checkpoint).name)
        os.replace(checkpoint, output_dir / f"broken-{Path(checkpoint).name}")
    return None


def _clear(output_dir: Path) -> None:
    """Delete what an earlier run left, and nothing else."""
    for pattern in ("checkpoint-*", "broken-checkpoint-*", "runs", "plots", "results"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder)
    for name in (
        RECORD_NAME, HISTORY_NAME, RECIPE_NAME, PROFILE_NAME, finite.FILE_NAME, "config.json", "model.safetensors",
        "preprocessor_config.json",
    ):  # fmt: skip
        (output_dir / name).unlink(missing_ok=True)
