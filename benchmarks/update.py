"""One update of a full-size encoder, side by side: this toolkit through `train.py`'s own code, and the released way.

The encoders have random weights, which change neither time nor memory. Both sides read the same files, of the lengths
of LibriSpeech train-clean-100, with two data workers each and in a fresh process each:

* `laser_hf`: the preset (top two layers trained), pairs cut into micro-batches by length;
* `laser_hf, bf16`: the same in bf16 autocast, where this CPU has instructions for it;
* `laser_hf, same parameters trained`: also the LayerNorm behind the positional convolution, as the released way does,
  so that gradients run through all layers (`--train_encoder_layer_norm`);
* `released way`: `benchmarks/released.py`.

    python -m benchmarks.update                       # HuBERT base in fp32 on this CPU
    python -m benchmarks.update --model wavlm-base
    python -m benchmarks.update --device cuda --bf16 --updates 20
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import save_record
from benchmarks.librispeech_like import LENGTHS, write_utterances
from benchmarks.training import (
    WARM_UP,
    add_training_options,
    bf16_trouble,
    in_process,
    make_encoder,
    read_profile,
    train_options,
    worker_seconds,
)

OURS, BF16, SAME, RELEASED = "laser_hf", "laser_hf, bf16", "laser_hf, same parameters trained", "released way"
FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "update_profile.png"


def run_ours(settings: dict[str, Any], folder: str, speech: str) -> dict[str, Any]:
    """Updates through the real Trainer; the profile of those after the warm-up."""
    from laser_hf.training import parse_options, run_training

    with tempfile.TemporaryDirectory() as output:
        asked = {"profile_updates": settings["updates"], "logging_steps": WARM_UP + settings["updates"]}
        chosen = settings | {
            "updates": WARM_UP + settings["updates"],
            "options": asked | {"logging_first_step": "false"} | settings["options"],
        }
        arguments = train_options(chosen, folder, speech, output)
        run = run_training(parse_options(arguments))
        profile = read_profile(Path(output))
        beside = worker_seconds([*arguments, "--overwrite_output_dir"], settings["pairs"])
    if not settings["workers"]:  # then it is a part of the waiting
        profile["seconds"]["wait"] = max(profile["seconds"]["wait"] - sum(beside.values()), 0.0)
    return {
        "seconds_per_update": profile["seconds_per_update"],
        "seconds": beside | {part: value for part, value in profile["seconds"].items() if value or part not in beside},
        "workers": settings["workers"],
        "trained_parameters": len(run["trained_parameters"]),
    }


def run_released(settings: dict[str, Any], folder: str, speech: str) -> dict[str, Any]:
    """Updates the released way."""
    from benchmarks.released import released_updates

    torch.manual_seed(0)
    model = make_encoder(settings["model"], Path(folder), settings["tiny"], training=True)
    paths = sorted(Path(speech).iterdir())
    found = released_updates(
        model, paths, settings["updates"], settings["pairs"], settings["device"], settings["bf16"], settings["workers"]
    )
    return {
        "seconds_per_update": statistics.median(found["times"]),
        "workers": settings["workers"],
        **found,
        "trained_parameters": sum(p.requires_grad for p in model.parameters()),
    }


def plot(systems: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Stacked bars of the parts of an update, and what the workers did beside."""
    from laser_hf import figures

    figure, axes = figures.new_figure(size=(9, 1.2 + 0.8 * len(systems)))
    colours = dict(
        zip(("encode", "backward", "loss", "wait", "optimizer", "other"), figures.LINE_COLOURS, strict=False)
    )
    colours |= {"decode": "0.75", "perturb": "0.45"}
    names = list(systems)
    for row, name in enumerate(names):
        seconds, left, beside = systems[name]["seconds"], 0.0, 0.0
        for part, colour in colours.items():
            spent = max(seconds.get(part, 0.0), 0.0)
            in_workers = part in ("decode", "perturb") and systems[name]["workers"] > 0
            start = beside if in_workers else left
            place, height = (row + 0.36, 0.14) if in_workers else (row, 0.5)
            axes.barh(place, spent, height, start, color=colour, label=part if row == 0 else None)
            beside, left = (beside + spent, left) if in_workers else (beside, left + spent)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of one update (thin bars: core time of the data workers, beside the rest)")
    axes.legend(ncols=len(colours), fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.25))
    figures.save(figure, path, title)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.build_parser("update", __doc__, "a tiny model and short utterances")
    add_training_options(parser)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast on all sides")
    parser.add_argument("--updates", type=int, default=1, help="updates measured on each side (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of an update (default: %(default)s)")
    parser.add_argument(
        "--micro_batch",
        type=int,
        help="pairs in memory at once here; default: 1 on a CPU, where more gain nothing, else 8",
    )
    parser.add_argument("--workers", type=int, default=2, help="data workers of each side (default: %(default)s)")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=["bf16", "same", "released"], help="sides to leave out"
    )
    parser.add_argument("--figure", type=Path, help="picture to write; default: docs/figures for the full CPU run")
    return parser


def main(arguments: list[str] | None = None) -> Path:
    """Run the comparison; returns the record's path."""
    parser = build_parser()
    options = common.parse_options(parser, arguments)
    if options.bf16 and (trouble := bf16_trouble(options.device)):
        parser.error(f"--bf16: {trouble}")
    pairs = 2 if options.quick else options.pairs
    settings = {
        "model": options.model,
        "device": options.device,
        "bf16": options.bf16,
        "updates": options.updates,
        "pairs": pairs,
        "micro_batch": options.micro_batch or (1 if options.device == "cpu" else pairs),
        "workers": options.workers,
        "tiny": options.quick,
        "options": dict(option.split("=", 1) for option in options.options),
    }
    same = settings | {"options": settings["options"] | {"train_encoder_layer_norm": "true"}}
    sides = {
        OURS: (run_ours, settings),
        BF16: (run_ours, settings | {"bf16": True}),
        SAME: (run_ours, same),
        RELEASED: (run_released, settings),
    }
    troubles = {"bf16": "all sides run in bf16" if options.bf16 else bf16_trouble(options.device), "same": None}
    left_out = {}
    for side, name in (("bf16", BF16), ("same", SAME), ("released", RELEASED)):
        trouble = "asked for" if side in options.without else troubles.get(side)
        if trouble := trouble or (released_trouble() if name == RELEASED else None):
            left_out[name] = trouble
            del sides[name]
    systems: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        encoder, speech = Path(folder) / "encoder", Path(folder) / "speech"
        parameters = sum(p.numel() for p in make_encoder(options.model, encoder, options.quick).parameters())
        count = (WARM_UP + options.updates) * pairs
        write_utterances(speech, count, speech=options.speech, scale=0.1 if options.quick else 1.0)
        for name, (function, chosen) in sides.items():
            print(f"{name}: {options.updates} update(s) of {pairs} pairs and a warm-up ...", flush=True)
            systems[name] = in_process(function, chosen, str(encoder), str(speech))
            print(f"{name}: {systems[name]['seconds_per_update']:.3g} s an update", flush=True)
    ours = systems[OURS]["seconds_per_update"]
    content = {
        "model": options.model,
        "weights": "random",
        "quick": options.quick,
        "parameters": parameters,
        "precision": "bf16" if options.bf16 else "fp32",
        "bf16_here": bf16_trouble(options.device) or "supported",
        "settings": settings,
        "speech": "synthetic" if options.speech is None else options.speech.name,
        "lengths": LENGTHS,
        "audio_format": "flac",
        "systems": systems,
        "left_out": left_out,
        "ratios": {name: system["seconds_per_update"] / ours for name, system in systems.items()},
        "ratio_same_parameters": (
            systems[RELEASED]["seconds_per_update"] / systems[SAME]["seconds_per_update"]
            if {SAME, RELEASED} <= systems.keys()
            else None
        ),
        "target_ratio": 4.0 if options.bf16 else 2.0,
    }
    show(content)
    title = f"One update of {options.model} ({content['precision']}, {options.device}), {pairs} pairs"
    figure = options.figure or (
        FIGURE if not options.quick and options.output is None and options.device == "cpu" else None
    )
    if figure is not None:
        plot(systems, figure, title)
    name = f"update-{options.model}" + ("-bf16" if options.bf16 else "")
    path = save_record(
        name, content, peers=("torchaudio", "transformers", "numba"), device=options.device, path=options.output
    )
    print(f"record: {path}")
    return path


def released_trouble() -> str | None:
    """Why the released way cannot run here, or `None`."""
    for package in ("torchaudio", "numba"):
        try:
            __import__(package)
        except (ImportError, OSError) as error:
            return f"{package} is missing ({error})"
    return None


def show(content: dict[str, Any]) -> None:
    """Print the table."""
    parts = ("decode", "perturb", "encode", "loss", "backward", "optimizer", "wait")
    header = "".join(f"{part:>10}" for part in parts)
    print(f"\n{'seconds of an update':<36}{'all':>9}{'ratio':>7}{header}{'GiB':>8}")
    for name, system in content["systems"].items():
        cells = "".join(f"{system['seconds'].get(part, 0.0):>10.3f}" for part in parts)
        ratio = content["ratios"][name]
        memory = system["peak_memory_gib"]
        print(f"{name:<36}{system['seconds_per_update']:>9.3f}{ratio:>6.2f}x{cells}{memory:>8.2f}")
    for name, reason in content["left_out"].items():
        print(f"{name}: left out ({reason})")
    print("decode and perturb run in the data workers, beside the rest.")


if __name__ == "__main__":
    main()
