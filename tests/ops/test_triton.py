"""The CUDA kernels as far as they can be tested without a GPU: interpreted, and compiled for an H200."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_model
from laser_hf.ops import SoftDTWBackendError, pick_backend, soft_dtw
from laser_hf.ops.soft_dtw import api

triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux only")


@pytest.fixture(scope="module")
def interpreted():
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "interpreted.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_interpreted_costs_equal_the_reference(interpreted):
    assert len(interpreted["costs"]) == 6
    for case in interpreted["costs"]:
        assert case["value"] < 2e-6, case
        assert case["gradient"] < 3e-6, case
        assert case["value_without_gradient"] == case["value"], case


@pytest.mark.slow
def test_interpreted_loss_equals_the_reference(interpreted):
    for case in interpreted["losses"]:
        for name in ("total", "soft_dtw", "idm"):
            assert case[name] < 1e-5, case
        # Two equal frames: their float32 distance is rounding noise, whose root has a steep slope.
        assert max(case["gradient_x"], case["gradient_y"]) < 1e-4, case


@pytest.mark.slow
def test_interpreted_extremes(interpreted):
    assert math.isnan(interpreted["extremes"]["nan"])
    assert interpreted["extremes"]["huge"] == math.inf


@pytest.mark.slow
def test_interpreted_inside_a_compiled_graph(interpreted):
    assert interpreted["compiled"] == 0


@pytest.mark.slow  # twelve compilations
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("kernel", "constants", "registers"),
    [
        ("skew", {"NORMS": True, "TILE": 32}, 64),
        ("collect", {"IDM": True, "SQUARED": False, "TILE": 32}, 96),
        ("sweep", {"rows": 20, "BACKWARD": False}, 64),
        ("sweep", {"rows": 635, "BACKWARD": True}, 128),
        ("sweep", {"rows": 1500, "BACKWARD": True}, 128),
    ],
)
def test_compiles_ahead_of_time_without_spills(kernel, constants, registers, capability):
    """Triton's compiler and ptxas need no GPU, and they refuse what the interpreter lets through."""
    if kernel_model.tools() is None:
        pytest.skip("this Triton comes without ptxas or nvdisasm")
    compiled = kernel_model.compile_kernel(kernel, constants, capability)
    found = kernel_model.figures_of(compiled, capability)
    assert found["registers"] <= registers
    # ptxas keeps 16 warps of 1024 lanes within 64 registers on sm_90, and stores three of them away.
    spilled = 12 if (kernel, capability, constants.get("rows")) == ("sweep", 90, 635) else 0
    assert max(found["spill_stores"], found["spill_loads"]) <= spilled
    # A block of 1024 rows has 512 threads; 65536 registers and 163 KB (sm_80) must hold it.
    assert found["registers"] * 32 * found["warps"] <= 65536
    assert found["shared_bytes"] < 163 * 1024
    if kernel == "sweep":
        # The costs of later anti-diagonals are loaded while one is computed.
        assert "cp.async" in compiled.asm["ptx"]
        assert found["loop_instructions"] > 20


def test_sizes_that_change_compile_nothing_anew():
    from laser_hf.ops.soft_dtw import triton_kernels

    for kernel in (triton_kernels.skew, triton_kernels.sweep, triton_kernels.collect):
        changing = {name for name in kernel.arg_names if name in ("M", "N", "first_symmetric", "sigma")}
        assert {parameter.name for parameter in kernel.params if parameter.do_not_specialize} == changing


def test_wants_cuda_tensors():
    with pytest.raises(SoftDTWBackendError, match=r"on cpu, only on CUDA; use 'auto'"):
        soft_dtw(torch.rand(1, 2, 2), backend="triton")


class _Tensor:
    """Stands for a tensor on a device that is not there."""

    def __init__(self, device: str, dtype=torch.float32):
        self.device, self.dtype = torch.device(device), dtype


def test_auto_takes_triton_on_cuda_and_announces_another_choice_once(monkeypatch, recwarn):
    api._announce.cache_clear()
    assert pick_backend("auto", _Tensor("cuda")) == "triton"
    assert not recwarn.list
    with pytest.warns(UserWarning, match="float64"):
        assert pick_backend("auto", _Tensor("cuda", torch.float64)) == "reference"
    assert pick_backend("auto", _Tensor("cuda", torch.float64)) == "reference"
    monkeypatch.setattr(api, "_TRITON_INSTALLED", False)
    with pytest.warns(UserWarning, match="pip install triton"):
        assert pick_backend("auto", _Tensor("cuda")) == "reference"
    with pytest.raises(SoftDTWBackendError, match="pip install triton"):
        pick_backend("triton", _Tensor("cuda"))
    with pytest.warns(UserWarning, match="cannot take tensors on mps"):
        assert pick_backend("auto", _Tensor("mps")) == "reference"
