"""Recipes as JSON files: every value of a preset becomes the default of a command-line option."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import LaserError
from ..records import located

# Keys that describe a preset rather than set an option.
_DESCRIPTIVE = ("description", "source")


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("laser_hf") / "presets"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str, known: set[str]) -> dict[str, Any]:
    """Values of a shipped preset, or of a JSON file of one's own.

    `{laser_hf}` in a value stands for the folder of the installed package.

    Args:
        name: shipped name, or a path ending in `.json`.
        known: option names that may be set.

    Raises:
        LaserError: unknown name, unreadable file, or a key outside `known`.
    """
    package = resources.files("laser_hf")
    path = Path(name) if name.endswith(".json") else package / "presets" / f"{name}.json"
    if not path.is_file():
        raise LaserError(
            f"unknown preset {name!r}; shipped are {', '.join(preset_names())}, or give the path of a .json file"
        )
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise LaserError(f"preset {name!r} is not valid JSON: {error}") from error
    values = {key: value for key, value in values.items() if key not in _DESCRIPTIVE}
    unknown = sorted(set(values) - known)
    if unknown:
        raise LaserError(f"preset {name!r} has unknown keys: {', '.join(unknown)}. See train.py --help_all.")
    return {key: located(value) if isinstance(value, str) else value for key, value in values.items()}
