"""The arithmetic of the benchmarks that model or fit: loops of a disassembled kernel, its time, a line of memory."""

from __future__ import annotations

import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks belong to the repository, not to the package

from benchmarks import kernel_model, memory

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_2:
        /*0020*/                   FADD R0, R0, R1 ;
        /*0030*/                   FADD R0, R0, R2 ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
.L_x_4:
        /*0060*/                   FMUL R0, R0, R1 ;
        /*0070*/              @!P0 BRA `(.L_x_4) ;
        /*0080*/              @!P2 BRA `(.L_x_1) ;
.L_x_3:
        /*0090*/                   EXIT ;
.L_x_5:
        /*00a0*/                   BRA `(.L_x_5);
"""


def test_innermost_loops_are_found():
    """Not the loop around them, not the jump forward, and not the jump to itself behind the end."""
    assert kernel_model.loops(LISTING) == [3, 2]


def test_the_model_is_its_arithmetic():
    sweep = {"registers": 64, "warps": 16, "loop_instructions": 200}
    found = kernel_model.model(sweep, 90, frames=635)
    assert found["cycles_a_step"] == 200 * 4 + 60  # 24 problems have an SM each
    assert found["sweep_ms"] == pytest.approx(2 * 1269 * 860 / 1.98e9 * 1e3)
    assert found["traffic_ms"] == pytest.approx(24 * 635**2 * 44 / 3.35e12 * 1e3)


def test_a_line_of_memory():
    rows = [{"seconds": s, "pairs": p, "mib": 100 + 1.9 * s * p * 40} for s, p in ((5, 1), (10, 1), (10, 2))]
    assert memory.fitted(rows) == pytest.approx({"mib_per_second": 40, "mib_besides": 100}, rel=1e-4)
