"""The output folder of a probe's training: refused or cleared before a run, checked before one is resumed."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ...records import read_json
from ..results import FILE_NAME
from .probe_training import STATE_NAME

logger = logging.getLogger(__name__)

RECIPE_NAME = "recipe.json"
LOG_NAME = "training_log.json"


class RunError(ValueError):
    """A run that cannot start as asked; the message says how to mend it."""


def split_folder(split: str) -> str:
    """Name of the folder of a split's decoded files."""
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
