"""Kinds 4 and 5 in training: nothing done is not a success, and launches that cannot work."""

from __future__ import annotations

import json
import signal

import datasets
import numpy as np
import soundfile

from laser_hf.records import TRAINING_RECORD, read_json

from ..lab import Fault, Lab, Outcome, digest
from .disk import once, tell


def _bad_files(count: int | None, *more: str):
    """The first `count` files are no audio, all of them by default."""

    def provoke(lab: Lab) -> Outcome:
        for path in sorted(lab.speech.rglob("*.flac"))[:count]:
            path.write_bytes(b"not audio")
        return lab.train(*more)

    return provoke


def _silent(lab: Lab) -> Outcome:
    for path in lab.speech.rglob("*.flac"):
        soundfile.write(path, np.zeros(9000), 16_000)
    return lab.train()


def _nothing_exported(lab: Lab, outcome: Outcome) -> str | None:
    found = [name for name in (TRAINING_RECORD, "model.safetensors") if (lab.out / name).exists()]
    return f"{', '.join(found)} is there" if found else None


def _empty_update(lab: Lab) -> Outcome:
    """One bad file of three, one pair an update; momentum and weight decay would move weights without a gradient."""
    *_, bad, _, _ = files = sorted(lab.speech.rglob("*.flac"))
    bad.write_bytes(b"not audio")
    for path in files[:-3]:
        path.unlink()
    how = ("--pairs_per_update", "1", "--max_steps", "3", "--lr_scheduler_type", "constant", "--save_steps", "1")
    return lab.train(*how, "--weight_decay", "0.1", "--save_total_limit", "5")


def _changed_nothing(lab: Lab, outcome: Outcome) -> str | None:
    log = [entry for entry in read_json(lab.out / "training_log.json")["log"] if "learning_rate" in entry]
    (empty,) = [entry["step"] for entry in log if "loss" not in entry]
    weights = {step: digest(lab.out / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3)}
    return None if empty > 1 and weights[empty] == weights[empty - 1] else f"update {empty} changed weights"


def _precision(expected: str):
    def judge(lab: Lab, outcome: Outcome) -> str | None:
        record = read_json(lab.out / TRAINING_RECORD)
        found = (record["precision"], record["recipe"]["training"]["bf16"])
        return None if found == (expected, expected == "bf16") else f"the record says {found}"

    return judge


def _in_environment(*more: str, **environment: str):
    return lambda lab: lab.train(*more, environment=environment)


def _option(kind: int, *argv: str, says: str, status: int = 2, quick: bool = False) -> Fault:
    return Fault(
        kind, f"train {' '.join(argv)}", lambda lab: lab.train(*argv), status, (says,), _nothing_exported, quick
    )


def _own_data_with_a_preset(lab: Lab) -> Outcome:
    """The preset names a split of its own data."""
    preset = json.loads((lab.path / "lab.json").read_text())
    preset |= {"train_data": "elsewhere", "train_name": "clean", "train_split": "train.100"}
    (lab.path / "lab.json").write_text(json.dumps(preset))
    return lab.train("--train_data", "speech")


def _sharded(name: str) -> Fault:
    def kept(lab: Lab, outcome: Outcome) -> str | None:
        return None if (lab.out / "checkpoint-4").is_dir() else "the checkpoint is gone"

    def provoke(lab: Lab) -> Outcome:
        lab.train(kill_when=(lab.out / "checkpoint-4").is_dir)
        return lab.train(environment={name: "true"})

    return Fault(5, f"{name} with a checkpoint to resume", provoke, 2, ("DDP",), kept)


def _no_rows(*more: str):
    """A data set without a row."""

    def provoke(lab: Lab) -> Outcome:
        (lab.path / "set").mkdir()
        audio = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
        datasets.Dataset.from_dict({"audio": []}, features=audio).to_parquet(lab.path / "set" / "train.parquet")
        return lab.train("--train_data", "set", *more)

    return provoke


def _stopped_early(lab: Lab) -> Outcome:
    """SIGTERM, as a cluster sends it before it takes a node back: a checkpoint, and the same command goes on."""
    argv = [*lab.training(), "--max_steps", "40"]
    first = lab.run(
        "train", *argv, kill_when=once((lab.out / "checkpoint-4" / "files.json").is_file, lambda: tell(signal.SIGTERM))
    )
    again = lab.run("train", *argv)
    if again.status or read_json(lab.out / TRAINING_RECORD)["updates"] != 40:
        first.output += f"\nagain: {again.output}\nTraceback (most recent call last)"
    return first


FAULTS = [
    Fault(4, "a run that is stopped early by SIGTERM", _stopped_early, 75, ("stopped after update", "by SIGTERM")),
    _option(4, "--enable_jit_checkpoint", "true", says="SIGTERM ends a run with a checkpoint as it is"),
    Fault(4, "a stream without a row", _no_rows("--streaming", "true"), 1, ("ended after 0 of --max_steps 6",)),
    Fault(4, "a data set without a row", _no_rows(), 1, ("corresponds to no data",)),
    Fault(
        4,
        "no file is audio",
        _bad_files(None),
        1,
        ("none of the 12 utterances", "'undecodable': 12"),
        _nothing_exported,
        True,
    ),
    Fault(4, "all files are silent", _silent, 1, ("none of the 12 utterances", "silent"), _nothing_exported),
    Fault(
        4,
        "no file of a stream is audio",
        _bad_files(None, "--streaming", "true"),
        1,
        ("none of the",),
        _nothing_exported,
    ),
    Fault(4, "an update without a usable pair", _empty_update, 0, ("skipped utterance",), _changed_nothing),
    _option(4, "--max_train_samples", "0", says="--max_train_samples must be at least 1, got 0"),
    _option(4, "--max_train_samples", "-3", says="--max_train_samples must be at least 1, got -3"),
    _option(4, "--projection_dim", "0", says="--projection_dim must be at least 1, got 0"),
    _option(4, "--fp16", says="fp16 needs a GPU"),
    Fault(
        4,
        "accelerate config with fp16, on a CPU",
        _in_environment(ACCELERATE_MIXED_PRECISION="fp16"),
        2,
        ("needs a GPU",),
    ),
    Fault(
        4, "accelerate config with bf16", _in_environment(ACCELERATE_MIXED_PRECISION="bf16"), 0, (), _precision("bf16")
    ),
    Fault(
        4, "accelerate config with fp8", _in_environment(ACCELERATE_MIXED_PRECISION="fp8"), 2, ("fp8 is not supported",)
    ),
    Fault(4, "no accelerate config", _in_environment(), 0, (), _precision("fp32")),
    _sharded("ACCELERATE_USE_FSDP"),
    _sharded("ACCELERATE_USE_DEEPSPEED"),
    _option(5, "--fsdp", "full_shard", says="DDP"),
    _option(5, "--deepspeed", "ds.json", says="DDP"),
    Fault(
        5, "training with --gradient_checkpointing true", lambda lab: lab.train("--gradient_checkpointing", "true"), 0
    ),
    Fault(7, "a folder of one's own with a preset that names a split", _own_data_with_a_preset, 0, (), None, True),
]
