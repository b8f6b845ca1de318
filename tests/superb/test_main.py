"""`laser-hf superb`: shipped tasks by name, others by import path, and quick help."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from laser_hf.errors import LaserError
from laser_hf.superb import TASKS, find_task
from laser_hf.superb.__main__ import main

OWN = """
HELP = "counts letters"

def add_arguments(parser):
    parser.add_argument("--word", required=True)

def run(arguments):
    return {"letters": len(arguments.word)}

class Twice:
    HELP = "counts them twice"
    add_arguments = staticmethod(add_arguments)

    @staticmethod
    def run(arguments):
        return {"letters": 2 * len(arguments.word)}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a task of one's own."""
    (tmp_path / "own_tasks").mkdir()
    (tmp_path / "own_tasks" / "__init__.py").touch()
    (tmp_path / "own_tasks" / "letters.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_task_of_ones_own_by_import_path(package, capsys):
    assert main(["own_tasks.letters", "--word", "abc"]) == {"letters": 3}
    assert main(["own_tasks.letters:Twice", "--word", "abc"]) == {"letters": 6}
    with pytest.raises(SystemExit):
        main(["own_tasks.letters", "--help"])
    assert "counts letters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transcribe", "unknown task 'transcribe'; shipped are asr, pr, qbe, discrimination, sid, ks, table"),
        ("no.such", "cannot import the task 'no.such'.*PYTHONPATH"),
        ("own_tasks.letters:None_such", "cannot import the task"),
        ("own_tasks", "unknown task"),
        ("laser_hf.errors", "is no task: it lacks HELP, add_arguments, run"),
    ],
)
def test_what_is_no_task(package, name, message):
    with pytest.raises(LaserError, match=message):
        find_task(name)


@pytest.mark.parametrize("words", [("--word", ""), ("--word=",)])
def test_an_empty_value_is_refused(package, words):
    with pytest.raises(LaserError, match="--word is empty"):
        main(["own_tasks.letters", *words])


@pytest.mark.parametrize("name", TASKS)
def test_every_shipped_task_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"laser-hf superb {name}" in capsys.readouterr().out


def test_help_does_not_import_what_only_a_task_needs():
    program = """
import sys
from laser_hf.superb.__main__ import main
for argv in (["--help"], ["asr", "--help"], ["pr", "--help"]):
    try:
        main(argv)
    except SystemExit:
        pass
assert not {"torch", "transformers", "datasets"} & set(sys.modules), "imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "discrimination" in done.stdout
    assert "--lexicon" in done.stdout


def texts_of(path):
    """All strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    # Strings that stand alone describe what is above them.
    alone = {id(one.value) for node in bodies for one in node.body if isinstance(one, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return [node.value for node in constants if isinstance(node.value, str)]


def test_what_superb_says_names_no_option_of_another_command():
    known = {"--help", "--multi_gpu", "--num_processes", "--cpu"}  # the last three are accelerate's
    for name in TASKS:
        parser = argparse.ArgumentParser()
        find_task(name).add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    package = REPOSITORY / "laser_hf"
    files = [package / name for name in ("runs.py", "cli.py", "data/speech.py", "data/files.py", "data/decode.py")]
    files += [*(package / "encoders").glob("*.py"), *(package / "superb").rglob("*.py")]
    texts = [(path.name, text) for path in files for text in texts_of(path)]
    said = {(name, word) for name, text in texts for word in re.findall(r"--[a-z][\w-]*", text)}
    assert len(said) > 40
    assert {pair for pair in said if pair[1] not in known} == set()
    assert not [(name, text) for name, text in texts if "train.py" in text]
