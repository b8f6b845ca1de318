"""Pitch shift and speed: laser_hf against torchaudio and, where it is installed, librosa, on one core.

The speech is the demo's, end to end, or that of `--speech`. Besides times it measures what the first call costs and how
far the results lie apart; with `--device cuda` also the batched form that `--perturb_on device` uses.

    python -m benchmarks.perturbation
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import laser_hf
from benchmarks import common
from benchmarks.common import peak_memory_mib, save_record, time_side_by_side
from benchmarks.librispeech_like import SAMPLE_RATE
from laser_hf.data import pitch_shift, pitch_shift_batch, speed, speed_batch

DEMO_SPEECH = Path(laser_hf.__file__).resolve().parent / "demo" / "speech" / "heldout"
TARGET_RATIO, TARGET_DIFFERENCE, TARGET_TABLE_MIB = 15.0, 5e-4, 2.0


def read_speech(folder: Path, seconds: float) -> torch.Tensor:
    """`(samples,)` of 16 kHz speech, file after file."""
    pieces, found = [], 0
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".flac", ".wav", ".opus", ".ogg"}):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != SAMPLE_RATE:
            raise SystemExit(f"{path} has {rate} Hz; expected {SAMPLE_RATE}")
        pieces.append(samples[:, 0])
        found += len(samples)
        if found >= seconds * SAMPLE_RATE:
            break
    else:
        raise SystemExit(f"{folder} holds {found / SAMPLE_RATE:.1f} s of speech; {seconds:g} s are needed")
    return torch.from_numpy(np.concatenate(pieces)[: int(seconds * SAMPLE_RATE)])


# ---- one call each, importable for fresh processes ----


def _ours(steps: float, waveform: torch.Tensor) -> torch.Tensor:
    return pitch_shift(waveform, SAMPLE_RATE, steps)


def _torchaudio(steps: float, waveform: torch.Tensor) -> torch.Tensor:
    from torchaudio.functional import pitch_shift as shift

    return shift(waveform, SAMPLE_RATE, steps)


_SHIFTS = {"laser_hf": _ours, "torchaudio": _torchaudio}


def _first_call(name: str, steps: float, seconds: float, sender=None) -> None:
    torch.set_num_threads(1)
    waveform = torch.zeros(int(seconds * SAMPLE_RATE))
    waveform[::100] = 0.1
    if name == "torchaudio":
        import torchaudio.functional  # noqa: F401  the import is not what is timed
    start = time.perf_counter()
    with torch.no_grad():
        _SHIFTS[name](steps, waveform)
    if sender is not None:
        sender.send(time.perf_counter() - start)


def first_call_seconds(name: str, steps: float, seconds: float) -> float:
    """Time of the first call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_first_call, args=(name, steps, seconds, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


# ---- the parts ----


def compare_pitch(waveform: torch.Tensor, steps: float, options: argparse.Namespace) -> dict[str, Any]:
    """Times, ratios, differences, table sizes and first calls for one number of semitones."""
    from laser_hf.data import resampling

    functions = {"laser_hf": lambda: pitch_shift(waveform, SAMPLE_RATE, steps)}
    result: dict[str, Any] = {"semitones": steps}
    ours = functions["laser_hf"]()
    if has("torchaudio"):
        from torchaudio.transforms import PitchShift

        shift = PitchShift(SAMPLE_RATE, steps)
        theirs = shift(waveform)
        functions["torchaudio"] = lambda: shift(waveform)
        difference = (ours - theirs).abs()
        result |= {
            "same_length": len(ours) == len(theirs),
            "max_difference": difference.max().item(),
            "max_difference_of_quarters": [part.max().item() for part in difference.chunk(4)],
            "torchaudio_kernel_mib": shift.kernel.numel() * shift.kernel.element_size() / 2**20,
        }
    if has("librosa"):
        import librosa

        array = waveform.numpy()
        functions["librosa"] = lambda: librosa.effects.pitch_shift(array, sr=SAMPLE_RATE, n_steps=steps)
    timings = time_side_by_side(functions, repeats=options.repeats, budget=options.budget)
    result["timings"] = timings
    result["ratios"] = {name: t.median / timings["laser_hf"].median for name, t in timings.items()}
    orig = int(SAMPLE_RATE / 2.0 ** (-steps / 12))
    result["laser_hf_table_mib"] = table_mib(resampling, orig, SAMPLE_RATE)
    result["first_call_seconds"], result["peak_memory_mib"] = {}, {}
    for name in _SHIFTS:
        if name in functions and not options.quick:
            result["first_call_seconds"][name] = first_call_seconds(name, steps, options.seconds)
            result["peak_memory_mib"][name] = peak_memory_mib(_first_call, name, steps, options.seconds)
    return result


def table_mib(resampling, orig: int, new: int) -> float:
    """Size of the filter table that the resampler holds at a time for these rates, MiB."""
    import math

    common = math.gcd(orig, new)
    orig, new = orig // common, new // common
    taps = math.floor(2 * resampling._half_width(orig, new)) + 1
    # One weight a tap and phase in float32, and the phase's first sample in int64.
    return new * (taps * 4 + 8) / 2**20


def compare_speed(waveform: torch.Tensor, factor: float, options: argparse.Namespace) -> dict[str, Any]:
    """The same for a speed factor."""
    functions = {"laser_hf": lambda: speed(waveform, factor, SAMPLE_RATE)}
    result: dict[str, Any] = {"factor": factor}
    if has("torchaudio"):
        from torchaudio.transforms import SpeedPerturbation

        perturb = SpeedPerturbation(SAMPLE_RATE, [factor])
        functions["torchaudio"] = lambda: perturb(waveform)
        result["max_difference"] = (functions["laser_hf"]() - perturb(waveform)[0]).abs().max().item()
    timings = time_side_by_side(functions, repeats=options.repeats, budget=options.budget)
    ratios = {name: t.median / timings["laser_hf"].median for name, t in timings.items()}
    return result | {"timings": timings, "ratios": ratios}


def compare_batched(waveform: torch.Tensor, device: str, options: argparse.Namespace) -> dict[str, Any]:
    """The second views of the eight pairs of an update in one call, and one by one in a worker."""
    generator = np.random.default_rng(0)
    lengths = [int(len(waveform) * share) for share in generator.uniform(0.4, 1.0, 8)]
    clean = [waveform[:length] for length in lengths]
    factors = generator.choice([0.9, 1.0, 1.1], 8).tolist()
    steps = generator.choice([-2.0, 2.0], 8).tolist()
    placed = [view.to(device) for view in clean]

    def together() -> list[torch.Tensor]:
        return pitch_shift_batch(speed_batch(placed, factors, SAMPLE_RATE), SAMPLE_RATE, steps)

    def alone() -> list[torch.Tensor]:
        return [
            pitch_shift(speed(view, factor, SAMPLE_RATE), SAMPLE_RATE, step)
            for view, factor, step in zip(clean, factors, steps, strict=True)
        ]

    apart = [(a.cpu() - b).abs().max().item() for a, b in zip(together(), alone(), strict=True)]
    timings = time_side_by_side(
        {"batched": together, "one by one on one core": alone}, repeats=options.repeats, budget=options.budget
    )
    return {"device": device, "waveforms": 8, "timings": timings, "max_difference": max(apart)}


def has(package: str) -> bool:
    """Whether a peer is there and can be imported."""
    try:
        __import__(package)
    except (ImportError, OSError):
        return False
    return True


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.build_parser(
        "perturbation", __doc__, "one second, -5 semitones (a small kernel), two runs", device="of the batched form"
    )
    parser.add_argument(
        "--speech", type=Path, default=DEMO_SPEECH, help="folder of 16 kHz speech (default: the demo's)"
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the waveform (default: %(default)s)")
    parser.add_argument("--semitones", type=float, nargs="+", default=[2.0, -2.0, 1.5])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.9, 1.1], help="speed factors")
    parser.add_argument("--repeats", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for each function (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> Path:
    """Run the comparison; returns the record's path."""
    parser = build_parser()
    options = common.parse_options(parser, arguments)
    if options.quick:
        options.seconds, options.semitones, options.factors, options.repeats = 1.0, [-5.0], [0.9], 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            waveform = read_speech(options.speech, options.seconds)
            content: dict[str, Any] = {
                "quick": options.quick,
                "speech": "demo" if options.speech == DEMO_SPEECH else options.speech.name,
                "seconds": options.seconds,
                "targets": {
                    "ratio": TARGET_RATIO,
                    "max_difference": TARGET_DIFFERENCE,
                    "table_mib": TARGET_TABLE_MIB,
                },
                "missing": [name for name in ("torchaudio", "librosa") if not has(name)],
                "pitch": [],
                "speed": [],
            }
            for steps in options.semitones:
                content["pitch"].append(compare_pitch(waveform, steps, options))
                show(f"{steps:+g} semitones", content["pitch"][-1])
            for factor in options.factors:
                content["speed"].append(compare_speed(waveform, factor, options))
                show(f"speed {factor:g}", content["speed"][-1])
            content["batched"] = compare_batched(waveform, options.device, options)
            show(f"eight waveforms on {options.device}", content["batched"])
        if content["missing"]:
            print(f"missing, and left out: {', '.join(content['missing'])}")
        path = save_record(
            "perturbation", content, peers=("torchaudio", "librosa"), device=options.device, path=options.output
        )
    finally:
        torch.set_num_threads(threads)
    print(f"record: {path}")
    return path


def show(title: str, result: dict[str, Any]) -> None:
    """Print one comparison."""
    print(f"\n{title}")
    for name, timing in result["timings"].items():
        ratio = f"  {result['ratios'][name]:.1f}x" if "ratios" in result else ""
        print(f"  {name:<24} {timing}{ratio}")
    for key in (
        "max_difference",
        "laser_hf_table_mib",
        "torchaudio_kernel_mib",
        "first_call_seconds",
        "peak_memory_mib",
    ):
        if result.get(key):
            print(f"  {key.replace('_', ' ')}: {result[key]}")


if __name__ == "__main__":
    main()
