"""Soft-DTW against its peers in one run: `python -m benchmarks.soft_dtw`.

Forward and backward of the normalised soft-DTW (three problems a pair) on synthetic unit-norm frames of dimension 256,
gamma 0.1; of the whole LASER loss (soft-DTW and IDM); and how the time grows with length and batch. Every figure is the
median of calls made in turn with those of the others, on `--threads` and on one. Peers: `pip install -r
benchmarks/requirements.txt`; one that is missing or fails is named in the table.

Time depends on the speech in one way: the gradient leaves out cells that no alignment passes. The record says how many
are left (`cells_in_use`), and times ours where all are: `dense`, with gamma 10.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, peers
from benchmarks.common import RECORDS, Timing, peak_memory_mib, save_record, time_side_by_side

GAMMA = 0.1
PACKAGES = ("ddtw", "dtw-loss-functions", "flash-softdtw", "pysdtw", "tslearn", "ott-jax", "jax", "numba", "triton")
FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
OURS = "laser_hf"
# Seconds for one pair of 635 frames, and the time grows with the number of pairs and the square of their length.
SLOW = ("released method", "tslearn")
# XLA compiles for every shape, long for long ones; it takes part where one shape is called again and again.
COMPILED = ("ott-jax",)
# Peak memory takes a process for every figure.
MEMORY_CASES = ("8 ragged pairs around 635", "8 pairs of 1500")
DENSE_GAMMA = 10.0
BUDGET = 8.0  # seconds of calls a contestant gets in one case; one call that takes longer is all it gets


def ragged(centre: int, pairs: int = 8) -> list[tuple[int, int]]:
    """Lengths of `pairs` pairs around `centre`; second views at speed 0.9, 1 and 1.1, as in training."""
    spread = [0.0, -0.21, 0.13, -0.07, 0.19, -0.15, 0.05, 0.1]
    first = [round(centre * (1 + spread[index % 8])) for index in range(pairs)]
    return [(length, round(length / (0.9, 1.0, 1.1)[index % 3])) for index, length in enumerate(first)]


def cases(quick: bool) -> dict[str, list[tuple[int, int]]]:
    if quick:
        return {"50 frames": [(50, 50)], "3 ragged pairs around 40": ragged(40, 3)}
    return {
        "635 frames": [(635, 635)],
        "1500 frames": [(1500, 1500)],
        "8 ragged pairs around 635": ragged(635),
        "8 pairs of 1500": [(1500, 1500)] * 8,
    }


def use_memory(table: str, name: str, lengths: Sequence[tuple[int, int]], threads: int) -> None:
    """One call of a contestant, for `peak_memory_mib`."""
    torch.set_num_threads(threads)
    getattr(peers, table)[name](peers.make_pairs(lengths), GAMMA)()


def memory_mib(table: str, name: str, lengths: Sequence[tuple[int, int]], device: str, run: peers.Run) -> float:
    """Peak memory of one call beyond what the imports and compilers of the contestant take."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    threads = torch.get_num_threads()
    return peak_memory_mib(use_memory, table, name, lengths, threads, warm_up=(table, name, [(2, 2)], threads))


def exact_gradients(table: str, pairs: peers.Pairs) -> list[torch.Tensor]:
    """Gradients in float64 by the plain PyTorch backend."""
    pairs = [tuple(frames.double() for frames in pair) for pair in pairs]
    if table == "LOSS":
        return peers.loss_ours(pairs, GAMMA, "reference")()
    return peers.ours_reference(pairs, GAMMA)()


def contest(
    table: str,
    lengths: Sequence[tuple[int, int]],
    exact: Sequence[torch.Tensor],
    device: str,
    repeats: int,
    leave_out: Sequence[str],
    memory: bool,
    quick: bool,
) -> dict[str, dict[str, Any]]:
    """Time, memory and gradient error of every contestant on one case."""
    pairs = peers.make_pairs(lengths, device=device)
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for name, prepare in getattr(peers, table).items():
        if name in leave_out:
            rows[name] = {"failed": "left out: too long a call, or to compile"}
            continue
        try:
            prepare(peers.make_pairs([(4, 4)], device=device), GAMMA)()  # what is compiled once is compiled now
            run = prepare(pairs, GAMMA)
            start = time.perf_counter()
            found = run()
            elapsed = time.perf_counter() - start
        except Exception as error:
            # A peer's failure is a finding; ours is an error.
            if name == OURS:
                raise
            rows[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
            continue
        worst = max(
            (one.double().cpu() - other.cpu()).abs().max().item() for one, other in zip(found, exact, strict=True)
        )
        rows[name] = {"gradient_error": worst}
        if elapsed < BUDGET:
            runs[name] = run
        else:
            rows[name]["time"] = Timing(elapsed, elapsed, 1)
    for name, timing in time_side_by_side(runs, repeats=repeats, budget=BUDGET).items():
        rows[name]["time"] = timing
    for row in rows.values():
        if "time" in row:
            row["ratio"] = row["time"].median / rows[OURS]["time"].median
    for name, run in runs.items():
        if memory and (name == OURS or not quick):
            rows[name]["memory_mib"] = memory_mib(table, name, lengths, device, run)
    return rows


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n{'':28}{'median':>12}{'times ours':>12}{'extra MiB':>11}{'gradient error':>16}")
    for name, row in rows.items():
        if "failed" in row:
            print(f"{name:28}  {row['failed']}")
            continue
        timing: Timing = row["time"]
        memory = f"{row['memory_mib']:.0f}" if "memory_mib" in row else ""
        print(
            f"{name:28}{1000 * timing.median:>9.1f} ms{row['ratio']:>12.2f}{memory:>11}{row['gradient_error']:>16.1e}"
        )
    sys.stdout.flush()


def scaling(device: str, quick: bool) -> dict[str, dict[str, list]]:
    """Medians in seconds against length (one pair) and against batch (pairs of one length)."""
    lengths = [20, 40] if quick else [100, 200, 400, 800, 1600]
    batches = [1, 2] if quick else [1, 2, 4, 8]
    frames = 30 if quick else 635
    studies = {
        "length": (lengths, [[(length, length)] for length in lengths]),
        "batch": (batches, [[(frames, frames)] * batch for batch in batches]),
    }
    found: dict[str, dict[str, list]] = {}
    for study, (values, sizes) in studies.items():
        curves: dict[str, list] = {name: [] for name in peers.DIVERGENCE if name not in (*SLOW, *COMPILED)}
        for size in sizes:
            runs = {}
            for name in curves:
                try:
                    run = peers.DIVERGENCE[name](peers.make_pairs(size, device=device), GAMMA)
                    run()
                except Exception as error:
                    if name == OURS:
                        raise
                    print(f"{study} {size[0]}: {name} failed ({type(error).__name__})")
                    continue
                runs[name] = run
            timings = time_side_by_side(runs, repeats=3, warm_up=0, budget=BUDGET)
            for name, curve in curves.items():
                curve.append(timings[name].median if name in timings else None)
        found[study] = {"values": values, "frames": frames if study == "batch" else None, "seconds": curves}
    return found


def draw(studies: dict[str, dict[str, Any]], device: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(studies), figsize=(11, 4.2), constrained_layout=True)
    for axis, (study, content) in zip(axes, studies.items(), strict=True):
        for name, seconds in content["seconds"].items():
            points = [(value, 1000 * s) for value, s in zip(content["values"], seconds, strict=True) if s is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", linewidth=2.5 if name == OURS else 1.2, label=name)
        axis.set(xscale="log", yscale="log", ylabel="forward + backward (ms)")
        axis.set_xlabel(
            "frames of each view, one pair" if study == "length" else f"pairs of {content['frames']} frames"
        )
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"Normalised soft-DTW on {device.upper()}, dimension 256, gamma {GAMMA}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the comparison; returns the record's path."""
    parser = common.build_parser("soft_dtw", __doc__, "tiny sizes, record and figure in a temporary folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch and numba (default 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each contestant (default 7)")
    parser.add_argument("--no_scaling", action="store_true", help="leave out the study of length and batch")
    parser.add_argument("--no_memory", action="store_true", help="leave out peak memory (a process a figure)")
    parser.add_argument("--figure", type=Path, help="picture to write; default: beside --output, else docs/figures")
    options = common.parse_options(parser, arguments)
    _set_threads(options.threads)
    quick = options.quick
    repeats = 2 if quick else options.repeats
    output = options.output
    if output is None:
        folder = Path(tempfile.mkdtemp(prefix="soft-dtw-")) if quick else RECORDS
        output = folder / f"soft_dtw-{options.device}.json"
    suffix = "" if options.device == "cpu" else f"_{options.device}"
    figures = output.parent if quick or options.output else FIGURES
    figure = options.figure or figures / f"soft_dtw_scaling{suffix}.png"

    record: dict[str, Any] = {"gamma": GAMMA, "dim": 256, "cases": {}, "divergence": {}, "loss": {}}
    single: dict[str, Any] = {}
    for title, lengths in cases(quick).items():
        record["cases"][title] = lengths
        pairs = peers.make_pairs(lengths, device=options.device)
        exact = exact_gradients("DIVERGENCE", pairs)
        few = max(map(max, lengths)) < 800 and len(lengths) == 1
        for threads in sorted({options.threads, 1}, reverse=True):
            _set_threads(threads)
            main = threads == options.threads
            leave_out = () if few and main else (*SLOW, *COMPILED)
            memory = main and not options.no_memory and (quick or title in MEMORY_CASES)
            rows = contest("DIVERGENCE", lengths, exact, options.device, repeats, leave_out, memory, quick)
            show(f"normalised soft-DTW, {title}, {threads} thread(s)", rows)
            (record["divergence"] if main else single)[title] = rows
        _set_threads(options.threads)
    if options.threads > 1:
        record["divergence_one_thread"] = single
    ragged_pairs = list(cases(quick).values())[-1 if quick else -2]
    record["dense"] = dense(ragged_pairs, options.device, repeats)
    for title, lengths in cases(quick).items():
        if "1500" in title:
            continue
        memory = not options.no_memory and (quick or title in MEMORY_CASES)
        leave_out = () if quick or len(lengths) == 1 else ("released method",)
        exact = exact_gradients("LOSS", peers.make_pairs(lengths, device=options.device))
        rows = contest("LOSS", lengths, exact, options.device, repeats, leave_out, memory, quick)
        show(f"LASER loss, {title}", rows)
        record["loss"][title] = rows
    if not options.no_scaling:
        record["scaling"] = scaling(options.device, quick)
        draw(record["scaling"], options.device, figure)
        print(f"\n{figure}")
    print(f"record: {save_record('soft_dtw', record, PACKAGES, options.device, output)}")
    return output


def dense(lengths: Sequence[tuple[int, int]], device: str, repeats: int) -> dict[str, Any]:
    """Ours where few cells and where all cells of the alignment are in use, and how many are."""
    from laser_hf.ops import soft_dtw_alignment

    pairs = peers.make_pairs(lengths, device=device)
    found: dict[str, Any] = {"gamma": DENSE_GAMMA}
    names = {"as above": GAMMA, "dense": DENSE_GAMMA}
    for name, timing in time_side_by_side(
        {name: peers.ours(pairs, gamma) for name, gamma in names.items()}, repeats=repeats
    ).items():
        cells = soft_dtw_alignment(*(view[None] for view in pairs[0]), gamma=names[name])
        found[name] = {"time": timing, "cells_in_use": (cells > 1e-12).double().mean().item()}
        share = f"{found[name]['cells_in_use']:.1%} of the cells in use"
        print(f"{'ours, ' + name:28}{1000 * timing.median:>9.1f} ms, gamma {names[name]}, {share}")
    return found


def _set_threads(threads: int) -> None:
    import numba

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


if __name__ == "__main__":
    main()
