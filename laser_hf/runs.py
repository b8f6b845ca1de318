"""The output folder of a command: refused, cleared, resumed or finished, by the same rules for every command.

It is *finished* once it has its record, *unfinished* if it has something to resume; `recipe.json` says of which run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import cli
from .errors import LaserError
from .records import plain, read_json, write_json

logger = logging.getLogger(__name__)

RECIPE_NAME = "recipe.json"
SEAL_NAME = "files.json"
"""Sizes and SHA-256 digests of a checkpoint's files, written last: a checkpoint without it is incomplete."""
LOCK_NAME = ".lock"
CONTENT = "content"
"""Group of a recipe with digests of what its options name."""
WRITING = ".writing"
"""Folder of checkpoints that are not complete yet."""
_LEFTOVERS = (WRITING, ".export-*", "tmp*.tmp", "results/tmp*.tmp")
"""What a killed run leaves half written."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LOCKS: dict[tuple[int, str], int] = {}
"""Open lock files of this process, by its id and their real path: each lock lives as long as the process."""


class RunFolder:
    """The output folder `path` (`--output_dir`) of one run, which is complete once it holds the file `record`.

    `progress` are glob patterns of what a later start resumes from, `owned` of what else may be deleted.
    """

    def __init__(
        self, path: str | Path, record: str, progress: Sequence[str] = ("checkpoint-*",), owned: Sequence[str] = ()
    ) -> None:
        if not str(path):
            raise LaserError("--output_dir is empty; give the folder for this run's files")
        self.path, self.record, self.progress, self.owned = Path(path), record, tuple(progress), tuple(owned)

    @property
    def finished(self) -> bool:
        """Whether the folder has its record."""
        return (self.path / self.record).exists()

    @property
    def unfinished(self) -> bool:
        """Whether there is something to resume and no record."""
        return not self.finished and any(next(self.path.glob(pattern), None) for pattern in self.progress)

    def prepare(self, recipe: Mapping[str, Any], overwrite: bool = False, reopen: bool = False) -> None:
        """Make the folder ready for a run of `recipe`; of several processes, only the first one calls it.

        The recipe, in groups or flat, goes to `recipe.json`. `overwrite` deletes what an earlier run left, and `reopen`
        takes a finished run of the same recipe too, for commands that add to it, several at once. `LaserError` if the
        folder cannot be written, is finished, is a checkpoint, holds another recipe, or another process runs in it.
        """
        self.check(overwrite, reopen)
        before = self._recipe() if self.finished or self.unfinished else None
        if before is not None and (changed := differences(before, plain(dict(recipe)))):
            what, to = ("a finished", "add to") if self.finished else ("an unfinished", "resume")
            held = f"{self.path} holds {what} run of another recipe ({'; '.join(changed)})"
            mend = "choose another --output_dir, or start over with --overwrite_output_dir"
            raise LaserError(f"{held}. Give the old values to {to} it, {mend}")
        write_json(self.path / RECIPE_NAME, dict(recipe))

    def _recipe(self) -> dict[str, Any] | None:
        """What `recipe.json` holds, or else its copy in the newest checkpoint that has one; `None` without any."""
        places = sorted(self.path.glob(f"checkpoint-*/{RECIPE_NAME}"), key=os.path.getmtime, reverse=True)
        found = [path for path in (self.path / RECIPE_NAME, *places) if path.is_file()]
        for path in found:
            with contextlib.suppress(ValueError):  # damaged
                return dict(read_json(path))
        if found:
            raise LaserError(f"{found[0]} is damaged, so nothing says which run this is: use --overwrite_output_dir")
        return None

    def check(self, overwrite: bool = False, reopen: bool = False) -> None:
        """`prepare` up to its check of the recipe, for commands that know theirs only after hours of reading."""
        self.make()
        cli.saved = self.saved
        if not reopen:
            self._lock()
            self._delete(_LEFTOVERS)
        if overwrite:
            self._delete((*self.progress, *self.owned, "broken-checkpoint-*", RECIPE_NAME, self.record))
        if self.finished and not reopen:
            start = "choose another --output_dir, or start over with --overwrite_output_dir"
            raise LaserError(f"{self.path} holds a finished run ({self.record}); {start}")
        if (self.path / "trainer_state.json").exists():
            raise LaserError(f"{self.path} is itself a checkpoint; give the folder above it as --output_dir")

    def make(self) -> None:
        """Create the folder if there is none; `LaserError` if it cannot be written to."""
        trial = self.path / ".writable"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            trial.touch()
            trial.unlink(missing_ok=True)  # another process may try the same
        except OSError as error:
            raise LaserError(f"cannot write to --output_dir {self.path} ({error.strerror})") from error

    def _lock(self) -> None:
        """Keep other processes out until this one ends, however it ends; forked ones do not inherit the lock."""
        path = self.path.resolve() / LOCK_NAME
        if (os.getpid(), str(path)) in _LOCKS and path.exists():  # else the folder was deleted meanwhile
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                mend = "wait for its end, or choose another folder"
                raise LaserError(f"another process runs in --output_dir {self.path}; {mend}") from error
            logger.warning("%s cannot be locked (%s): start no second run in it", self.path, error.strerror)
        _LOCKS[os.getpid(), str(path)] = descriptor

    def protect(self, inputs: Mapping[str, str | os.PathLike[str] | None]) -> None:
        """`LaserError` if the folder is or holds, by real paths, one of `inputs`, by option: paths, or other names."""
        for option, given in inputs.items():
            place = Path(given or "/").resolve()
            if place.exists() and place.is_relative_to(self.path.resolve()):
                reads = f"{option} {given}, which this run reads; choose a folder of its own"
                raise LaserError(f"--output_dir {self.path} holds {reads}")

    def _delete(self, patterns: Sequence[str]) -> None:
        """Delete what an earlier run left, and nothing else; folders that this empties go too."""
        for found in [found for pattern in patterns for found in self.path.glob(pattern)]:
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink(missing_ok=True)
            if found.parent != self.path:
                with contextlib.suppress(OSError):
                    found.parent.rmdir()

    def saved(self) -> str:
        """What a later start goes on from, in words; empty if there is nothing."""
        if self.finished:
            return f"the run in {self.path} is finished"
        found = [path for path in self._checkpoints() if (path / SEAL_NAME).exists()][:1]
        found += [one for pattern in self.progress if "checkpoint" not in pattern for one in self.path.glob(pattern)]
        return f"saved: {', '.join(map(str, found))}" if found else ""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record, which makes the run complete; call it last."""
        write_json(self.path / self.record, dict(record))

    def _checkpoints(self) -> list[Path]:
        """The newest one first."""
        numbered = {int(match[1]): path for path in self.path.glob("*") if (match := _CHECKPOINT.fullmatch(path.name))}
        return [numbered[number] for number in sorted(numbered, reverse=True)]

    def last_checkpoint(self) -> Path | None:
        """The newest intact checkpoint; newer ones that are not are renamed `broken-checkpoint-N`, with a warning."""
        for checkpoint in self._checkpoints():
            fault = find_fault(checkpoint)
            if fault is None:
                return checkpoint
            aside, number = self.path / f"broken-{checkpoint.name}", 1
            while aside.exists():
                number += 1
                aside = aside.with_name(f"broken-{checkpoint.name}-{number}")
            logger.warning("%s cannot be resumed (%s); it is kept as %s", checkpoint, fault, aside.name)
            os.replace(checkpoint, aside)
        return None


def seal_checkpoint(folder: str | Path, final: str | Path | None = None) -> None:
    """Mark a checkpoint as complete, after all its files are written: sizes and digests go to `files.json`.

    With `final`, it then moves there: a run that is killed at any moment leaves the whole checkpoint there, or none.
    """
    folder, seal = Path(folder), {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL_NAME):
        seal[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    write_json(folder / SEAL_NAME, seal)
    if final is not None:
        _sync(folder)
        if Path(final).exists():  # training goes on from an older one
            shutil.rmtree(final)
        os.replace(folder, final)
        _sync(Path(final).parent)


def _sync(path: Path) -> None:
    """Make sure that a file or the entries of a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_fault(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint, in words; `None` if every file is as it was when it was sealed."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such folder"
    if not (checkpoint / SEAL_NAME).is_file():
        return f"its writing was interrupted: it has no {SEAL_NAME}"
    try:
        seal = dict(read_json(checkpoint / SEAL_NAME))
    except ValueError:
        return f"{SEAL_NAME} is damaged"
    for name, sealed in seal.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != sealed["bytes"]:
            return f"{name} has {size} bytes instead of {sealed['bytes']}"
        if _sha256(path) != sealed["sha256"]:
            return f"{name} is damaged"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two recipes differ in, as `--name old -> new`: digests in the group `content` count for paths."""
    contents = [recipe.get(CONTENT) or {} for recipe in (before, now)]
    known = sorted(contents[0].keys() & contents[1].keys())
    found = [f"the content of --{name} is another" for name in known if contents[0][name] != contents[1][name]]

    def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in sorted({*before, *now} - {CONTENT, *known}):
            old, new = before.get(name), now.get(name)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                compare(old, new)
            elif old != new:
                found.append(f"--{name} {old} -> {new}")

    compare(before, now)
    return found
