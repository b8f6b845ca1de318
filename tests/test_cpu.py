"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os
from laser_hf.cpu import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def kept():
    before = resident()
    block = b"x" * (64 << 20)
    used = resident() - before
    del block
    return (resident() - before) / used

print(kept(), keep_freed_memory(), kept())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_a_freed_block_stays_resident():
    """In a process of its own: the setting cannot be taken back."""
    output = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout.split()
    before, done, after = float(output[0]), output[1], float(output[2])
    if done == "False":
        pytest.skip("the allocator is not glibc's")
    assert before < 0.1
    assert after > 0.9
