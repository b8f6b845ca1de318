"""Kinds 1 to 4, 6 and 7 in the head training of `superb asr` and `superb pr`."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from laser_hf.records import read_json

from ..kills import KillPlan
from ..lab import Fault, Lab, Outcome, digest

LEXICON = """ONE W AH1 N
TWO T UW1
THREE TH R IY1
FOUR F AO1 R
FIVE F AY1 V
SIX S IH1 K S
SEVEN S EH1 V AH0 N
"""


def command(lab: Lab, task: str = "pr", *more: str) -> list[str]:
    """12 updates on 4 utterances, looked at on dev every 3; later options win."""
    words = """--model encoder --data speech --output_dir out --protocol quick --train_split 1 --dev_split 2
        --test_split 3 --max_steps 12 --eval_steps 3 --batch_size 2 --projection_size 8 --report_to none --device cpu
        --disable_tqdm"""
    if task == "pr":
        if not (lab.path / "lexicon.txt").exists():
            (lab.path / "lexicon.txt").write_text(LEXICON)
        own = "--lexicon lexicon.txt"
    else:
        own = "--lstm_size 6 --time_mask_width 10 --warp_window 3"
    return ["superb", task, *words.split(), *own.split(), *more]


def result(lab: Lab, folder: str = "out") -> dict[str, Any]:
    """The head, what it recognises, and of the record what does not depend on the clock."""
    out = lab.path / folder
    record = read_json(out / "results.json")
    kept = ("metrics", "selected", "layer_weights", "head", "data", "recipe", "seed", "protocol", "weights_sha256")
    return {
        "head": digest(out / "ctc_head.safetensors"),
        "recognised": (out / "3" / "hyp.txt").read_text(),
        "files": sorted(path.name for path in out.iterdir() if not path.name.startswith("broken-")),
        "training": {name: value for name, value in record["training"].items() if name != "seconds"},
        **{f"record {name}": record[name] for name in kept},
    }


def _interrupted(lab: Lab, task: str = "pr", at: int = 6, *more: str) -> Path:
    """A run that was killed after a checkpoint; returns the checkpoint."""
    newest = lab.out / f"checkpoint-{at}"
    lab.run(*command(lab, task, *more), kill_when=lambda: (newest / "files.json").is_file())
    return newest


def _as_undisturbed(lab: Lab, outcome: Outcome) -> str | None:
    """The same command in another folder without any fault must give the same."""
    lab.run(*command(lab, "pr", "--output_dir", "reference"))
    expected, found = result(lab, "reference"), result(lab)
    return ", ".join(f"another {name}" for name in expected if found[name] != expected[name]) or None


def _flip(path: Path) -> None:
    """Turn over 64 bytes in the last quarter."""
    data = bytearray(path.read_bytes())
    start = len(data) * 3 // 4
    data[start : start + 64] = bytes(255 - byte for byte in data[start : start + 64])
    path.write_bytes(data)


def _damaged(change: Callable[[Lab, Path], None], at: int = 6) -> Callable[[Lab], Outcome]:
    """Killed after an update, something changed, started again."""

    def provoke(lab: Lab) -> Outcome:
        change(lab, _interrupted(lab, at=at))
        return lab.run(*command(lab))

    return provoke


def _batch(lab: Lab) -> Path:
    return sorted((lab.out / "features").rglob("batch-*.safetensors"))[0]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _swap_audio(lab: Lab, _: Path) -> None:
    """Two recordings of the same length, the second with another voice in it."""
    import soundfile

    path = lab.speech / "1" / "10" / "1-10-0000.flac"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate)


def _edit_transcript(lab: Lab, _: Path) -> None:
    path = lab.speech / "2" / "10" / "2-10.trans.txt"
    path.write_text(path.read_text().replace("SEVEN", "SIX"))


def _edit_weights(lab: Lab, _: Path) -> None:
    path = lab.encoder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["encoder.layer_norm.bias"][0] += 0.5
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def _edit_config(lab: Lab, _: Path) -> None:
    path = lab.encoder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 1e-3}))


def _moved(lab: Lab) -> Outcome:
    _interrupted(lab)
    lab.speech.rename(lab.path / "mounted")
    lab.encoder.rename(lab.path / "model")
    outcome = lab.run(*command(lab, "pr", "--data", "mounted", "--model", "model"))
    (lab.path / "mounted").rename(lab.speech)
    (lab.path / "model").rename(lab.encoder)
    return outcome


def _moved_equals(lab: Lab, outcome: Outcome) -> str | None:
    lab.run(*command(lab, "pr", "--output_dir", "reference"))
    return None if result(lab)["head"] == result(lab, "reference")["head"] else "another head"


def _occupied(lab: Lab) -> Outcome:
    """Another process holds the folder's lock, and dies with it."""
    lab.out.mkdir()
    child = os.fork()
    if child == 0:
        file = os.open(lab.out / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(file, fcntl.LOCK_EX)
        (lab.path / "held").touch()
        time.sleep(120)
        os._exit(0)
    while not (lab.path / "held").exists():
        time.sleep(0.01)
    outcome = lab.run(*command(lab))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if outcome.status and lab.run(*command(lab)).status != 0:
        outcome.output += "the lock outlived its process"
    return outcome


def _starts_after_the_death(lab: Lab, outcome: Outcome) -> str | None:
    return None if (lab.out / "results.json").exists() else "the folder stays locked"


def _with(task: str, *more: str, before: Callable[[Lab], None] | None = None, **environment: str):
    """The command with further options, after something was arranged."""

    def provoke(lab: Lab) -> Outcome:
        words = command(lab, task, *more)
        if before is not None:
            before(lab)
        return lab.run(*words, environment=environment)

    return provoke


def _transcribed(texts: list[str], encoding: str = "utf-8", speakers: str = "123") -> Callable[[Lab], None]:
    """Other transcripts for speakers."""

    def arrange(lab: Lab) -> None:
        for speaker in speakers:
            lines = "".join(f"{speaker}-10-{number:04d} {text}\n" for number, text in enumerate(texts))
            (lab.speech / speaker / "10" / f"{speaker}-10.trans.txt").write_bytes(lines.encode(encoding))

    return arrange


def _lexicon(encoding: str, text: str = LEXICON) -> Callable[[Lab], None]:
    def arrange(lab: Lab) -> None:
        (lab.path / "lexicon.txt").write_bytes(text.encode(encoding))

    return arrange


def _silence(lab: Lab) -> None:
    for path in (lab.speech / "1" / "10").glob("*.flac"):
        path.write_bytes(b"")


def _keep_one(lab: Lab) -> None:
    for path in sorted((lab.speech / "1" / "10").glob("*.flac"))[1:]:
        path.unlink()


def _not_finite(lab: Lab) -> None:
    path = lab.encoder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["encoder.layers.2.final_layer_norm.weight"].fill_(torch.nan)
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def _record(check: Callable[[dict[str, Any]], Any], what: str) -> Callable[[Lab, Outcome], str | None]:
    return lambda lab, _: None if check(read_json(lab.out / "results.json")) else what


def _unknown(record: dict[str, Any]) -> dict[str, int]:
    return record["data"]["train"]["unknown_units"]["listed"]


def _marked(lab: Lab) -> None:
    """Byte order marks in front of transcripts and lexicon."""
    _transcribed(["ONE", "TWO", "SIX", "SEVEN"], "utf-8-sig")(lab)
    _lexicon("utf-8-sig")(lab)


def _untouched(lab: Lab, outcome: Outcome) -> str | None:
    kept = {"config.json", "model.safetensors", "preprocessor_config.json", "recipe.json"}
    there = {path.name for path in lab.encoder.iterdir()}
    return None if kept <= there and (lab.encoder / "recipe.json").read_text() == "{}" else "the model was touched"


def _no_train_options(lab: Lab, outcome: Outcome) -> str | None:
    named = [
        word
        for word in ("--train_data", "--preset", "--max_seconds", "train.py", "laser-hf train")
        if word in outcome.output
    ]
    return f"it advises {', '.join(named)}" if named else None


def _mine(lab: Lab) -> None:
    (lab.encoder / "recipe.json").write_text("{}")


FAULTS = [
    # ---- 1: damaged files
    *(
        Fault(1, f"head training: {what}", _damaged(change), 0, says, _as_undisturbed, quick)
        for what, change, says, quick in (
            ("truncated head in a checkpoint", lambda _, c: _cut(c / "model.safetensors"), ("broken-",), False),
            ("empty trainer_state.json", lambda _, c: (c / "trainer_state.json").write_text(""), ("broken-",), False),
            ("flipped bytes in the optimizer", lambda _, c: _flip(c / "optimizer.pt"), ("broken-",), False),
            ("truncated file of cached features", lambda lab, _: _cut(_batch(lab)), ("made again",), False),
            ("flipped bytes in cached features", lambda lab, _: _flip(_batch(lab)), ("made again",), False),
        )
    ),
    Fault(
        1,
        "head training: the record of one of several runs is cut short",
        lambda lab: _several(lab),
        0,
        (),
        lambda lab, _: _several_as_undisturbed(lab),
    ),
    Fault(
        1,
        "head training: killed between record and tidying up",
        lambda lab: _untidy(lab),
        says=("holds a finished run",),
        judge=lambda lab, _: ", ".join(sorted(path.name for path in lab.out.iterdir() if path.is_dir())) or None,
    ),
    # ---- 2: ends of a resumed run
    Fault(2, "head training: killed after the last update", _damaged(lambda *_: None, 12), 0, (), _as_undisturbed),
    Fault(
        2,
        "head training: resumed with another learning rate",
        lambda lab: (_interrupted(lab), lab.run(*command(lab, "pr", "--learning_rate", "0.1")))[1],
        says=("learning_rate 0.005 -> 0.1",),
    ),
    # ---- 3: identity
    *(
        Fault(3, f"head training: {what} between kill and resume", _damaged(change), says=says)
        for what, change, says in (
            ("a recording exchanged for one of the same length", _swap_audio, ("the content of --train_split",)),
            ("a transcript edited", _edit_transcript, ("the content of --dev_split",)),
            ("the encoder's weights edited", _edit_weights, ("the content of --model",)),
            ("the encoder's config edited", _edit_config, ("the content of --model",)),
        )
    ),
    Fault(3, "head training: speech and encoder under other paths on resuming", _moved, 0, (), _moved_equals),
    Fault(
        3,
        "head training: another process in the folder",
        _occupied,
        says=("another process",),
        judge=_starts_after_the_death,
    ),
    *(
        Fault(3, f"head training: --output_dir is {what}", _with("pr", *words, before=_mine), None, says, _untouched)
        for what, words, says in (
            ("the encoder's folder, overwritten", ("--output_dir", "encoder", "--overwrite_output_dir"), ("--model",)),
            ("the folder above the encoder", ("--output_dir", "."), ("--model",)),
            ("the speech", ("--output_dir", "speech/../speech"), ("--data",)),
        )
    ),
    # ---- 4: nothing done
    Fault(
        4,
        "asr: Cyrillic transcripts",
        _with("asr", before=_transcribed(["ПРИВЕТ МИР", "ДА", "НЕТ", "ОДИН ДВА"])),
        says=("split 1: 77.8%", "has no label in asr", "Known are"),
        quick=True,
    ),
    Fault(
        4,
        "asr: punctuated transcripts",
        _with("asr", before=_transcribed(["One, two.", "Three!", "Café six", "Seven"])),
        0,
        ("has no label in asr: ", "É"),
        _record(lambda record: _unknown(record) == {",": 1, ".": 1, "!": 1, "É": 1}, "characters are not counted"),
    ),
    Fault(4, "asr: all training files empty", _with("asr", before=_silence), says=("none of its 4", "'empty': 4")),
    Fault(4, "asr: one usable utterance", _with("asr", before=_keep_one), says=("at least two usable utterances",)),
    Fault(
        4,
        "pr: no word in the lexicon",
        _with("pr", before=_lexicon("utf-8", "CAT K AE1 T\n")),
        says=("split 1: none of its 4", "unknown_word", "SEVEN"),
    ),
    Fault(
        4,
        "pr: all targets longer than their frames",
        _with("pr", before=_transcribed(["SEVEN SIX FIVE " * 20] * 4, speakers="1")),
        says=("split 1", "longer than"),
    ),
    Fault(
        4,
        "pr: an encoder with NaN, features cached",
        _with("pr", before=_not_finite),
        says=("not finite",),
    ),
    Fault(
        4,
        "pr: an encoder with NaN, features not cached",
        _with("pr", "--cache_features", "no", before=_not_finite),
        says=("finite",),
    ),
    Fault(
        4,
        "pr: accelerate is told bf16",
        _with("pr", ACCELERATE_MIXED_PRECISION="bf16"),
        0,
        (),
        _record(lambda record: record["recipe"]["precision"] == "bf16", "the record says fp32"),
    ),
    Fault(4, "pr: accelerate is told fp16", _with("pr", ACCELERATE_MIXED_PRECISION="fp16"), says=("fp16", "--bf16")),
    Fault(4, "pr: --fp16", _with("pr", "--fp16"), 2, ("unrecognized arguments: --fp16",)),
    *(
        Fault(4, f"pr: {' '.join(words)}", _with("pr", *words), 2, (f"{words[0]} must be at least",))
        for words in (("--runs", "0"), ("--max_train_utterances", "0"), ("--max_train_utterances", "-3"))
    ),
    # ---- 6: text
    Fault(
        6,
        "pr: byte order marks in transcripts and lexicon",
        _with("pr", before=_marked),
        0,
        (),
        _record(lambda record: record["data"]["train"]["utterances"] == 4, "an utterance is lost"),
    ),
    *(
        Fault(6, f"{task}: {what} in {encoding}", _with(task, before=arrange), says=says)
        for task, what, encoding, arrange, says in (
            ("asr", "transcripts", "Latin-1", _transcribed(["ONE", "CAFÉ"], "latin-1"), ("1-10.trans.txt, line 2",)),
            ("asr", "transcripts", "UTF-16", _transcribed(["ONE", "TWO"], "utf-16"), ("1-10.trans.txt", "UTF-8")),
            ("pr", "lexicon", "Latin-1", _lexicon("latin-1", LEXICON + "CAFÉ K AE0\n"), ("lexicon.txt, line 8",)),
            ("pr", "lexicon", "UTF-16", _lexicon("utf-16"), ("lexicon.txt", "UTF-8")),
        )
    ),
    Fault(6, "pr: --lexicon is a folder", _with("pr", "--lexicon", "speech"), says=("cannot read speech",)),
    # ---- 7: options
    *(
        Fault(7, f"{task}: {' '.join(words)}", _with(task, *words), 2, (f"argument {words[0]}:",))
        for task, words in (
            ("pr", ("--learning_rate", "nan")),
            ("pr", ("--learning_rate", "inf")),
            ("pr", ("--learning_rate", "-0.001")),
            ("pr", ("--max_grad_norm", "-1")),
            ("pr", ("--batch_size", "0")),
            ("pr", ("--batches_per_update", "0")),
            ("pr", ("--micro_batch_size", "0")),
            ("pr", ("--eval_batch_size", "-1")),
            ("pr", ("--logging_steps", "0")),
            ("pr", ("--dataloader_num_workers", "-1")),
            ("pr", ("--report_to", "nowhere")),
            ("asr", ("--dropout", "2")),
            ("asr", ("--time_masks", "-1")),
            ("asr", ("--lstm_layers", "0")),
        )
    ),
    *(
        Fault(7, f"pr: {' '.join(words) or what}", _with("pr", *words), says=says)
        for what, words, says in (
            ("", ("--seed", "-1"), ("--seed must be from 0",)),
            ("", ("--eval_steps", "13"), ("--eval_steps 13 exceeds --max_steps 12",)),
            ("", ("--ddp_backend", "gloo"), ("--ddp_backend is for several processes",)),
            ("", ("--revision", "main"), ("--revision is for the Hub",)),
            ("", ("--data_revision", "main"), ("--data_revision is for the Hub",)),
        )
    ),
    Fault(7, "pr: --output_dir ''", _with("pr", "--output_dir", ""), says=("--output_dir is empty",)),
    *(
        Fault(7, f"pr: {' '.join(words)} without advice on train.py", _with("pr", *words), judge=_no_train_options)
        for words in (("--model", "no/where/here"), ("--model", "someone/nothing"), ("--data", "no/where/here"))
    ),
    # ---- the table
    Fault(8, "table: a folder called as HTML", lambda lab: _table(lab), 0, (r"a\|b\`\<img",)),
]  # fmt: skip


def _table(lab: Lab) -> Outcome:
    """The table of one record of the model in a folder called as HTML and Markdown."""
    name = "a|b`<img src=x>"
    metric = {"metric": "wer", "value": 5.0, "unit": "percent", "split": "test"}
    record = {"schema_version": 2, "task": "asr", "protocol": "quick", "model": name, "metrics": [metric]}
    record |= {"recipe": {}, "data": {}, "seed": None, "wall_seconds": 1.0}
    (lab.path / name).mkdir()
    (lab.path / name / "results.json").write_text(json.dumps(record))
    return lab.run("superb", "table", name)


def _untidy(lab: Lab) -> Outcome:
    """A finished run with a checkpoint and cached features beside its record."""
    _interrupted(lab)
    (lab.out / "results.json").write_text("{}")
    return lab.run(*command(lab))


def _several(lab: Lab) -> Outcome:
    """Killed while the records of two runs are written: the record of the first is cut, the common one is missing."""
    words = command(lab, "pr", "--runs", "2")
    lab.run(*words)
    (lab.out / "results.json").rename(lab.path / "undisturbed.json")
    _cut(lab.out / "seed-1337" / "results.json")
    return lab.run(*words)


def _several_as_undisturbed(lab: Lab) -> str | None:
    one, both = (json.loads((lab.out / name).read_text()) for name in ("seed-1337/results.json", "results.json"))
    before = json.loads((lab.path / "undisturbed.json").read_text())
    if both["metrics"] != before["metrics"]:
        return "other results than undisturbed"
    return None if one["seed"] == 1337 else "the record of the first run is another one's"


LONGER = ("--max_steps", "60", "--eval_steps", "2")  # most of the time goes into updates and checkpoints
KILLS = [
    KillPlan("superb asr, head training", lambda lab: command(lab, "asr", *LONGER), result, 5),
    KillPlan("superb pr, head training", lambda lab: command(lab, "pr", *LONGER), result, 5),
]
