"""The files of a repository: what is taken from a run, and what of it is rewritten before others see it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..records import read_json, write_json
from .errors import PushError

RECORD_NAME = "laser_config.json"
CARD_NAME = "README.md"
EXPORT_NAMES = ("config.json", "model.safetensors", "preprocessor_config.json")
HUB_RESULTS = ".eval_results/librispeech_asr.yaml"
# Run against the published repository by people who do not have laser_hf.
EVALUATION_SCRIPTS = ("eval_ctc.py", "eval_requirements.txt")
_RESULTS = ("results/*.json", "results*.json")
# Of a repository that holds a LASER export, the files that a new push replaces or removes.
REPLACED = ("plots/*.png", *_RESULTS, ".eval_results/*.yaml", *EVALUATION_SCRIPTS)
_SUFFIXES = {".json", ".md", ".png", ".safetensors", ".yaml"}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `PushError` when it is something else."""
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise PushError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PushError(f"{path} is not a JSON object")
    return content


def collect(run_dir: Path, extra_results: Iterable[Path] = ()) -> dict[str, Path]:
    """Files to publish by their path in the repository; everything else in the folder stays.

    Raises:
        PushError: no finished run, an incomplete export, or two files of one name.
    """
    if not run_dir.is_dir():
        raise PushError(f"{run_dir} is no folder; give the --output_dir of a finished run")
    if not (run_dir / RECORD_NAME).is_file():
        raise PushError(
            f"{run_dir} has no {RECORD_NAME}: it is no LASER run, or one that has not finished. The record is written "
            "last; resume the run with train.py"
        )
    missing = [name for name in EXPORT_NAMES if not (run_dir / name).is_file()]
    if missing:
        raise PushError(f"{run_dir} lacks {', '.join(missing)}; the exported encoder is not complete")
    names = [*EXPORT_NAMES, RECORD_NAME, "training_log.json"]
    files = {name: run_dir / name for name in names if (run_dir / name).is_file()}
    files |= {name: Path(__file__).with_name(name) for name in EVALUATION_SCRIPTS}
    for pattern in (*_RESULTS, "plots/*.png"):
        files.update({path.relative_to(run_dir).as_posix(): path for path in sorted(run_dir.glob(pattern))})
    for path in extra_results:
        if not path.is_file():
            raise PushError(f"--results {path} is no file")
        # The task runners all write results.json, in folders of their own.
        name = f"results/{path.parent.resolve().name if path.name == 'results.json' else path.stem}.json"
        if name in files and files[name].resolve() != path.resolve():
            raise PushError(f"two result files would be {name} in the repository; rename one of them")
        files[name] = path
    return files


def result_files(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of `files` that are evaluation records."""
    return {name: path for name, path in files.items() if any(fnmatch(name, pattern) for pattern in _RESULTS)}


def stage(sources: Mapping[str, Path], staging: Path, secrets: Sequence[str] = ()) -> dict[str, Path]:
    """The files as they will be published, below `staging`: JSON without machine paths and tokens, the rest as is."""
    staged = {}
    for name, path in sources.items():
        staged[name] = staging / name
        staged[name].parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            content = read_object(path)
            cleaned = without_private(content, secrets)
            if cleaned != content:
                write_json(staged[name], cleaned)
                continue
        try:
            os.symlink(path.resolve(), staged[name])
        except OSError:  # a file system without links
            staged[name].write_bytes(path.read_bytes())
    return staged


def check_kinds(files: Mapping[str, Path]) -> None:
    """Only JSON, Markdown, PNG, YAML and safetensors, by name and content, and the evaluation script: no pickles.

    Raises:
        PushError: naming the first file that is something else.
    """
    for name, path in files.items():
        if name in EVALUATION_SCRIPTS:
            continue
        with path.open("rb") as file:
            start = file.read(8)
        if path.suffix not in _SUFFIXES or (path.suffix == ".png" and start != b"\x89PNG\r\n\x1a\n"):
            raise PushError(f"{name} is not what its name says; it is not uploaded")


# An absolute path anywhere in a text: not what follows a letter (a/b), a colon or a slash (https://...), or the
# {laser_hf} of records.
_ABSOLUTE = re.compile(r"(?<![\w:/.\\~}-])(?:~?/|[A-Za-z]:\\)[^\s\"'=,;]+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_TOKEN_OPTION = re.compile(r"(--(?:hub_|push_to_hub_)?token[ =])\S+")


def without_private(value: Any, secrets: Sequence[str] = ()) -> Any:
    """A copy of a JSON value whose absolute paths are cut to their last part and whose Hub tokens are blotted out."""
    if isinstance(value, dict):
        return {without_private(k, secrets): without_private(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [without_private(entry, secrets) for entry in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "***")
    value = _TOKEN_OPTION.sub(r"\1***", _TOKEN.sub("***", value))
    return _ABSOLUTE.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1] or match.group(), value)
