"""How every command starts and ends: logging to stderr, one line for a user's mistake, a traceback for a bug."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .errors import LaserError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def set_up_logging(main_process: bool = True) -> None:
    """Send log records to stderr: our own from INFO on (WARNING on other processes), other libraries' from WARNING."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        stream=sys.stderr,
    )
    logging.getLogger("laser_hf").setLevel(logging.INFO if main_process else logging.WARNING)


def refuse_lonely_launch(command: str) -> None:
    """Raise `LaserError` where `accelerate launch --cpu` started one process of several: without MPI it says nothing.

    Args:
        command: what to start instead, such as `train.py ... --use_cpu`.
    """
    env = os.environ
    alone = not any(name in env for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
    if alone and "MASTER_ADDR" in env and env.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise LaserError(
            "accelerate launch --cpu started one process although several were asked for: without MPI it can do no "
            f"more. Use: accelerate launch --multi_gpu --num_processes 2 {command} --ddp_backend gloo"
        )


def run(main: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and end the process; `argv` as argparse takes it.

    The exit status is 0; 1 after a `LaserError` or an operating system's error about a file or the disk, whose message
    is printed behind `error:`; 130 after Ctrl-C; argparse's 2 for wrong options. Any other exception is a bug and keeps
    its traceback.
    """
    set_up_logging(os.environ.get("RANK", "0") == "0")
    try:
        main(argv)
    except LaserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise  # not about a file: sockets and the like are for their callers to explain
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)
