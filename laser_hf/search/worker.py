"""The process of one run: train it, or go on with it, or take it as it is; then score it.

It reads its job from standard input and leaves when that ends, so that no training outlives the search that waits for
it. A lock file in the run's folder keeps a second worker out.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .run import BUSY, FAILURE, SCORE

LOCK = ".run.lock"
_PATIENCE = 120  # seconds: data workers of a killed run hold the lock until they notice
_ABANDONED = 3


def main() -> int:
    """Do the job on standard input; the exit status."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    folder = Path(job["folder"])
    errors = _LastError(logging.ERROR)
    logging.getLogger("laser_hf").addHandler(errors)
    try:
        with FileLock(folder / LOCK, timeout=_PATIENCE):
            return _train_and_score(job, folder, errors)
    except Timeout:
        return BUSY


def _leave_with_parent() -> None:
    # Not through sys.stdin: a thread that waits in its buffer would hang the interpreter's end.
    while os.read(0, 1):
        pass
    os._exit(_ABANDONED)


class _LastError(logging.Handler):
    """Remembers the last error that was logged: run_training logs what ends it."""

    message = None

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()


def _train_and_score(job: dict[str, Any], folder: Path, errors: _LastError) -> int:
    from ..records import write_json

    try:
        _do(job, folder)
    except SystemExit as ended:
        if not ended.code:
            raise
        reason = errors.message or f"ended with exit status {ended.code}"
        write_json(folder / FAILURE, {"reason": reason, "argv": job["argv"]})
        return 1
    except Exception as error:
        logging.getLogger(__name__).exception("the run failed")
        write_json(folder / FAILURE, {"reason": f"{type(error).__name__}: {error}", "argv": job["argv"]})
        return 1
    return 0


def _do(job: dict[str, Any], folder: Path) -> None:
    import torch

    from ..records import read_json, write_json
    from ..training import parse_options, run_training
    from ..training.output_folder import RECIPE_NAME, RECORD_NAME
    from .score import from_job

    options = parse_options(job["argv"])
    if (folder / RECORD_NAME).is_file():
        if json.loads(json.dumps(options.recipe())) != read_json(folder / RECIPE_NAME):
            raise ValueError(
                f"{folder} holds a finished run of another recipe; move it away, or choose another --output_dir"
            )
    else:
        (folder / SCORE).unlink(missing_ok=True)
        run_training(options)
    done = read_json(folder / SCORE) if (folder / SCORE).is_file() else {}
    if done.get("definition") != job["definition"]:
        device = "cuda" if torch.cuda.is_available() and not options.training.use_cpu else "cpu"
        value = from_job(job["score"]).measure(folder, folder / "score", device, options.model.do_normalize)
        if value != value:
            raise ValueError("the score is not a number: do all frames of the encoder look alike?")
        write_json(folder / SCORE, {"value": value, "definition": job["definition"], "record": "score/results.json"})
    if not job["keep_checkpoints"]:
        # Of a finished run nothing is resumed.
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


if __name__ == "__main__":
    sys.exit(main())
