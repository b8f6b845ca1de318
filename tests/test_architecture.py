"""Imports point one way, and nothing imports what it has no business with."""

from __future__ import annotations

import ast
from pathlib import Path

import laser_hf

PACKAGE = Path(laser_hf.__file__).parent
GROUND = {"errors", "cli", "console", "records", "runs", "plugins", "figures", "cpu", "transfer"}
# Room -> rooms that it may import, besides the ground.
ALLOWED = {
    **{room: set() for room in GROUND},
    "ops": set(),
    "data": set(),
    "encoders": set(),
    "objectives": {"ops"},
    "superb": {"encoders", "data", "ops"},
    "publishing": {"objectives", "data", "encoders"},
    "plots": {"objectives", "data", "encoders", "superb", "ops"},
    "training": {"ops", "objectives", "data", "encoders", "publishing", "plots", "superb"},
    "search": {"training", "superb", "objectives", "data", "encoders"},
    "demo": {"training", "superb", "data", "encoders"},
    "app": {"superb", "plots", "data", "encoders", "demo"},
    "__main__": set(),  # imports the room of a command by name, when it runs
}
# A single module that may import more than its room.
EXCEPTIONS = {"superb/table.py": {"objectives"}}


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
        name = path.relative_to(PACKAGE).as_posix()
        room = name.split("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        allowed = ALLOWED[room] | GROUND | EXCEPTIONS.get(name, set()) | {room, "__version__"}
        wrong += [f"{name} imports {imported}" for imported in sorted(imported_rooms(path) - allowed)]
    assert not wrong


def test_modules_stay_small():
    """The stand-alone `eval_ctc.py` may be longer."""
    allowed = {"publishing/eval_ctc.py": 350}
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > allowed.get(name, 300)} == {}
    assert sum(lengths.values()) <= 16_500
    assert len(lengths) <= 125


def test_this_test_sees_imports():
    assert "data" in imported_rooms(PACKAGE / "training" / "speech.py")
    assert "ops" in imported_rooms(PACKAGE / "objectives" / "idm.py")
