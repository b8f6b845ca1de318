"""Ctrl-C, a full disk and a killed data worker: one line that says what is saved; the same command again goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ..kills import training_result
from ..lab import Fault, Lab, Outcome
from . import search, superb_qbe

Command = Callable[[Lab], list[str]]


def children(process: int | None = None) -> list[int]:
    """Processes that a process, by default this one, has started."""
    place = f"/proc/{process or 'self'}/task/{process or threading.get_native_id()}/children"
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(place).read_text().split()]
    return []


def once(ready: Callable[[], bool], act: Callable[[], bool]) -> Callable[[], bool]:
    """For `kill_when`: `act` as soon as `ready`, until it has done something; never a kill."""
    done: list[bool] = []

    def asked() -> bool:
        if not done and ready() and act():
            done.append(True)
        return False

    return asked


def tell(number: int = signal.SIGINT) -> bool:
    """Send a signal to the command."""
    for process in children():
        os.killpg(process, number)
    return True


def _kill_worker() -> bool:
    """Kill a data worker of the command: a fork of it, so their command lines are alike."""
    for command in children():
        for worker in children(command):
            with contextlib.suppress(OSError):
                if _command_line(worker) == _command_line(command):
                    os.kill(worker, signal.SIGKILL)
                    return True
    return False


def _command_line(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def _train(*more: str) -> Command:
    return lambda lab: ["train", *lab.training(), *more]


def _qbe(lab: Lab) -> list[str]:
    if not (lab.path / "task").is_dir():
        superb_qbe.make(lab)
    return [str(one) for one in superb_qbe.argv(lab, "--layer", "all")]


def _again(lab: Lab, command: Command, first: Outcome) -> Outcome:
    """Start the command again; what went wrong is added to what the first one said."""
    again = lab.run(*command(lab))
    if again.status != 0:
        first.output += f"\nthe same command again: {again.output}\nTraceback (most recent call last)"
    return first


def _interrupted(command: Command, stage: str) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        argv = command(lab)
        first = lab.run(*argv, kill_when=once(lambda: bool(list(lab.out.glob(stage))), tell))
        return _again(lab, command, first)

    return provoke


def _worker_killed(command: Command, stage: str) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        first = lab.run(*command(lab), kill_when=once(lambda: bool(list(lab.out.glob(stage))), _kill_worker))
        return _again(lab, command, first)

    return provoke


@contextlib.contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of `size` at `folder`, unmounted in any case."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _full(
    command: Command, size: str, judge: Callable[[Lab, Outcome], str | None] = lambda lab, outcome: None
) -> Callable[[Lab], Outcome]:
    """The command on a disk of `size`, then on a larger one; `judge` looks at what it left before that one is gone."""

    def provoke(lab: Lab) -> Outcome:
        with _small_disk(lab.out, size):
            first = lab.run(*command(lab))
            subprocess.run(["mount", "-o", "remount,size=64m", str(lab.out)], check=True)
            again = _again(lab, command, first)
            if not again.traceback and (wrong := judge(lab, again)):
                again.output += f"\n{wrong}\nTraceback (most recent call last)"
            return again

    return provoke


def _asr(*more: str) -> Command:
    def command(lab: Lab) -> list[str]:
        where = ["--model", str(lab.encoder), "--data", str(lab.speech), "--output_dir", str(lab.out)]
        return ["superb", "asr", *where, *ASR, *HEAD, *more]

    return command


def _six_updates(lab: Lab, outcome: Outcome) -> str | None:
    updates = training_result(lab)["updates"]
    return None if updates == 6 else f"{updates} updates instead of 6"


WORKERS = ("--dataloader_num_workers", "1", "--cache_features", "no")
LONG = ("--max_steps", "40", "--dataloader_num_workers", "1")
ASR = ["--train_split", "1", "--dev_split", "2", "--test_split", "3", "--protocol", "quick", "--report_to", "none"]
HEAD = ["--max_steps", "40", "--eval_steps", "10", "--lstm_size", "8", "--lstm_layers", "1", "--projection_size", "8"]
SEALED = "checkpoint-2/files.json"
GO_ON = "run the same command again to continue"

FAULTS = [
    Fault(8, "Ctrl-C in training", _interrupted(_train(), SEALED), 130, ("interrupted; saved: ", GO_ON), _six_updates),
    Fault(8, "Ctrl-C in training with data workers", _interrupted(_train(*LONG), SEALED), 130, ("checkpoint-", GO_ON)),
    Fault(8, "Ctrl-C before anything is saved", _interrupted(_train(), "recipe.json"), 130, ("nothing is saved",)),
    Fault(8, "Ctrl-C in query by example", _interrupted(_qbe, f"cache/{superb_qbe.BATCH}"), 130, ("cache", GO_ON)),
    Fault(8, "Ctrl-C in superb asr", _interrupted(_asr(), "checkpoint-10/files.json"), 130, ("checkpoint-", GO_ON)),
    Fault(
        8,
        "a killed data worker in superb asr",
        _worker_killed(_asr(*WORKERS), "checkpoint-10/files.json"),
        1,
        ("was killed", GO_ON),
    ),
    Fault(8, "a killed data worker in training", _worker_killed(_train(*LONG), SEALED), 1, ("was killed", GO_ON)),
]

# Without the right to mount there is no small disk.
if os.geteuid() == 0:
    FAULTS += [
        Fault(
            8, "a full disk at the first checkpoint", _full(_train(), "100k"), 1, ("disk is full", "nothing is saved")
        ),
        Fault(
            8, "a full disk at a later checkpoint", _full(_train(), "560k"), 1, ("disk is full", "checkpoint-", GO_ON)
        ),
        Fault(8, "a full disk in superb asr", _full(_asr("--cache_features", "no"), "20k"), 1, ("disk is full",)),
        *(
            Fault(
                8,
                f"a full disk in the {which} point of a search",
                _full(lambda lab: [str(one) for one in search.argv(lab)], size, search.two_points),
                1,
                ("error: the disk is full; saved: ", "out/study.db", GO_ON),
            )
            for which, size in (("first", "400k"), ("second", "900k"))
        ),
        Fault(8, "a full disk in query by example", _full(_qbe, "40k"), 1, ("disk",)),
    ]
