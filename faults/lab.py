"""A fork server for commands: imports once, then every command runs in a fresh fork, in a folder of its own.

A fault is arranged in a `Lab`: a temporary folder with a tiny encoder and a little speech. A real command runs, and
what it did is judged: exit status, printed text, files. A kill is a SIGKILL of the command's process group.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import tqdm
import transformers

KINDS = {
    1: "The file exists, but is not complete and intact",
    2: "The ends of a resumed run",
    3: "Identity by content, not by path",
    4: "Nothing done is not a success",
    5: "Models that are not exactly what was assumed",
    6: "Audio and text as people have them",
    7: "Options that are taken and ignored",
    8: "Foreign strings and files",
}
LIMIT = 180.0
"""Seconds after which a command counts as hanging."""
SILENT = 45.0
"""The same for a command that has printed nothing."""


@dataclass
class Outcome:
    """What a command did.

    Attributes:
        status: exit status; negative for the signal that ended it.
        output: stdout and stderr together.
        seconds: wall time.
        hung: whether it had to be killed after `LIMIT`.
    """

    status: int
    output: str
    seconds: float
    hung: bool = False

    @property
    def traceback(self) -> bool:
        """Whether a Python traceback was printed."""
        return "Traceback (most recent call last)" in self.output


class Lab:
    """A temporary folder with what faults need; made anew for each fault from a template.

    Attributes:
        path: the folder, also the working directory of the commands.
        encoder: a tiny HuBERT with a preprocessor config.
        speech: a tree `speaker/chapter/speaker-chapter-utterance.flac` of 12 utterances with transcripts.
        out: where runs go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoder, self.speech, self.out = path / "encoder", path / "speech", path / "out"

    def run(
        self,
        *argv: str | Path,
        environment: Mapping[str, str] | None = None,
        kill_after: float | None = None,
        kill_when: Callable[[], bool] | None = None,
        limit: float = LIMIT,
    ) -> Outcome:
        """Run `laser-hf ARGV` in a fork.

        Args:
            argv: sub-command and its options.
            environment: variables to set.
            kill_after: seconds until a SIGKILL.
            kill_when: asked every few milliseconds; a SIGKILL follows once it is true.
            limit: seconds until it counts as hanging.
        """
        for _ in range(3):
            outcome = self._fork(argv, environment, kill_after, kill_when, limit)
            # A lock that a thread of this process held at the fork is never released in the child: try again.
            if not outcome.hung or outcome.output:
                break
        return outcome

    def _fork(self, argv, environment, kill_after, kill_when, limit) -> Outcome:
        log = self.path / ".log"
        log.write_bytes(b"")
        sys.stdout.flush()
        sys.stderr.flush()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(self.path, log, [str(one) for one in argv], environment or {})
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        hung = False
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            elapsed = time.monotonic() - began
            hung = elapsed > limit or (elapsed > SILENT and not log.stat().st_size)
            if hung or (kill_after is not None and elapsed >= kill_after) or (kill_when is not None and kill_when()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                break
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # data workers that outlived it
        return Outcome(
            os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), time.monotonic() - began, hung
        )

    def train(self, *more: str | Path, out: Path | None = None, **how: Any) -> Outcome:
        """A run of 6 updates of 4 pairs, a checkpoint every 2, on the tiny encoder and the speech of the lab."""
        return self.run("train", *self.training(out), *more, **how)

    def training(self, out: Path | None = None) -> list[str]:
        """The options of `train`; `lab.json` has the rest."""
        return ["--preset", str(self.path / "lab.json"), "--output_dir", str(out or self.out), "--use_cpu"]


def _become(folder: Path, log: Path, argv: list[str], environment: Mapping[str, str]) -> None:
    """The child: its own process group, output to `log`, then the command; never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.environ.update(environment)
        sys.path.insert(0, str(folder))  # as PYTHONPATH=. does: some faults bring a module of their own
        torch.set_num_threads(1)  # the fork's pool is made anew here, and not by several threads at once
        file = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["laser-hf", *argv]
        from laser_hf import cli
        from laser_hf.__main__ import main

        cli.run(main, argv)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: number in `KINDS`.
        name: what is wrong, in a few words; unique.
        provoke: arranges the fault in a fresh lab, runs the command and returns what to judge.
        status: the right exit status; `None` for any but 0.
        says: texts that the output must hold (ignoring case).
        judge: looks at the files afterwards; returns what is wrong, or `None`.
        quick: part of the test-suite.
    """

    kind: int
    name: str
    provoke: Callable[[Lab], Outcome]
    status: int | None = None
    says: Sequence[str] = ()
    judge: Callable[[Lab, Outcome], str | None] | None = None
    quick: bool = False


@dataclass
class Verdict:
    """What came of a fault: `fine`, or what was wrong."""

    fault: Fault
    outcome: Outcome | None
    wrong: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return not self.wrong


def judge(fault: Fault, lab: Lab) -> Verdict:
    """Provoke one fault and judge what the command did."""
    outcome = fault.provoke(lab)
    verdict = Verdict(fault, outcome)
    if outcome.hung:
        verdict.wrong.append("it hung")
    if outcome.traceback:
        verdict.wrong.append("it printed a traceback")
    if fault.status is None and outcome.status == 0:
        verdict.wrong.append("silent: exit status 0")
    if fault.status is not None and outcome.status != fault.status:
        verdict.wrong.append(f"exit status {outcome.status} instead of {fault.status}")
    lower = outcome.output.lower()
    verdict.wrong += [f"the output lacks {text!r}" for text in fault.says if text.lower() not in lower]
    if fault.judge is not None and not outcome.hung:
        found = fault.judge(lab, outcome)
        if found:
            verdict.wrong.append(found)
    return verdict


def make_template(folder: Path) -> None:
    """The encoder and the speech that every lab starts from."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    transformers.HubertModel(config).save_pretrained(folder / "encoder")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(
        folder / "encoder"
    )
    preset = {
        "model_name_or_path": "encoder",
        "train_data": "speech",
        "max_steps": 6,
        "warmup_steps": 2,
        "save_steps": 2,
        "pairs_per_update": 4,
        "per_device_train_batch_size": 2,
        "projection_dim": 16,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "plots": False,
        "disable_tqdm": True,
    }
    (folder / "lab.json").write_text(json.dumps(preset))
    words = ("ONE TWO", "THREE", "FOUR FIVE SIX", "SEVEN")
    for speaker in (1, 2, 3):
        chapter = folder / "speech" / str(speaker) / "10"
        chapter.mkdir(parents=True)
        lines = []
        for number in range(4):
            name = f"{speaker}-10-{number:04d}"
            soundfile.write(chapter / f"{name}.flac", tones(0.5 + 0.1 * number, speaker * 10 + number), 16_000)
            lines.append(f"{name} {words[number]}")
        (chapter / f"{speaker}-10.trans.txt").write_text("\n".join(lines) + "\n")


def tones(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """A few tones that come and go and a little noise, `(samples,)` float32."""
    generator = np.random.default_rng(seed)
    at = np.arange(int(seconds * rate)) / rate
    wave = 0.01 * generator.standard_normal(len(at))
    for _ in range(6):
        pitch, phase, rhythm = generator.uniform(100, 2000), generator.uniform(0, 6), generator.uniform(1, 4)
        wave += 0.08 * np.sin(2 * np.pi * pitch * at + phase) * (np.sin(2 * np.pi * rhythm * at + phase) > 0)
    return wave.astype(np.float32)


@contextlib.contextmanager
def fresh_lab(template: Path, folder: Path):
    """A lab in `folder`, copied from the template and deleted afterwards."""
    shutil.copytree(template, folder)
    try:
        yield Lab(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def warm_up() -> None:
    """Import what the commands need, once; no thread may have started when the first command forks."""
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # its thread may hold a lock when a command forks
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import laser_hf.demo.__main__
    import laser_hf.publishing.convert
    import laser_hf.publishing.eval_ctc
    import laser_hf.publishing.push
    import laser_hf.superb.__main__
    import laser_hf.training  # noqa: F401
