"""Peak memory of one update's micro-batch against the length of its utterances and their number.

Each case runs in a fresh process: a full-size encoder with random weights, forward and backward in fp32 on this CPU.
What counts is the growth of the peak of resident memory over that of a small first micro-batch: activations and
gradients, without weights. Dropout of the attention is 0: with it, the CPU kernel keeps matrices that a GPU does not.
Utterances of a micro-batch have different lengths, as in training, so that the exact GroupNorm is at work.

    python -m benchmarks.memory
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import peak_memory_mib, save_record
from benchmarks.training import make_encoder

CASES = [(5.0, 1), (10.0, 1), (20.0, 1), (10.0, 2)]
"""Seconds of the longer view, and pairs of a micro-batch."""
VARIANTS = {
    "top two layers": {},
    "also the LayerNorm": {"layer_norm": True},
    "LayerNorm, checkpointing": {"layer_norm": True, "checkpointing": True},
}
GPUS_GB = (16, 24, 40, 80)
RESERVED_GB = 1.5
"""Of a GPU, left to the CUDA context, the caching allocator's gaps and workspaces."""
FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "memory.png"


def micro_batch(seconds: float, pairs: int, quick: bool, layer_norm: bool = False, checkpointing: bool = False) -> None:
    """Forward and backward of `pairs` pairs whose views last `seconds` and 9/10 of it."""
    from laser_hf import LaserLoss
    from laser_hf.encoders import SpeechEncoder
    from laser_hf.training import AlignmentModel
    from laser_hf.training.model import pair_terms

    torch.manual_seed(0)
    model = make_encoder("hubert-base", Path(tempfile.gettempdir()), quick, training=True)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0  # of the attention
    encoder = SpeechEncoder(model)
    encoder.freeze_except(2, layer_norm)
    aligned = AlignmentModel(encoder).train()
    aligned.objective = LaserLoss()
    if checkpointing:
        aligned.activation_checkpointing_enable()
    longest = int(16_000 * seconds)
    lengths = torch.full((pairs,), longest), torch.full((pairs,), longest * 9 // 10)
    clean, perturbed = (0.1 * torch.randn(pairs, int(own.max())) for own in lengths)
    batch: dict[str, Any] = {"ids": [str(one) for one in range(pairs)], "clean": clean, "perturbed": perturbed}
    batch |= {"clean_lengths": lengths[0], "perturbed_lengths": lengths[1]}
    terms, _, _ = pair_terms(aligned, aligned, batch)
    terms["total"].sum().backward()


def fitted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """MiB for each second of speech in a micro-batch, both views counted, and MiB besides: a line by least squares."""
    seconds = torch.tensor([1.9 * row["seconds"] * row["pairs"] for row in rows])
    mib = torch.tensor([row["mib"] for row in rows])
    slope = ((seconds - seconds.mean()) * (mib - mib.mean())).sum() / (seconds - seconds.mean()).square().sum()
    return {"mib_per_second": slope.item(), "mib_besides": max(0.0, (mib.mean() - slope * seconds.mean()).item())}


def plot(variants: dict[str, dict[str, Any]], path: Path) -> None:
    """Measured peaks against seconds of speech in a micro-batch."""
    from laser_hf import figures

    figure, axes = figures.new_figure(size=(7, 4))
    for (name, found), colour in zip(variants.items(), figures.LINE_COLOURS, strict=False):
        points = sorted((1.9 * row["seconds"] * row["pairs"], row["mib"] / 1024) for row in found["cases"])
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    axes.set_xlabel("seconds of speech in a micro-batch, both views")
    axes.set_ylabel("peak memory besides the weights (GiB)")
    axes.legend(fontsize="small")
    figures.save(figure, path, "Memory of a micro-batch, HuBERT base, fp32, on a CPU")


def main(arguments: list[str] | None = None) -> Path:
    """Measure all cases; returns the record's path."""
    parser = common.build_parser("memory", __doc__, "a tiny model and two short cases", device=None)
    options = common.parse_options(parser, arguments)
    cases = [(1.0, 1), (2.0, 1)] if options.quick else CASES
    variants: dict[str, dict[str, Any]] = {}
    for name, how in VARIANTS.items():
        rows = []
        for seconds, pairs in cases:
            flags = (options.quick, how.get("layer_norm", False), how.get("checkpointing", False))
            mib = peak_memory_mib(micro_batch, seconds, pairs, *flags, warm_up=(0.3, 1, *flags))
            rows.append({"seconds": seconds, "pairs": pairs, "mib": mib})
            print(f"{name}: {pairs} pair(s) of {seconds:g} s: {mib:.0f} MiB", flush=True)
        variants[name] = {"cases": rows, **fitted(rows)}
    parameters = sum(
        p.numel() for p in make_encoder("hubert-base", Path("."), options.quick, training=True).parameters()
    )
    content = {
        "model": "hubert-base", "weights": "random", "precision": "fp32", "quick": options.quick,
        "parameters": parameters, "gpus_gb": GPUS_GB, "reserved_gb": RESERVED_GB, "variants": variants,
    }  # fmt: skip
    if not options.quick:
        plot(variants, FIGURE)
    path = save_record("memory-hubert-base", content, peers=("transformers", "numba"), path=options.output)
    print(f"record: {path}")
    return path


if __name__ == "__main__":
    main()
