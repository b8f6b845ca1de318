"""What every benchmark shares: options, timing, peak memory, and a record with hardware, versions and commit."""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from laser_hf.records import provenance, write_json

RECORDS = Path(__file__).resolve().parent / "records"


@dataclass(frozen=True)
class Timing:
    """Wall times of one function in seconds: median and minimum of the repetitions."""

    median: float
    minimum: float
    repeats: int

    def __str__(self) -> str:
        return f"{1000 * self.median:.1f} ms (minimum {1000 * self.minimum:.1f}, {self.repeats} runs)"


def build_parser(name: str, description: str, quick: str, device: str | None = "") -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; use it with `parse_options`.

    Args:
        name: of the module.
        description: its docstring, shown as it is.
        quick: what `--quick` makes small, for its help.
        device: help of `--device`; `None` leaves the option out.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if device is not None:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=device or None)
    parser.add_argument("--quick", action="store_true", help=f"{quick}: only to see it run")
    parser.add_argument("--output", type=Path, help="record to write; default: benchmarks/records")
    return parser


def parse_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        SystemExit: wrong options, or a device that this machine does not have.
    """
    options = parser.parse_args(arguments)
    if getattr(options, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    return options


def time_side_by_side(
    functions: dict[str, Callable[[], Any]],
    repeats: int = 7,
    warm_up: int = 1,
    budget: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time `functions` in turn, round after round, so that a slow spell of the machine affects all of them.

    Args:
        functions: what to time, by name. On CUDA every call is synchronised.
        repeats, warm_up: rounds that count and rounds before them that do not.
        budget: seconds; a function that has used more is not called again.
        clock: gives the time in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + repeats):
        for name, function in functions.items():
            if sum(times[name]) > budget:
                continue
            _synchronise()
            start = clock()
            function()
            _synchronise()
            elapsed = clock() - start
            if number >= warm_up or elapsed > budget:
                times[name].append(elapsed)
    return {name: Timing(statistics.median(t), min(t), len(t)) for name, t in times.items()}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_mib(function: Callable[..., Any], *arguments: Any, warm_up: Sequence[Any] | None = None) -> float:
    """Growth of the peak of resident memory in MiB while `function(*arguments)` runs in a fresh process.

    Args:
        function: importable (no lambda). What it imports counts, unless its module or the warm-up imports it first.
        arguments: of the call that counts.
        warm_up: arguments of a small first call that does not count.
    """
    return in_a_process(_measure_memory, function, arguments, warm_up)


def in_a_process(measure: Callable[..., None], function: Callable[..., Any], *arguments: Any) -> Any:
    """What `measure(sender, function, *arguments)` sends through its pipe from a fresh process.

    Raises:
        RuntimeError: the process ended without sending anything.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, function, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed in its own process; see above") from None
    finally:
        process.join()


def _measure_memory(sender, function, arguments, warm_up) -> None:
    if warm_up is not None:
        function(*warm_up)
    before = peak_mib()
    function(*arguments)
    sender.send(peak_mib() - before)


def peak_mib() -> float:
    """Peak resident memory of this process in MiB (Linux)."""
    # A new process inherits ru_maxrss from the one that started it, so that cannot be used.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def save_record(
    name: str, content: dict[str, Any], peers: Sequence[str] = (), device: str = "cpu", path: Path | None = None
) -> Path:
    """Write `benchmarks/records/NAME-DEVICE.json`, or `path`: `content`, versions of the peers, and provenance."""
    versions = {}
    for peer in peers:
        try:
            versions[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            versions[peer] = None
    path = path or RECORDS / f"{name}-{device}.json"
    write_json(
        path,
        {"benchmark": name, "device": device, "threads": torch.get_num_threads()}
        | _plain(content)
        | {"peers": versions}
        | provenance(),
    )
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Timing):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
