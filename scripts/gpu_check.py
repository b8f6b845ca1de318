"""Run all GPU tests and CUDA benchmarks in under nine minutes, and keep their records.

For a machine that has a GPU and PyTorch but perhaps neither network nor all packages: what is missing is
reported and the rest is run. Every part has a time budget of its own, and its record is written when it is done.

    make gpu-check                                  # with the machine's python3
    GPU_CHECK_OUT=records make gpu-check PYTHON=python3.12
    python3 scripts/gpu_check.py --only tests soft_dtw
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """One step.

    Attributes:
        name: of the step and, without its folder, of its record.
        command: arguments of python; `{record}` is the record's path, `{tests}` the files that hold GPU tests.
        seconds: budget.
        needs: packages without which it cannot run.
        wants: packages without which it shows less.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    needs: tuple[str, ...]
    wants: tuple[str, ...] = ()


_TRAINING = ("torch", "torchaudio", "transformers", "accelerate", "datasets", "soundfile")
PARTS = (
    Part(
        "tests",
        # Warnings are errors in this project's own environment; another one has other versions and other warnings.
        (
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-o",
            "filterwarnings=default",
            "--continue-on-collection-errors",
            "{tests}",
        ),
        120,
        ("torch", "pytest", "transformers"),
        ("datasets", "soundfile", "torchaudio"),
    ),
    Part(
        "soft_dtw-cuda",
        ("-m", "benchmarks.soft_dtw", "--device", "cuda", "--repeats", "5", "--no_scaling", "--no_memory"),
        90,
        ("torch", "triton"),
        ("numba", "pysdtw"),
    ),
    Part(
        "perturbation-cuda",
        (
            "-m",
            "benchmarks.perturbation",
            "--device",
            "cuda",
            "--semitones",
            "2",
            "--repeats",
            "5",
            "--output",
            "{record}",
        ),
        60,
        ("torch", "torchaudio", "datasets", "soundfile"),
        ("librosa",),
    ),
    Part(
        "update-hubert-base-bf16-cuda",
        (
            *("-m", "benchmarks.update", "--device", "cuda", "--bf16", "--updates", "4", "--workers", "8"),
            *("--options", "perturb_on=device", "--output", "{record}"),
        ),
        110,
        _TRAINING,
        ("numba",),
    ),
    Part(
        "epoch-hubert-base-cuda",
        ("-m", "benchmarks.epoch", "--device", "cuda", "--updates", "800", "--output", "{record}"),
        140,
        _TRAINING,
        ("pynvml",),
    ),
)
"""Budgets add up to 520 seconds."""


def problem(package: str) -> str | None:
    """Why a package cannot be used, or `None`."""
    try:
        importlib.import_module(package)
    except Exception as error:  # a broken install can raise anything on import
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def gpu_tests(missing: Collection[str]) -> list[str]:
    """Test files with GPU tests, but for those in a folder whose conftest.py imports a missing package.

    Such a conftest would end the whole run; what a test file itself cannot import is an error of that file alone.
    """
    imports = re.compile(rf"^(import|from) ({'|'.join(map(re.escape, missing)) or '-'})\b", re.MULTILINE)
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "pytest.mark.gpu" not in path.read_text():
            continue
        conftests = [folder / "conftest.py" for folder in path.parents if folder.is_relative_to(ROOT / "tests")]
        if any(conftest.exists() and imports.search(conftest.read_text()) for conftest in conftests):
            print(f"left out: {path.relative_to(ROOT)} (its conftest.py needs a missing package)")
        else:
            found.append(str(path.relative_to(ROOT)))
    return found


def run(part: Part, python: str, record: Path, log: Path, missing: Collection[str]) -> tuple[int | None, float]:
    """Exit status, `None` when the budget ran out, and seconds. The output goes to the screen and to `log`."""
    command = [python]
    for word in part.command:
        command += gpu_tests(missing) if word == "{tests}" else [word.format(record=record)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": _python_path()}
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(part.seconds)
        except subprocess.TimeoutExpired:
            status = None
            # Its data workers too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace").strip().splitlines()
    print("\n".join(f"    {line}" for line in text[-25:]), flush=True)
    return status, time.perf_counter() - start


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 0 if every one that could run succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the parts (default: this one)")
    parser.add_argument("--only", nargs="*", help="parts to run, by the start of their names")
    parser.add_argument("--dry_run", action="store_true", help="only tell what would run and what is missing")
    parser.add_argument(
        "--output",
        type=Path,
        default=os.environ.get("GPU_CHECK_OUT"),
        help="folder that also gets all records and logs (default: $GPU_CHECK_OUT)",
    )
    options = parser.parse_args(arguments)
    chosen = [p for p in PARTS if not options.only or any(p.name.startswith(name) for name in options.only)]
    if not chosen:
        parser.error(f"--only: no such part; there are {', '.join(part.name for part in PARTS)}")
    packages = sorted({package for part in chosen for package in (*part.needs, *part.wants)})
    missing = {package: trouble for package in packages if (trouble := problem(package))}
    gpu = None
    if "torch" not in missing:
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    print(f"GPU: {gpu or 'none'}")
    for package, trouble in missing.items():
        print(f"missing: {package} ({trouble})")

    summary: dict = {"gpu": gpu, "missing": missing, "parts": {}}
    work = ROOT / "outputs" / "gpu-check"
    targets = [work] + ([Path(options.output)] if options.output else [])
    began = time.perf_counter()
    for part in chosen:
        lacking = [package for package in part.needs if package in missing]
        less = [package for package in part.wants if package in missing]
        if lacking:
            outcome = {"status": "left out", "reason": f"missing: {', '.join(lacking)}"}
        elif options.dry_run:
            outcome = {"status": "would run", "seconds": part.seconds}
        elif gpu is None:
            outcome = {"status": "left out", "reason": "no CUDA device"}
        else:
            outcome = _run_part(part, options.python, work, missing)
        if less and not lacking:
            outcome["without"] = less
        summary["parts"][part.name] = outcome
        print(f"{part.name}: {json.dumps(outcome)}", flush=True)
        if not options.dry_run:
            _keep(summary | {"seconds": round(time.perf_counter() - began, 1)}, work, targets)
    bad = [name for name, outcome in summary["parts"].items() if outcome["status"] in ("failed", "timed out")]
    if gpu is None and not options.dry_run:
        print("nothing was checked: there is no CUDA device", file=sys.stderr)
        return 1
    return 1 if bad else 0


def _run_part(part: Part, python: str, work: Path, missing: Collection[str]) -> dict:
    work.mkdir(parents=True, exist_ok=True)
    records = ROOT / "benchmarks" / "records"
    record = records / f"{part.name}.json"
    print(f"{part.name}: at most {part.seconds} s ...", flush=True)
    before = record.stat().st_mtime_ns if record.exists() else None
    status, seconds = run(part, python, record, work / f"{part.name}.log", missing)
    outcome = {
        "status": "done" if status == 0 else "timed out" if status is None else "failed",
        "exit": status,
        "seconds": round(seconds, 1),
    }
    if record.exists() and record.stat().st_mtime_ns != before:
        outcome["record"] = f"benchmarks/records/{record.name}"
        shutil.copy(record, work / record.name)
    return outcome


def _keep(summary: dict, work: Path, targets: list[Path]) -> None:
    """Write the summary and copy what there is, so that an end at any moment loses nothing."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "gpu_check.json").write_text(json.dumps(summary, indent=2) + "\n")
    for target in targets[1:]:
        target.mkdir(parents=True, exist_ok=True)
        for path in work.iterdir():
            shutil.copy(path, target / path.name)


if __name__ == "__main__":
    sys.exit(main())
