"""How every command starts and ends: help, messages on stderr, a line for a user's mistake, a traceback for a bug."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from .errors import LaserError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
STOPPED = 75
"""Exit status after a `Stopped`; `sysexits.h` calls it a temporary failure."""
saved: Callable[[], str] | None = None
"""Says in words what the command has saved for a later start; `RunFolder` sets it."""
_FULL = ("no space left on device", "pytorchstreamwriter failed writing", "iostream error", "disk is full")
_KILLED = ("dataloader worker", "abruptly died", "terminated abruptly")


class Stopped(KeyboardInterrupt):
    """A signal, which the message names, asked the command to stop; all that it needs to go on is saved."""


class HelpFormatter(argparse.HelpFormatter):
    """One spelling of each option, its default and its range (`range` of the action or of its type), if it has any."""

    def __init__(self, prog: str) -> None:
        width = min(120, shutil.get_terminal_size((120, 24)).columns)
        super().__init__(prog, max_help_position=38 if width > 100 else 24, width=width)

    def add_usage(self, usage, actions, groups, prefix=None):
        if usage is None and len(actions) > 12 and not groups:  # they stand below
            actions = [action for action in actions if action.required]
        super().add_usage(usage, actions, groups, prefix)

    def _fill_text(self, text, width, indent):
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = next((one for one in action.option_strings if one.startswith("--")), action.option_strings[0])
        if action.nargs == 0 or action.const is True:  # a switch
            return name
        shown = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{name} {shown.split(' [')[0]} ..." if action.nargs == "+" else f"{name} {shown}"

    def _get_default_metavar_for_optional(self, action):
        kind = getattr(action.type, "type", action.type)
        return {int: "N", float: "X"}.get(kind) or action.dest.rpartition("_")[2].upper()

    def _get_help_string(self, action):
        none = action.default is False or action.const is False or action.default in (None, "", [], argparse.SUPPRESS)
        limits = getattr(action, "range", "") or getattr(action.type, "range", "")
        return with_notes(action.help, limits, None if none or "default" in action.help else action.default)


def with_notes(text: str, limits: str = "", default: Any = None) -> str:
    """The help of an option with its range in words and its default; either may be missing."""
    notes = [limits] if limits else []
    if default is not None:
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        notes.append(f"default: {'on' if default is True else shown.replace('%', '%%')}")
    return f"{text} ({'; '.join(notes)})" if notes else text


class _Messages(logging.Formatter):
    """Our own messages as they are; what is no news says what it is, and of which library."""

    def format(self, record: logging.LogRecord) -> str:
        kind = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        ours = record.name.partition(".")[0] == "laser_hf"
        return f"{kind}{'' if ours else f'{record.name}: '}{super().format(record)}"


def set_up_logging(main_process: bool = True) -> None:
    """Log to stderr, ours from INFO on (other processes: WARNING); long progress bars show on a terminal alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Messages())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("laser_hf").setLevel(logging.INFO if main_process else logging.WARNING)
    bars = {"TQDM_DELAY": "3"}
    if not (main_process and sys.stderr.isatty()):
        bars = dict.fromkeys(("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
    for name, value in bars.items():
        os.environ.setdefault(name, value)


def program() -> str:
    """The command `laser-hf` as it works in this folder: by its path where PATH does not lead to it."""
    python = Path(sys.executable)
    script, found = python.with_name("laser-hf"), shutil.which("laser-hf")
    if found and script.exists() and Path(found).samefile(script):
        return "laser-hf"
    path = script if script.exists() else python
    path = path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path
    return f"{shlex.quote(str(path))}{'' if script.exists() else ' -m laser_hf'}"


def refuse_lonely_launch(command: str) -> None:
    """`LaserError` (use `command`) where `accelerate launch --cpu` started one process of several, without MPI."""
    env = os.environ
    alone = not any(name in env for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
    if alone and "MASTER_ADDR" in env and env.get("ACCELERATE_USE_CPU", "").lower() == "true":
        one = "accelerate launch --cpu started one process although several were asked for: it needs MPI for more"
        raise LaserError(f"{one}. Use: accelerate launch --multi_gpu --num_processes 2 {command} --ddp_backend gloo")


def run(main: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and end the process; `argv` as argparse takes it.

    The exit status is 0; 1 after a `LaserError`, an operating system's error about a file, a full disk or a killed data
    worker, with one paragraph behind `error:`; 130 after Ctrl-C; 75 after a `Stopped`; argparse's 2 for wrong options.
    Any other exception is a bug and keeps its traceback.
    """
    set_up_logging(os.environ.get("RANK", "0") == "0")
    process, given = os.getpid(), sys.argv[1:] if argv is None else argv
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)  # compiled code may turn the exception into another one
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    # Data workers are forks; what they have to say is said here.
    sys.excepthook = lambda *error: os.getpid() == process and sys.__excepthook__(*error)
    try:
        if "--output_dir=" in given or ("--output_dir", "") in pairwise(given):
            raise LaserError("--output_dir is empty; give the folder for this run's files")
        main(argv)
    except LaserError as error:
        # From a data worker it comes with the worker's traceback before it.
        sys.exit(f"error: {str(error).rpartition(f'{LaserError.__module__}.LaserError: ')[2].strip()}")
    except (Exception, KeyboardInterrupt) as error:
        go_on = _how_to_go_on(given)
        if stopped or isinstance(error, KeyboardInterrupt):
            asked = isinstance(error, Stopped)
            print(f"{error if asked else 'interrupted'}; {go_on}", file=sys.stderr)
            sys.exit(STOPPED if asked else INTERRUPTED)
        if disk_is_full(error):
            sys.exit(f"error: the disk is full; {go_on}, after making room")
        if any(text in _messages(error) for text in _KILLED):
            killed = "a process that reads data was killed, for its memory perhaps"
            sys.exit(f"error: {killed}; {go_on}, with fewer of them")
        if not isinstance(error, OSError) or (error.filename is None and error.strerror is None):
            raise  # a bug; or of sockets and the like, which are for their callers to explain
        sys.exit(f"error: {error}")
    sys.exit(0)


def disk_is_full(error: BaseException) -> bool:
    """Whether this is what made a library fail."""
    return any(text in _messages(error) for text in _FULL)


def _messages(error: BaseException | None) -> str:
    """The messages of an error and of what caused it, in small letters: each library wraps a full disk in its way."""
    said = []
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError as late:  # PyTorch's handler of this signal says that a data worker was killed
        said.append(str(late).lower())
    for frame in traceback.extract_tb(error.__traceback__) if isinstance(error, EOFError | ConnectionError) else ():
        if "multiprocessing" in frame.filename:
            said.append(_KILLED[0])  # it was killed while it sent a batch
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        said.append(_FULL[0] if full else str(error).lower())
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def _how_to_go_on(given: Sequence[str]) -> str:
    """What is saved, and what to do."""
    if not (kept := saved() if saved is not None else ""):
        return "nothing is saved; run the same command again to start over"
    overwrites = any(word.startswith("--overwrite_output_dir") for word in given)
    same = "the command again without --overwrite_output_dir" if overwrites else "the same command again"
    return f"{kept}; run {same} to continue"
