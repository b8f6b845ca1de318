"""`python -m laser_hf.superb`: shipped tasks by name, others by import path, and quick help."""

from __future__ import annotations

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
        ("transcribe", "unknown task 'transcribe'; shipped are asr, pr, qbe, discrimination, table"),
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
