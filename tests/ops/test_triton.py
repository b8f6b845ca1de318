"""The CUDA kernels as far as they can be tested without a GPU: interpreted, and compiled for an H200."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


_TYPES = {
    "*i64": "lengths_x lengths_y border",
    "*i32": "result_exponent",
    "i32": "M N first_symmetric sigma",
    "fp32": "a scale margin",
}
_TYPE = {name: kind for kind, names in _TYPES.items() for name in names.split()}


@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("skew", {"NORMS": True, "TILE": 32}),
        ("collect", {"IDM": True, "SQUARED": False, "TILE": 32}),
        ("sweep", {"rows": 20, "BACKWARD": False}),
        ("sweep", {"rows": 1500, "BACKWARD": True}),
    ],
)
def test_compiles_for_an_h200(kernel, constants):
    """Triton's compiler and ptxas need no GPU, and they refuse what the interpreter lets through."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from laser_hf.ops.soft_dtw import triton_backend, triton_kernels

    function, options = getattr(triton_kernels, kernel), {"num_warps": 4}
    if kernel == "sweep":
        constants = constants | triton_backend.launch_shape(constants.pop("rows"))
        options["num_warps"] = constants.pop("num_warps")
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else _TYPE.get(name, "*fp32") for name in names}
    source = ASTSource(function, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared < 227 * 1024
    if kernel == "sweep":
        # The costs of later anti-diagonals are loaded while one is computed.
        assert "cp.async" in compiled.asm["ptx"]


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
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert pick_backend("auto", _Tensor("cuda")) == "reference"
    with pytest.raises(SoftDTWBackendError, match="pip install triton"):
        pick_backend("triton", _Tensor("cuda"))
    with pytest.warns(UserWarning, match="no compiled backend for tensors on mps"):
        assert pick_backend("auto", _Tensor("mps")) == "reference"
