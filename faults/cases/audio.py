"""Kinds 4, 6 and 8, and the streams of kind 2: audio as people have it, data sets that hold nothing usable."""

from __future__ import annotations

import io
import resource
import shutil
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import psutil
import soundfile

from laser_hf.records import read_json

from ..lab import Fault, Lab, Outcome, tones

VIEWS = """
import os
import torch
from laser_hf.data import Perturbation, decode

class NanForOne(Perturbation):
    name, keeps_duration, batched = "nan_for_one", True, True
    def draw(self, rng):
        return {}
    def draw_for(self, rng, utterance_id):
        return {"bad": utterance_id == "1-10-0000"}
    def apply(self, waveform, *, bad):
        return waveform * float("nan") if bad else waveform.flip(0)

class Counted(Perturbation):
    name, keeps_duration = "counted", True
    def draw(self, rng):
        return {}
    def apply(self, waveform):
        with open("made", "a") as file:
            file.write(".")
        return waveform.flip(0)
"""


def encode(seconds: float, seed: int = 0, rate: int = 16_000, **how: Any) -> bytes:
    """The bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, tones(seconds, seed, rate), rate, **how)
    return file.getvalue()


def _record(lab: Lab) -> dict[str, Any]:
    return read_json(lab.out / "laser_config.json")


def skipped(**kinds: int) -> Callable[[Lab, Outcome], str | None]:
    """All updates were made, and the utterances skipped are of these kinds."""

    def judge(lab: Lab, outcome: Outcome) -> str | None:
        record = _record(lab)
        found = record["data"]["skipped"]["by_kind"]
        if record["updates"] != 6:
            return f"{record['updates']} updates instead of 6"
        return None if found == kinds else f"skipped {found} instead of {kinds}"

    return judge


def with_file(name: str, data: bytes, *more: str) -> Callable[[Lab], Outcome]:
    """Train with one more file."""

    def provoke(lab: Lab) -> Outcome:
        (lab.speech / name).write_bytes(data)
        return lab.train(*more)

    return provoke


def _cut(fraction: float, **how: Any) -> bytes:
    data = encode(2.0, **how)
    return data[: int(len(data) * fraction)]


def _headerless(fraction: float = 1.0) -> bytes:
    """An MP3 without the frame of its encoder that tells the length: 64 kbit/s at 16 kHz."""
    data = encode(2.0, format="MP3")[288:]
    return data[: int(len(data) * fraction)]


def _without_length() -> bytes:
    data = bytearray(encode(0.9, format="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def _all_bad(*more: str) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        for path in lab.speech.rglob("*.flac"):
            path.write_bytes(b"no audio")
        return lab.train(*more)

    return provoke


def _saved(dtype: str) -> Callable[[Lab], Outcome]:
    """Train on a saved data set whose audio is lists of whole numbers."""

    def provoke(lab: Lab) -> Outcome:
        full = float(np.iinfo(dtype).max)
        rows = [(tones(0.5 + 0.1 * (seed % 4), seed) * full).astype(dtype).tolist() for seed in range(12)]
        audio = {"array": datasets.Sequence(datasets.Value(dtype)), "sampling_rate": datasets.Value("int32")}
        features = datasets.Features({"id": datasets.Value("string"), "audio": audio})
        content = [{"array": row, "sampling_rate": 16_000} for row in rows]
        names = [str(number) for number in range(12)]
        saved = datasets.Dataset.from_dict({"id": names, "audio": content}, features=features)
        saved.save_to_disk(lab.path / "saved")
        return lab.train("--train_data", str(lab.path / "saved"))

    return provoke


def _stored(path: Callable[[Lab], str], *more: str) -> Callable[[Lab], Outcome]:
    """Train on a Parquet data set that names files."""

    def provoke(lab: Lab) -> Outcome:
        (lab.path / "set").mkdir()
        rows = [{"bytes": None, "path": path(lab)}] * 8
        datasets.Dataset.from_dict({"audio": rows}).to_parquet(lab.path / "set" / "train.parquet")
        return lab.train("--train_data", str(lab.path / "set"), *more)

    return provoke


def _noise(data: bytes, *more: str) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        (lab.path / "noise").mkdir()
        (lab.path / "noise" / "street.wav").write_bytes(data)
        return lab.train("--perturbations", "noise", "--noise_dir", str(lab.path / "noise"), *more)

    return provoke


def _own_view(name: str, *more: str) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        (lab.path / "own_views.py").write_text(VIEWS)
        return lab.train("--perturbations", f"own_views:{name}", *more)

    return provoke


def _latin1(lab: Lab) -> Outcome:
    shutil.copy(next(lab.speech.rglob("*.flac")), bytes(lab.speech) + b"/caf\xe9.flac")
    return lab.train()


def _resumed_stream(lab: Lab) -> Outcome:
    """A stream killed at its second checkpoint; the file `made` has a byte for each perturbed view."""
    how = ("--streaming", "true", "--save_total_limit", "5")
    (lab.path / "own_views.py").write_text(VIEWS)
    options = ("--perturbations", "own_views:Counted", *how)
    lab.train(*options, kill_when=lambda: (lab.out / "checkpoint-4" / "files.json").is_file())
    for later in lab.out.glob("checkpoint-6"):
        shutil.rmtree(later)
    (lab.path / "made").write_text("")
    return lab.train(*options)


def _two_updates_made(lab: Lab, outcome: Outcome) -> str | None:
    made = (lab.path / "made").stat().st_size
    return None if made == 8 else f"{made} views were made for the 8 pairs of the last two updates"


def _half_an_hour(*more: str) -> Callable[[Lab], Outcome]:
    """An utterance of 30 minutes where 3 GB more are all the memory there is."""

    def provoke(lab: Lab) -> Outcome:
        wave = np.random.default_rng(0).standard_normal(16_000 * 1800).astype(np.float32)
        soundfile.write(lab.speech / "long.flac", 0.1 * wave, 16_000)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 3_000_000_000, limits[1]))
        try:
            return lab.train("--pairs_per_update", "13", *more)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    return provoke


FAULTS = [
    Fault(
        6,
        "an utterance of 30 minutes that is too long to perturb",
        _half_an_hour(),
        1,
        ("error: utterance long does not fit into memory; give --max_seconds or --crop_seconds",),
    ),
    Fault(
        6,
        "an utterance of 30 minutes that is too long to train on",
        _half_an_hour("--speed_factors", "1", "--pitch_steps", "0"),
        1,
        ("error: utterance long of 1800 s, in a micro-batch of 1, does not fit", "--max_seconds or --crop_seconds"),
    ),
    Fault(
        6,
        "an utterance of 30 minutes with --crop_seconds",
        _half_an_hour("--crop_seconds", "5"),
        0,
        judge=skipped(),
    ),
    *(
        Fault(
            6,
            f"a {name} file that is cut off",
            with_file(file, _cut(0.6, **how)),
            status=0,
            says=("damaged: ", " s are there"),
            judge=skipped(damaged=1),
            quick=name == "WAV",
        )
        for name, file, how in (
            ("WAV", "cut.wav", {"format": "WAV"}),
            ("FLAC", "cut.flac", {"format": "FLAC"}),
            ("Ogg Opus", "cut.opus", {"format": "OGG", "subtype": "OPUS"}),
            ("Ogg Vorbis", "cut.ogg", {"format": "OGG", "subtype": "VORBIS"}),
            ("MP3", "cut.mp3", {"format": "MP3"}),
        )
    ),
    Fault(
        6,
        "an MP3 file without its length that is cut off",
        with_file("cut.mp3", _headerless(0.6)),
        status=0,
        says=("damaged: ", "its last frame is cut off"),
        judge=skipped(damaged=1),
    ),
    Fault(6, "an MP3 file without its length", with_file("x.mp3", _headerless()), status=0, judge=skipped()),
    Fault(6, "FLAC that does not know its length", with_file("x.flac", _without_length()), status=0, judge=skipped()),
    Fault(
        6,
        "a header of 1 Hz",
        with_file("x.wav", encode(2.0, rate=16_000, format="WAV").replace((16_000).to_bytes(4, "little"), b"\1\0\0\0")),
        status=0,
        says=("a rate of 1 Hz; 4000 to 384000 Hz are read",),
        judge=skipped(undecodable=1),
    ),
    Fault(6, "an empty file", with_file("x.wav", b""), status=0, says=("no bytes",), judge=skipped(empty=1)),
    *(
        Fault(
            6,
            f"a perturbed view that is NaN, on the {where}",
            _own_view("NanForOne", "--perturb_on", where),
            status=0,
            says=("skipped utterance 1-10-0000: nan: the perturbed view",),
            judge=skipped(nan=1),
        )
        for where in ("worker", "device")
    ),
    *(
        Fault(
            6,
            f"a view shorter than the receptive field, at speed {factor} on the {where}",
            with_file(
                "x.wav",
                encode(0.026, format="WAV"),
                *("--min_seconds", "0.02", "--speed_factors", factor, "--perturb_on", where),
            ),
            status=0,
            says=("too_short: the perturbed view", "the encoder needs 400"),
            judge=skipped(too_short=1),
        )
        for where, factor in (("worker", "1.2"), ("device", "1.2"), ("worker", "1.9"))
    ),
    *(
        Fault(
            6,
            f"a noise recording that cannot be used ({what})",
            _noise(data, "--dataloader_num_workers", workers),
            says=("the noise recording ", "street.wav cannot be used", "mend or remove it"),
        )
        for what, data, workers in (
            ("no audio", b"no audio", "0"),
            ("no audio, read by a worker", b"no audio", "1"),
            ("cut off", _cut(0.5, format="WAV"), "0"),
        )
    ),
    Fault(6, "a file name in Latin-1", _latin1, says=("caf\\xe9.flac' is not UTF-8; rename",), quick=True),
    *(
        Fault(4, f"all files are bad ({how})", _all_bad(*more), says=("undecodable",))
        for how, more in (("map-style", ()), ("stream", ("--streaming", "true")))
    ),
    *(
        Fault(4, f"--max_train_samples {count}", lambda lab, count=count: lab.train("--max_train_samples", count))
        for count in ("0", "-3")
    ),
    *(
        Fault(4, f"{dtype} lists in a saved data set", _saved(dtype), status=0, judge=skipped())
        for dtype in ("int16", "int32")
    ),
    *(
        Fault(
            8,
            f"a Parquet set that names {what}",
            _stored(path, *more),
            says=("the stored path ", "is not in the data set's folder or repository"),
            quick=what == "an address",
        )
        for what, path, more in (
            ("an address", lambda lab: "http://127.0.0.1:9/a.flac", ()),
            ("an address, streamed", lambda lab: "http://127.0.0.1:9/a.flac", ("--streaming", "true")),
            (
                "an address, streamed by a worker",
                lambda lab: "ftp://127.0.0.1/a.flac",
                ("--streaming", "true", "--dataloader_num_workers", "1"),
            ),
            ("a file elsewhere", lambda lab: str(next(lab.speech.rglob("*.flac"))), ()),
        )
    ),
    Fault(
        2,
        "a resumed stream decodes nothing that was trained on",
        _resumed_stream,
        status=0,
        judge=_two_updates_made,
    ),
]
