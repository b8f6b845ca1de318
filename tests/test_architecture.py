"""Imports point one way, and nothing imports what it has no business with."""

from __future__ import annotations

import ast
from pathlib import Path

import laser_hf

PACKAGE = Path(laser_hf.__file__).parent
# Room -> rooms of laser_hf that it may import.
ALLOWED = {
    "ops": set(),
    "data": set(),
    "records": set(),
    "plots": {"records", "encoders", "data", "superb", "ops"},
    "cpu": set(),
    "encoders": {"cpu"},
    "objectives": {"ops"},
    "publishing": {"records"},
    "superb": {"encoders", "data", "records", "ops"},
    "training": {"ops", "objectives", "data", "encoders", "records", "publishing", "plots", "superb", "cpu"},
    "search": {"training", "superb", "records", "encoders"},
    "demo": {"training", "encoders", "records", "superb"},
}


def imported_rooms(path: Path) -> set[str]:
    """Top-level parts of laser_hf that a module imports, at its head or inside functions."""
    depth = len(path.relative_to(PACKAGE).parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("laser_hf.")}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level == 0 and module[:1] == ["laser_hf"]:
                rooms |= {module[1]} if len(module) > 1 else {name.name for name in node.names}
            elif node.level == depth:
                rooms |= {module[0]} if module else {name.name for name in node.names}
    return rooms


def test_imports_point_one_way():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for imported in imported_rooms(path) - {room, "__version__"}:
            if imported not in ALLOWED[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert not wrong


def test_this_test_sees_imports():
    assert "data" in imported_rooms(PACKAGE / "training" / "speech_pairs.py")
    assert "ops" in imported_rooms(PACKAGE / "objectives" / "idm.py")
