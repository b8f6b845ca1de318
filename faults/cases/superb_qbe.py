"""Query by example and discrimination: kills, damage, tables as other systems leave them, nothing done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from safetensors.torch import load_file, save_file

from laser_hf.records import RESULTS, read_json

from ..kills import KillPlan
from ..lab import Fault, Lab, Outcome, digest

QUERIES = ("query", "audio", "start_seconds", "duration_seconds", "speaker")


def _rows(lab: Lab) -> dict[str, list[Sequence[str]]]:
    """A task on the speech of the lab: of each recording a query; it is found in a copy by the next speaker."""
    rows: dict[str, list[Sequence[str]]] = {
        "queries.tsv": [QUERIES],
        "documents.tsv": [("document", "audio", "speaker")],
        "targets.tsv": [("query", "document")],
    }
    for path in sorted(lab.speech.rglob("*.flac")):
        speaker = path.stem.split("-")[0]
        other = str(int(speaker) % 3 + 1)
        rows["queries.tsv"].append(
            (f"q{path.stem}", f"../speech/{path.relative_to(lab.speech)}", "0.1", "0.3", speaker)
        )
        rows["documents.tsv"].append((f"d{path.stem}", f"../speech/{path.relative_to(lab.speech)}", other))
        rows["targets.tsv"].append((f"q{path.stem}", f"d{path.stem}"))
    return rows


def make(lab: Lab) -> Path:
    folder = lab.path / "task"
    folder.mkdir()
    for name, rows in _rows(lab).items():
        (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows))
    return folder


def argv(lab: Lab, *more: str | Path) -> list[str | Path]:
    return ["superb", "qbe", "--model", lab.encoder, "--data", lab.path / "task", "--output_dir", lab.out, *more]


def _qbe(change: Callable[[Lab, Path], Any] | None = None, *more: str) -> Callable[[Lab], Outcome]:
    """Make the task, change something and search it."""

    def provoke(lab: Lab) -> Outcome:
        folder = make(lab)
        if change is not None:
            change(lab, folder)
        return lab.run(*argv(lab, *more))

    return provoke


def _result(lab: Lab) -> dict[str, Any]:
    record = read_json(lab.out / RESULTS)
    kept = ("metric", "value", "metrics", "layers", "recipe", "data", "weights_sha256")
    files = {name: digest(lab.out / name) for name in ("scores.tsv", "benchmark.stdlist.xml")}
    return {name: record[name] for name in kept} | files


def _after(spoil: Callable[[Lab], Any], stage: str = "*_layer*/*.npz") -> Callable[[Lab], Outcome]:
    """Kill a run once `stage` is in the cache, spoil something, and start it again."""

    def provoke(lab: Lab) -> Outcome:
        make(lab)
        cache, layers = lab.out / "cache", ("--layer", "all")
        lab.run(*argv(lab, *layers), kill_when=lambda: bool(list(cache.glob(stage))))
        if not list(cache.glob(stage)):
            raise RuntimeError("the run was not interrupted where it should be")
        spoil(lab)
        return lab.run(*argv(lab, *layers))

    return provoke


def _as_whole(lab: Lab, outcome: Outcome) -> str | None:
    """What a resumed run left must be what an undisturbed one leaves."""
    found, kept = _result(lab), lab.out
    lab.out = lab.path / "whole"
    lab.run(*argv(lab, "--layer", "all"))
    expected, lab.out = _result(lab), kept
    differs = [name for name in expected if found[name] != expected[name]]
    return f"differs from an undisturbed run in {', '.join(differs)}" if differs else None


def _untouched(lab: Lab, outcome: Outcome) -> str | None:
    return "a record was written" if (lab.out / RESULTS).exists() else None


def _cache(lab: Lab, pattern: str) -> Path:
    return sorted((lab.out / "cache").glob(pattern))[-1]


def _cut(pattern: str, keep: int) -> Callable[[Lab], Any]:
    def spoil(lab: Lab) -> None:
        path = _cache(lab, pattern)
        path.write_bytes(path.read_bytes()[:keep])

    return spoil


def _flip(pattern: str) -> Callable[[Lab], Any]:
    def spoil(lab: Lab) -> None:
        path = _cache(lab, pattern)
        data = bytearray(path.read_bytes())
        for place in range(len(data) // 2, len(data) // 2 + 64):
            data[place] ^= 255
        path.write_bytes(data)

    return spoil


def _edit_weights(lab: Lab) -> None:
    path = lab.encoder / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 0.25
    save_file(tensors, path, {"format": "pt"})


def _swap(lab: Lab) -> None:
    """Two recordings change places: names, times and the folder's size stay."""
    one, other = lab.speech / "1" / "10" / "1-10-0000.flac", lab.speech / "2" / "10" / "2-10-0000.flac"
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _move(lab: Lab) -> None:
    shutil.copytree(lab.path / "task", lab.path / "elsewhere")
    shutil.copytree(lab.speech, lab.path / "aside", copy_function=shutil.copyfile)
    shutil.rmtree(lab.speech)
    (lab.path / "aside").rename(lab.speech)


def _table(name: str, spoil: Callable[[bytes], bytes]) -> Callable[[Lab, Path], Any]:
    def change(lab: Lab, folder: Path) -> None:
        (folder / name).write_bytes(spoil((folder / name).read_bytes()))

    return change


def _line(name: str, text: str) -> Callable[[Lab, Path], Any]:
    return _table(name, lambda data: data + text.encode() + b"\n")


def _all_bad(lab: Lab, folder: Path) -> None:
    for path in lab.speech.rglob("*.flac"):
        path.write_bytes(b"no audio")


def _silent(lab: Lab, folder: Path) -> None:
    for path in lab.speech.rglob("*.flac"):
        soundfile.write(path, np.zeros(8000, dtype=np.float32), 16_000)


def _own_speaker(lab: Lab, folder: Path) -> None:
    for name in ("queries.tsv", "documents.tsv"):
        lines = (folder / name).read_text().splitlines()
        lines[1:] = [line.rpartition("\t")[0] + "\t1" for line in lines[1:]]
        (folder / name).write_text("\n".join(lines) + "\n")


def _missing_layer(lab: Lab, folder: Path) -> None:
    path = lab.encoder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "layers.2." not in name}
    save_file(kept, path, {"format": "pt"})


def _discrimination(change: Callable[[Lab, Path], Any] | None = None, *more: str) -> Callable[[Lab], Outcome]:
    """Words and phones over the speech of the lab."""

    def provoke(lab: Lab) -> Outcome:
        path = lab.path / "words.tsv"
        lines = ["utterance\tword\tstart_seconds\tduration_seconds\tphones"]
        for number, audio in enumerate(sorted(lab.speech.rglob("*.flac"))):
            for place in range(2):
                word = ("river", "garden", "letter")[(number + place) % 3]
                phones = f"{word[0]}:{5 + 20 * place}:8 {word[1]}:{13 + 20 * place}:8"
                lines.append(f"{audio.stem}\t{word}\t{0.05 + 0.2 * place}\t0.16\t{phones}")
        path.write_text("\n".join(lines) + "\n")
        if change is not None:
            change(lab, path)
        where = ["--data", lab.speech, "--alignments", path, "--output_dir", lab.out, "--min_seconds", "0.1"]
        return lab.run("superb", "discrimination", "--model", lab.encoder, *where, *more)

    return provoke


def _one_word(lab: Lab, path: Path) -> None:
    header, first, *_ = path.read_text().splitlines()
    path.write_text(f"{header}\n{first.rpartition(chr(9))[0]}\t\n")


def _encode(encoding: str, mark: str = "") -> Callable[[Lab, Path], Any]:
    def change(lab: Lab, path: Path) -> None:
        path.write_bytes((mark + path.read_text().replace("river", "rivèr")).encode(encoding))

    return change


def _has_value(lab: Lab, outcome: Outcome) -> str | None:
    value = read_json(lab.out / RESULTS)["value"]
    return None if isinstance(value, float) else f"the value is {value}"


def _lab_speech_is_there(lab: Lab, outcome: Outcome) -> str | None:
    there = len(list(lab.speech.rglob("*.flac"))), (lab.encoder / "model.safetensors").is_file()
    return None if there == (12, True) else f"inputs were touched: {there}"


BATCH = "frames/batch-000000.safetensors"

FAULTS = [
    # 1. damage
    Fault(1, "qbe: scores cut short", _after(_cut("*_layer*/*.npz", 60)), 0, ("is damaged",), _as_whole),
    Fault(1, "qbe: scores empty", _after(_cut("*_layer*/*.npz", 0)), 0, ("is damaged",), _as_whole),
    Fault(1, "qbe: scores with 64 flipped bytes", _after(_flip("*_layer*/*.npz")), 0, ("is damaged",), _as_whole),
    Fault(1, "qbe: frames cut short", _after(_cut(BATCH, 5000), BATCH), 0, judge=_as_whole),
    Fault(1, "qbe: frames empty", _after(_cut(BATCH, 0), BATCH), 0, judge=_as_whole),
    Fault(1, "qbe: frames with 64 flipped bytes", _after(_flip(BATCH), BATCH), 0, judge=_as_whole),
    Fault(
        1,
        "qbe: truncated recipe.json",
        _after(lambda lab: (lab.out / "recipe.json").write_text('{"layers": [')),
        says=("recipe.json",),
    ),
    # 3. identity
    Fault(3, "qbe: model edited between kill and resume", _after(_edit_weights), says=("--model",), judge=_untouched),
    Fault(3, "qbe: two recordings swapped between kill and resume", _after(_swap), says=("--data",), judge=_untouched),
    Fault(3, "qbe: the same speech copied anew goes on", _after(_move), 0, judge=_as_whole),
    Fault(
        3,
        "qbe: output folder is the model's",
        lambda lab: (make(lab), setattr(lab, "out", lab.encoder), lab.run(*argv(lab, "--overwrite_output_dir")))[-1],
        says=("--output_dir", "holds --model"),
        judge=_lab_speech_is_there,
        quick=True,
    ),
    Fault(
        3,
        "qbe: output folder above the data",
        lambda lab: (make(lab), setattr(lab, "out", lab.path), lab.run(*argv(lab, "--overwrite_output_dir")))[-1],
        says=("holds --model",),
        judge=_lab_speech_is_there,
    ),
    # 4. nothing done
    Fault(4, "qbe: all recordings bad", _qbe(_all_bad), says=("no query or no document could be used",)),
    Fault(4, "qbe: all recordings silent", _qbe(_silent), says=("could be used", "silent"), judge=_untouched),
    Fault(
        4, "qbe: every target is of the query's speaker", _qbe(_own_speaker), says=("no query of test has a target",)
    ),
    Fault(
        4,
        "qbe: every query too short",
        _qbe(_table("queries.tsv", lambda d: d.replace(b"\t0.3\t", b"\t0.05\t"))),
        says=("nothing could be aligned",),
        judge=_untouched,
    ),
    Fault(4, "qbe: encoder without its top layer", _qbe(_missing_layer), says=("layers.2",), judge=_untouched),
    Fault(
        4,
        "discrimination: one word and no phones",
        _discrimination(_one_word),
        says=("can be compared",),
        judge=_untouched,
    ),
    Fault(
        4,
        "discrimination: no utterance has audio",
        _discrimination(lambda lab, p: p.write_text(p.read_text().replace("-10-", "-11-"))),
        says=("has audio in",),
    ),
    # 6. text
    Fault(
        6,
        "qbe: tables with byte-order marks and CRLF",
        _qbe(
            lambda lab, folder: [
                _table(n, lambda d: b"\xef\xbb\xbf" + d.replace(b"\n", b"\r\n"))(lab, folder)
                for n in ("queries.tsv", "documents.tsv", "targets.tsv")
            ]
        ),
        0,
        judge=lambda lab, outcome: _has_value(lab, outcome),
        quick=True,
    ),
    Fault(
        6,
        "qbe: a table in Latin-1",
        _qbe(_table("targets.tsv", lambda d: d + "q\xe9\td\n".encode("latin-1"))),
        says=("targets.tsv, line 14", "UTF-8"),
    ),
    Fault(
        6,
        "qbe: a table in UTF-16",
        _qbe(_table("queries.tsv", lambda d: d.decode().encode("utf-16"))),
        says=("queries.tsv, line 1", "UTF-8"),
    ),
    Fault(
        6,
        "qbe: a table without a column",
        _qbe(_table("documents.tsv", lambda d: d.replace(b"speaker", b"voice"))),
        says=("documents.tsv", "no column speaker"),
    ),
    Fault(
        6,
        "qbe: a document named twice",
        _qbe(_line("documents.tsv", "d1-10-0000\tx.flac\t1")),
        says=("documents.tsv, line 14", "twice"),
    ),
    Fault(
        6,
        "qbe: a target nobody knows",
        _qbe(_line("targets.tsv", "q1-10-0000\tnowhere")),
        says=("targets.tsv, line 14", "nowhere"),
    ),
    Fault(
        6,
        "qbe: a query that starts at nan",
        _qbe(_line("queries.tsv", "qx\tx.flac\tnan\t0.3\t1")),
        says=("queries.tsv, line 14", "nan"),
    ),
    Fault(
        6,
        "qbe: a query of negative duration",
        _qbe(_line("queries.tsv", "qx\tx.flac\t0\t-0.3\t1")),
        says=("queries.tsv, line 14", "-0.3"),
    ),
    Fault(6, "qbe: a line cut short", _qbe(_line("queries.tsv", "qx\tx.flac")), says=("queries.tsv, line 14",)),
    Fault(
        6,
        "qbe: no documents.tsv",
        _qbe(lambda lab, folder: (folder / "documents.tsv").unlink()),
        says=("lacks documents.tsv",),
    ),
    Fault(
        6,
        "discrimination: alignments with a byte-order mark",
        _discrimination(_encode("utf-8", "\ufeff")),
        0,
        judge=_has_value,
    ),
    Fault(
        6,
        "discrimination: alignments in Latin-1",
        _discrimination(_encode("latin-1")),
        says=("words.tsv, line 2", "UTF-8"),
    ),
    Fault(
        6,
        "discrimination: alignments without a column",
        _discrimination(lambda lab, p: p.write_text(p.read_text().replace("word\t", "term\t", 1))),
        says=("words.tsv", "no column word"),
    ),
    Fault(
        6,
        "discrimination: two recordings of one name",
        _discrimination(lambda lab, p: shutil.copytree(lab.speech / "1", lab.speech / "copy" / "1")),
        says=("have the name of one utterance",),
        judge=_untouched,
    ),
    # 7. options
    Fault(7, "qbe: --layer 9", _qbe(None, "--layer", "9"), says=("layers 0 to 3, not 9",), judge=_untouched),
    Fault(7, "qbe: --layer last", _qbe(None, "--layer", "last"), says=("--layer expects",)),
    Fault(7, "qbe: --seed -1", _qbe(None, "--seed", "-1"), says=("--seed must be from 0",)),
    Fault(7, "qbe: --output_dir ''", _qbe(None, "--output_dir", ""), says=("--output_dir is empty",)),
    Fault(7, "qbe: --select_layer dev without a dev set", _qbe(None, "--select_layer", "dev"), says=("--dev_data",)),
    Fault(7, "qbe: --device tpu", _qbe(None, "--device", "tpu"), says=("--device tpu cannot be used",)),
    Fault(
        7,
        "discrimination: --min_seconds nan",
        _discrimination(None, "--min_seconds", "nan"),
        says=("--min_seconds must be at least 0",),
    ),
    Fault(
        7,
        "discrimination: --max_pairs -5",
        _discrimination(None, "--max_pairs", "-5"),
        says=("--max_pairs must be at least 2",),
    ),
    Fault(
        7,
        "discrimination: --max_utterances 0",
        _discrimination(None, "--max_utterances", "0"),
        says=("--max_utterances must be at least 1",),
    ),
]


def _plan(lab: Lab) -> list[str]:
    if not (lab.path / "task").is_dir():
        make(lab)
    return [str(one) for one in argv(lab, "--layer", "all")]


KILLS = [KillPlan("superb qbe", _plan, _result, 6)]
