"""The quick part of the fault campaign, through the real commands."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from faults.__main__ import all_cases, render
from faults.kills import Kill
from faults.lab import KINDS


@pytest.mark.slow
def test_quick_faults_and_kills_are_fine():
    """In a process of its own, in which no thread has started before it forks."""
    command = [sys.executable, "-m", "faults", "--quick"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_has_faults():
    faults, kills = all_cases()
    assert {fault.kind for fault in faults} == set(KINDS)
    assert kills


def test_the_page_names_what_is_wrong():
    record = {
        "commit": "abc",
        "faults": [
            {"kind": 1, "name": "a | b", "status": 1, "said": "error: <x>", "wrong": []},
            {"kind": 3, "name": "c", "status": 0, "said": "", "wrong": ["silent: exit status 0"]},
        ],
        "kills": [vars(Kill("training", 0, [0.5, 1.0], 2, [])), vars(Kill("training", 1, [0.1], 1, ["last"]))],
    }
    page = render(record)
    assert "Faults: 1 of 2 fine" in page
    assert "Kills: 1 of 2 fine" in page
    assert "| a \\| b | 1 | error: &lt;x> | fine |" in page
    assert "| c | 0 |  | silent: exit status 0 |" in page
    assert "| training | 2 | 3 | 1 |" in page
