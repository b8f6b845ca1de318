"""Kinds 1, 2 and 3: damaged checkpoints, kills, the ends of a resumed run, and whose folder it is."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file, save_file

from laser_hf.records import TRAINING_RECORD, read_json
from laser_hf.runs import RunFolder

from ..kills import KillPlan, training_result
from ..lab import Fault, Lab, Outcome, digest, tones


def _interrupted(lab: Lab, *more: str, step: int = 4) -> Path:
    """A run that was killed after a checkpoint; returns that checkpoint."""
    newest = lab.out / f"checkpoint-{step}"
    lab.train(*more, kill_when=newest.is_dir)
    return newest


def _damage(name: str, how: Callable[[Path], object]) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        how(_interrupted(lab) / name)
        return lab.train()

    return provoke


def _truncate(keep: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 64):
        data[place] ^= 0xFF
    path.write_bytes(data)


def _as_without_kills(lab: Lab, outcome: Outcome) -> str | None:
    """Weights and record against those of a run that nothing disturbed."""
    found = training_result(lab)
    shutil.rmtree(lab.out)
    lab.train()
    expected = training_result(lab)
    differs = [name for name in expected if found[name] != expected[name]]
    return f"differs in {', '.join(differs)}" if differs else None


def _twice(lab: Lab) -> Outcome:
    """The same checkpoint is damaged twice."""
    newest = _interrupted(lab)
    (newest / "files.json").unlink()
    lab.train(kill_when=lambda: (lab.out / "broken-checkpoint-4").is_dir() and newest.is_dir())
    shutil.rmtree(lab.out / "checkpoint-6", ignore_errors=True)
    (newest / "files.json").unlink()
    return lab.train()


def _broken_kept(lab: Lab, outcome: Outcome) -> str | None:
    kept = {path.name for path in lab.out.glob("broken-*")}
    return None if {"broken-checkpoint-4", "broken-checkpoint-4-2"} <= kept else f"kept are {sorted(kept)}"


def _leftovers(lab: Lab) -> Outcome:
    _interrupted(lab)
    for name in (".writing/checkpoint-6", ".export-abc"):
        (lab.out / name).mkdir(parents=True, exist_ok=True)
        (lab.out / name / "model.safetensors").write_bytes(b"half")
    (lab.out / "tmpabc.tmp").write_text("{")
    return lab.train()


def _no_leftovers(lab: Lab, outcome: Outcome) -> str | None:
    left = [path.name for path in lab.out.iterdir() if path.name.startswith((".writing", ".export", "tmp"))]
    return f"left are {left}" if left else None


def _killed_before_the_record(lab: Lab) -> Outcome:
    lab.train()
    for name in (TRAINING_RECORD, "model.safetensors"):
        (lab.out / name).unlink()
    return lab.train()


def _no_update_more(lab: Lab, outcome: Outcome) -> str | None:
    record = read_json(lab.out / TRAINING_RECORD)
    if record["updates"] != 6 or (lab.out / "checkpoint-7").exists():
        return f"{record['updates']} updates instead of 6"
    return _as_without_kills(lab, outcome)


def _exploding(*more: str) -> Callable[[Lab], Outcome]:
    """The second update makes infinite weights; the first has a learning rate of 0."""
    how = ("--optim", "sgd", "--learning_rate", "3e38", "--max_grad_norm", "0", "--save_steps", "1")
    return lambda lab: lab.train(*how, *more)


def _goes_on(lab: Lab) -> Outcome:
    """The command that the message of `_exploding` gives, with a rate that can work."""
    _exploding()(lab)
    how = ("--optim", "sgd", "--max_grad_norm", "0", "--save_steps", "1", "--learning_rate", "1e-6")
    return lab.train(*how, "--resume_from_checkpoint", str(lab.out / "checkpoint-1"), out=lab.path / "out-2")


def _saved_states_are_finite(lab: Lab, outcome: Outcome) -> str | None:
    for path in lab.out.glob("checkpoint-*/model.safetensors"):
        if not all(torch.isfinite(tensor).all() for tensor in load_file(path).values()):
            return f"{path.parent.name} is not finite"
    return None


def _continue(*more: str) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        lab.train("--lr_scheduler_type", "constant", "--save_total_limit", "5")
        how = ("--resume_from_checkpoint", "out/checkpoint-2", "--lr_scheduler_type", "constant")
        return lab.train(*how, *more, out=lab.path / "other")

    return provoke


def _continued(lab: Lab, outcome: Outcome) -> str | None:
    record = read_json(lab.path / "other" / TRAINING_RECORD)
    if record["continued_from"] != "out/checkpoint-2" or record["updates"] != 6:
        return f"the record says {record['continued_from']} and {record['updates']} updates"
    log = read_json(lab.path / "other" / "training_log.json")["log"]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    if [rates[step] for step in (2, 3, 6)] != [1e-3, 1e-5, 1e-5]:
        return f"learning rates {rates}"
    same = digest(lab.path / "other" / "model.safetensors") == digest(lab.out / "model.safetensors")
    return "the weights are those of the old rate" if same else None


def _only_models(lab: Lab) -> Outcome:
    _interrupted(lab, "--save_only_model", "true")
    return lab.train("--save_only_model", "true")


def _edit_speech(how: Callable[[list[Path]], object]) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        _interrupted(lab)
        how(sorted(lab.speech.rglob("*.flac")))
        return lab.train()

    return provoke


def _edit_input(changed: str) -> Callable[[Lab], Outcome]:
    """Exchange a noise recording, or an utterance of a stream, for another one of the same length."""

    def provoke(lab: Lab) -> Outcome:
        noise = lab.path / "noise" / "hum.wav"
        noise.parent.mkdir()
        soundfile.write(noise, tones(1.0, 1), 16_000)
        soundfile.write(lab.speech / "more.wav", tones(1.0, 2), 16_000)
        how = ("--streaming", "true", "--perturbations", "noise", "--noise_dir", "noise")
        _interrupted(lab, *how)
        soundfile.write(noise if changed == "noise" else lab.speech / "more.wav", tones(1.0, 3), 16_000)
        return lab.train(*how)

    return provoke


def _swap(files: list[Path]) -> None:
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)


def _edit_base(lab: Lab) -> Outcome:
    _interrupted(lab)
    weights = load_file(lab.encoder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.2.attention.k_proj.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, lab.encoder / "model.safetensors", metadata={"format": "pt"})
    return lab.train()


def _moved(lab: Lab) -> Outcome:
    _interrupted(lab)
    lab.speech.rename(lab.path / "mount")
    lab.encoder.rename(lab.path / "base")
    return lab.train("--train_data", "mount", "--model", "base")


def _moved_is_the_same(lab: Lab, outcome: Outcome) -> str | None:
    found = training_result(lab)
    (lab.path / "mount").rename(lab.speech)
    (lab.path / "base").rename(lab.encoder)
    shutil.rmtree(lab.out)
    lab.train()
    expected = training_result(lab)
    same = all(found[name] == expected[name] for name in ("model.safetensors", "last", "updates", "processed_hours"))
    return None if same else "the result is another one"


def _into(output: str, *more: str, inputs: Callable[[Lab], Path] = lambda lab: lab.encoder) -> Fault:
    before: dict[str, bytes] = {}

    def provoke(lab: Lab) -> Outcome:
        (lab.path / "noise").mkdir()
        (lab.path / "noise" / "hum.wav").write_bytes(b"RIFF")
        (lab.path / "link").symlink_to(lab.encoder)
        before.clear()
        before.update({str(path): path.read_bytes() for path in sorted(inputs(lab).rglob("*")) if path.is_file()})
        return lab.train("--overwrite_output_dir", *more, out=Path(output))

    def untouched(lab: Lab, outcome: Outcome) -> str | None:
        now = {str(path): path.read_bytes() for path in sorted(inputs(lab).rglob("*")) if path.is_file()}
        return None if now == before else "the input was touched"

    return Fault(3, f"--output_dir {output} is or holds an input", provoke, 1, ("which this run reads",), untouched)


def _hold(folder: Path, ready, done) -> None:
    RunFolder(folder, TRAINING_RECORD).check()
    ready.set()
    done.wait(60)


def _two_at_once(lab: Lab) -> Outcome:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(lab.out, ready, done))
    first.start()
    ready.wait(60)
    try:
        return lab.train()
    finally:
        done.set()
        first.join()


FAULTS = [
    *(
        Fault(
            1,
            f"{what} {name} in the newest checkpoint",
            _damage(name, how),
            0,
            ("broken-checkpoint-4",),
            _as_without_kills,
            quick=name == "trainer_state.json",
        )
        for what, name, how in (
            ("truncated", "trainer_state.json", _truncate(0)),
            ("truncated", "model.safetensors", _truncate(100)),
            ("truncated", "optimizer.pt", _truncate(50)),
            ("truncated", "scheduler.pt", _truncate(0)),
            ("truncated", "rng_state.pth", _truncate(10)),
            ("truncated", "recipe.json", _truncate(20)),
            ("truncated", "files.json", _truncate(20)),
            ("missing", "model.safetensors", Path.unlink),
            ("missing", "laser_state.json", Path.unlink),
            ("64 flipped bytes in", "model.safetensors", _flip),
            ("64 flipped bytes in", "optimizer.pt", _flip),
        )
    ),
    Fault(1, "the same checkpoint damaged twice", _twice, 0, ("broken-checkpoint-4-2",), _broken_kept),
    Fault(1, "truncated recipe.json of the run", _damage("../recipe.json", _truncate(20)), 0, (), _as_without_kills),
    Fault(1, "leftovers of a killed export and checkpoint", _leftovers, 0, (), _no_leftovers),
    Fault(2, "killed after the last update, before the record", _killed_before_the_record, 0, (), _no_update_more),
    Fault(2, "--max_steps 0", lambda lab: lab.train("--max_steps", "0"), 2, ("--max_steps must be at least 1, got 0",)),
    Fault(
        2,
        "weights that stop being finite",
        _exploding(),
        1,
        (
            "the weights are not finite after update 2",
            "the last finite state is",
            "out/checkpoint-",
            "--resume_from_checkpoint",
        ),
        _saved_states_are_finite,
    ),
    Fault(
        2,
        "weights that stop being finite, where no checkpoint is due",
        _exploding("--save_steps", "5"),
        1,
        ("the weights are not finite after update 2", "--learning_rate 3e+37"),
        _saved_states_are_finite,
    ),
    Fault(2, "going on from the last finite state", _goes_on, 0, ("Resuming from",)),
    Fault(2, "going on from a checkpoint at another rate", _continue("--learning_rate", "1e-5"), 0, (), _continued),
    Fault(2, "going on from a checkpoint with another alpha", _continue("--alpha", "0.9"), 1, ("--alpha",)),
    Fault(2, "going on from a checkpoint with more updates", _continue("--max_steps", "9"), 1, ("--max_steps 6 -> 9",)),
    Fault(2, "--save_only_model, interrupted", _only_models, 0, ("nothing to resume",), _as_without_kills),
    Fault(
        3,
        "a speech file removed between kill and resume",
        _edit_speech(lambda files: files[0].unlink()),
        1,
        ("the content of --train_data is another",),
    ),
    Fault(3, "two speech files swapped", _edit_speech(_swap), 1, ("the content of --train_data is another",)),
    Fault(3, "noise exchanged between kill and resume", _edit_input("noise"), 1, ("the content of --noise_dir",)),
    Fault(
        3, "streamed speech exchanged between kill and resume", _edit_input("speech"), 1, ("content of --train_data",)
    ),
    Fault(3, "the base model edited between kill and resume", _edit_base, 1, ("the content of --model_name_or_path",)),
    Fault(3, "speech and base model under another path", _moved, 0, (), _moved_is_the_same),
    _into("encoder"),
    _into("link"),
    _into("."),
    _into("speech/1", "--train_data", "speech/1/10", inputs=lambda lab: lab.speech),
    _into("noise", "--perturbations", "noise", "--noise_dir", "noise", inputs=lambda lab: lab.path / "noise"),
    Fault(3, "two runs at once in one folder", _two_at_once, 1, ("another process runs in --output_dir",)),
]


def _kills(name: str, kills: int, *more: str) -> KillPlan:
    return KillPlan(
        f"training, {name}", lambda lab: ["train", *lab.training(), *more], training_result, kills, quick=not more
    )


KILLS = [
    _kills("map-style", 10),
    _kills("map-style with held-out speech", 10, "--eval_data", "speech/1", "--eval_steps", "1"),
    _kills("map-style with one checkpoint kept", 10, "--save_total_limit", "1", "--save_steps", "1"),
    _kills("streaming", 10, "--streaming", "true", "--dataloader_num_workers", "2"),
]
