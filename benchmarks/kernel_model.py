"""What Triton's compiler says of the soft-DTW kernels, and a model of their time. It needs no GPU and times nothing.

Every kernel is compiled ahead of time for sm_80, sm_90 and sm_100. ptxas reports registers and spills, Triton the
shared memory, and the disassembler the instructions of the innermost loop, one anti-diagonal of `sweep`. The model:

* a step of `sweep` takes `instructions x warps / 4` cycles, as each of the four schedulers of an SM issues one
  instruction a cycle, and `LATENCY` more for the exchange between warps (a barrier and a way through shared memory);
* m + n - 1 dependent steps a sweep, all problems at once as far as they fit on the SMs;
* `skew` and `collect`, and the sweep too, take at least the time of the bytes they move.

It is a model: no GPU has run the kernels.

    python -m benchmarks.kernel_model
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import save_record

GPUS = {
    # compute capability: name, SMs, GHz (boost), TB/s; from NVIDIA's data sheets
    80: ("A100 80 GB", 108, 1.41, 2.04),
    90: ("H100 SXM", 132, 1.98, 3.35),
    100: ("B200", 148, 1.97, 8.0),
}
LATENCY = 60
"""Cycles of a step that no other warp hides: a barrier and a store and load of shared memory."""
PROBLEMS, FRAMES = 24, (250, 635, 1000)
"""Three problems for each of eight pairs; frames of 5, 12.7 and 20 seconds."""
_TYPES = {
    "*i64": "lengths_x lengths_y border",
    "*i32": "result_exponent",
    "i32": "M N first_symmetric sigma",
    "fp32": "a scale margin",
}
_TYPE = {name: kind for kind, names in _TYPES.items() for name in names.split()}


def compile_kernel(kernel: str, constants: dict[str, Any], capability: int):
    """A kernel compiled for a compute capability, such as 90; for `sweep` give `rows`, the padded number of rows."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from laser_hf.ops.soft_dtw import triton_backend, triton_kernels

    function, options, constants = getattr(triton_kernels, kernel), {"num_warps": 4}, dict(constants)
    if kernel == "sweep":
        constants |= triton_backend.launch_shape(constants.pop("rows"))
        options["num_warps"] = constants.pop("num_warps")
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else _TYPE.get(name, "*fp32") for name in names}
    source = ASTSource(function, signature, {(names.index(name),): value for name, value in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def tools() -> Path | None:
    """Folder of the ptxas and nvdisasm that come with Triton; `None` where it has none."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return folder if (folder / "ptxas").exists() and (folder / "nvdisasm").exists() else None


def figures_of(compiled, capability: int) -> dict[str, int]:
    """Registers and spilled bytes of a thread, shared memory of a block in bytes, instructions of the longest loop."""
    folder = tools()
    ptxas = folder / ("ptxas-blackwell" if capability >= 100 and (folder / "ptxas-blackwell").exists() else "ptxas")
    with tempfile.TemporaryDirectory() as work:
        source, binary = Path(work) / "kernel.ptx", Path(work) / "kernel.cubin"
        source.write_text(compiled.asm["ptx"])
        binary.write_bytes(compiled.asm["cubin"])
        suffix = "a" if capability >= 90 else ""
        report = subprocess.run(
            [ptxas, "-v", f"--gpu-name=sm_{capability}{suffix}", source, "-o", Path(work) / "out"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
        listing = subprocess.run(
            [folder / "nvdisasm", "-c", binary], capture_output=True, text=True, check=False
        ).stdout
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spill_stores": int(re.search(r"(\d+) bytes spill stores", report)[1]),
        "spill_loads": int(re.search(r"(\d+) bytes spill loads", report)[1]),
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "loop_instructions": max(loops(listing), default=0),
    }


def loops(listing: str) -> list[int]:
    """Instructions of each innermost loop of a disassembled kernel: from a label to a later jump back to it."""
    places: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    count = 0
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label[1]] = count
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            count += 1
            target = re.search(r"BRA.*?`\((\.L_x_\d+)\)", line)
            if target and places.get(target[1], count) < count - 1:
                found.append((places[target[1]], count))
    inner = [one for one in found if not any(one[0] <= a and b <= one[1] and (a, b) != one for a, b in found)]
    return [end - start for start, end in inner]


def model(sweeps: dict[str, int], capability: int, frames: int) -> dict[str, float]:
    """Milliseconds of one forward and backward pass over `PROBLEMS` problems of `frames` x `frames`."""
    _, processors, gigahertz, terabytes = GPUS[capability]
    threads = 32 * sweeps["warps"]
    resident = max(1, min(65536 // (sweeps["registers"] * threads), 2048 // threads))
    rounds = -(-PROBLEMS // (resident * processors))
    beside = -(-PROBLEMS // processors)  # blocks that share an SM share its schedulers
    cycles = sweeps["loop_instructions"] * max(1.0, beside * sweeps["warps"] / 4) + LATENCY
    steps = 2 * (2 * frames - 1)
    cells = PROBLEMS * frames * frames
    # Bytes of a cell: skew moves 4 + 4; the sweeps read 4, write 8, read 8, write 4; collect reads 8 and writes 4.
    return {
        "sweep_ms": rounds * steps * cycles / gigahertz / 1e6,
        "traffic_ms": cells * (8 + 24 + 12) / terabytes / 1e9,
        "cycles_a_step": cycles,
    }


def measure(frames: tuple[int, ...] = FRAMES, capabilities: tuple[int, ...] = tuple(GPUS)) -> list[dict[str, Any]]:
    """A row for every kernel, size and compute capability."""
    rows = []
    for capability in capabilities:
        for kernel, constants in (
            ("skew", {"NORMS": True, "TILE": 32}),
            ("collect", {"IDM": True, "SQUARED": False, "TILE": 32}),
            *(("sweep", {"rows": size, "BACKWARD": True}) for size in frames),
        ):
            found = figures_of(compile_kernel(kernel, constants, capability), capability)
            row = {"capability": capability, "gpu": GPUS[capability][0], "kernel": kernel, **found}
            if kernel == "sweep":
                row |= {"frames": constants["rows"], **model(found, capability, constants["rows"])}
            rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> Path:
    """Compile, model, write the record; returns its path."""
    parser: argparse.ArgumentParser = common.build_parser("kernel_model", __doc__, "one size", device=None)
    options = common.parse_options(parser, arguments)
    if tools() is None:
        parser.error("this Triton has no ptxas or nvdisasm")
    rows = measure(FRAMES[:1] if options.quick else FRAMES)
    for row in rows:
        print(row)
    content = {"model": True, "quick": options.quick, "latency_cycles": LATENCY, "problems": PROBLEMS, "kernels": rows}
    path = save_record("kernel_model", content, peers=("triton",), device="none", path=options.output)
    print(f"record: {path}")
    return path


if __name__ == "__main__":
    main()
