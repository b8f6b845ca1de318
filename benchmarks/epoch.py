"""Wall time of the paper's recipe, 3,600 updates of 8 pairs, through `train.py`'s own code with random weights.

28,539 utterances of LibriSpeech's lengths lie on disk as FLAC, so that decoding counts; a few hundred differ and the
others are links to these. One run is timed as it is; a short second one is profiled for the shares of an update,
because profiling takes time. With fewer than 3,600 updates the time is extrapolated, and says so.

`--predict` puts a tiny encoder in the place of the GPU's work: the run then measures all that a GPU does not do, the
data path in the workers and the training loop, at this CPU's speed. The GPU's part is counted in FLOPs and divided by
an assumed speed. The prediction is arithmetic from these parts, not a measurement.

    python -m benchmarks.epoch --device cuda            # needs a GPU
    python -m benchmarks.epoch --predict                # without one: arithmetic from parts measured on this CPU
    python -m benchmarks.epoch --quick                  # a tiny model on the CPU: only to see it run
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import save_record
from benchmarks.librispeech_like import LENGTHS, SAMPLE_RATE, UTTERANCES, write_utterances
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

EPOCH = 3600
"""Updates of the recipe."""
ASSUMED = {"gpu": "H100", "gpu_flops": 989e12, "gpu_used": 0.30, "cores": 16, "workers": 15}
"""Of the prediction: dense bf16 of the H100 SXM (NVIDIA's data sheet) and the share of it that an encoder reaches."""
MEAN_SECONDS = 12.7
TARGETS = {"seconds": 180.0, "loss_share": 0.10, "gpu_busy": 0.60}


class GpuSampler:
    """Context that asks the driver every half second which share of the time kernels ran.

    Attributes:
        samples: shares in [0, 1]; empty on a CPU or where pynvml is missing.
        trouble: why there are none.
    """

    def __init__(self, device: str) -> None:
        self.samples: list[float] = []
        self.trouble: str | None = None if device == "cuda" else "no GPU in use"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GpuSampler:
        if self.trouble is None:
            try:
                torch.cuda.utilization()
                self._thread.start()
            except Exception as error:  # pynvml missing, or a driver that does not tell: any of many kinds
                self.trouble = f"{type(error).__name__}: {error}"
        return self

    def __exit__(self, *_exception) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.samples.append(torch.cuda.utilization() / 100)

    def busy(self) -> float | None:
        """Mean share of the middle of the run: the first and last tenth are start and end."""
        edge = len(self.samples) // 10
        middle = self.samples[edge : len(self.samples) - edge]
        return sum(middle) / len(middle) if middle else None


def run(settings: dict[str, Any], encoder: str, speech: str) -> dict[str, Any]:
    """The timed run and the profiled one."""
    from laser_hf.training import parse_options, run_training

    fast = {"logging_steps": 100, **settings["options"]}
    with tempfile.TemporaryDirectory() as folder:
        timed, profiled = Path(folder) / "timed", Path(folder) / "profiled"
        with GpuSampler(settings["device"]) as sampler:
            start = time.perf_counter()
            record = run_training(
                parse_options(train_options(settings | {"options": fast}, encoder, speech, str(timed)))
            )
            whole = time.perf_counter() - start
        log = json.loads((timed / "training_log.json").read_text())["log"]
        short = settings | {
            "updates": WARM_UP + settings["profile"],
            "options": fast | {"profile_updates": settings["profile"]},
        }
        run_training(parse_options(train_options(short, encoder, speech, str(profiled))))
        profile = read_profile(profiled)
        arguments = train_options(short, encoder, speech, str(Path(folder) / "beside"))
        beside = worker_seconds(arguments, settings["utterances_measured"]) if settings["predict"] else {}
    return {
        "training_seconds": next(entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry),
        "with_set_up_seconds": whole,
        "processed_hours": record["processed_hours"],
        "skipped": record["data"]["skipped"],
        "gpu_busy": sampler.busy(),
        "gpu_samples": len(sampler.samples),
        "gpu_busy_unknown": sampler.trouble,
        "profile": profile,
        "worker_seconds": beside,
    }


def update_flops(name: str, pairs: int, tiny: bool) -> float:
    """FLOPs of one update: both views forward, the top two layers backward, at the mean length; counted, not run."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = make_encoder(name, Path(), tiny, training=True)
        waveform = torch.empty(1, int(MEAN_SECONDS * SAMPLE_RATE))
    model.requires_grad_(False)
    model.encoder.layers[-2:].requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        model(waveform).last_hidden_state.sum().backward()
    return 2.0 * pairs * counter.get_total_flops()


def predict(found: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """An epoch on the assumed machine from the parts measured here, in seconds of an update."""
    seconds = found["profile"]["seconds"]
    scale = settings["pairs"] / settings["utterances_measured"]
    core = scale * sum(found["worker_seconds"].values())
    of_encoder = sum(seconds[part] for part in ("encode", "loss", "backward", "wait"))
    host = max(found["profile"]["seconds_per_update"] - of_encoder, seconds["optimizer"])
    flops = update_flops(settings["model"], settings["pairs"], settings["quick"])
    gpu = flops / (ASSUMED["gpu_flops"] * ASSUMED["gpu_used"])
    whole = found["training_seconds"] / settings["updates"]
    update = max(gpu + host, core / ASSUMED["workers"])
    return {
        "core_seconds": core,
        "host_seconds": host,
        "flops": flops,
        "gpu_seconds": gpu,
        "epoch_seconds": EPOCH * update,
        "assumed": ASSUMED,
        "arithmetic": [
            f"GPU: {flops / 1e12:.2f} TFLOP / ({ASSUMED['gpu_flops'] / 1e12:.0f} TFLOP/s x {ASSUMED['gpu_used']:.0%}) "
            f"= {1000 * gpu:.1f} ms",
            f"the whole run here, a tiny encoder, {settings['workers']} worker: {1000 * whole:.0f} ms an update",
            f"training loop, measured here: {1000 * host:.1f} ms",
            f"decoding and perturbing, measured here: {1000 * core:.0f} ms of one core / {ASSUMED['workers']} workers "
            f"= {1000 * core / ASSUMED['workers']:.1f} ms",
            f"an update: the larger of {1000 * (gpu + host):.1f} and {1000 * core / ASSUMED['workers']:.1f} ms; "
            f"x {EPOCH} = {EPOCH * update:.0f} s",
        ],
        "not_in_it": "the loss and launches of kernels on the GPU, copies to it, memory bandwidth of 15 workers",
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.build_parser("epoch", __doc__, "a tiny model, short utterances, four updates of two pairs")
    add_training_options(parser)
    parser.add_argument("--updates", type=int, default=EPOCH, help="updates timed (default: %(default)s)")
    parser.add_argument("--profile", type=int, default=40, help="updates profiled (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=15, help="data workers (default: %(default)s)")
    parser.add_argument("--micro_batch", type=int, default=8, help="pairs in memory at once (default: %(default)s)")
    parser.add_argument("--perturb_on", choices=["worker", "device"], help="default: device on a GPU, else worker")
    parser.add_argument("--no_bf16", action="store_true", help="fp32 on the GPU (a CPU runs fp32 anyway)")
    parser.add_argument(
        "--predict", action="store_true", help="predict an H100's epoch from parts measured on this CPU"
    )
    parser.add_argument("--utterances", type=int, default=UTTERANCES, help="files (default: %(default)s)")
    parser.add_argument("--distinct", type=int, default=300, help="of these, different ones (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> Path:
    """Time the recipe; returns the record's path."""
    parser = build_parser()
    options = common.parse_options(parser, arguments)
    if options.predict:
        if options.device != "cpu":
            parser.error("--predict is for machines without a GPU; leave one of --predict and --device cuda out")
        options.updates, options.profile, options.utterances, options.workers = 12, 12, 200, 1
    elif options.device == "cpu" and not options.quick and options.updates > 10:
        parser.error("on a CPU this takes more than a day; use --quick, or --updates of at most 10")
    if options.quick:
        options.updates, options.profile, options.utterances, options.distinct, options.workers = 4, 2, 40, 8, 1
    bf16 = options.device == "cuda" and not options.no_bf16 and bf16_trouble("cuda") is None
    perturb_on = options.perturb_on or ("device" if options.device == "cuda" else "worker")
    settings = {
        "model": options.model,
        "device": options.device,
        "bf16": bf16,
        "updates": options.updates,
        "profile": options.profile,
        "pairs": 2 if options.quick else 8,
        "micro_batch": options.micro_batch,
        "workers": options.workers,
        "tiny": options.quick or options.predict,
        "quick": options.quick,
        "predict": options.predict,
        "utterances_measured": 8 if options.quick else 64,
        "options": {"perturb_on": perturb_on} | dict(option.split("=", 1) for option in options.options),
    }
    with tempfile.TemporaryDirectory() as folder:
        encoder, speech = Path(folder) / "encoder", Path(folder) / "speech"
        make_encoder(options.model, encoder, settings["tiny"])
        print(f"writing {options.distinct} of {options.utterances} utterances ...", flush=True)
        scale = 0.1 if options.quick else 1.0
        write_utterances(speech, options.utterances, options.distinct, options.speech, scale)
        print(f"{options.updates} updates of {settings['pairs']} pairs ...", flush=True)
        found = in_process(run, settings, str(encoder), str(speech))
    content = {
        "model": options.model,
        "weights": "random",
        "quick": options.quick,
        "precision": "bf16" if bf16 else "fp32",
        "settings": settings,
        "speech": "synthetic" if options.speech is None else options.speech.name,
        "lengths": LENGTHS,
        "audio_format": "flac",
        "utterances": options.utterances,
        **found,
        "loss_share": found["profile"]["shares"]["loss"],
        "wait_share": found["profile"]["shares"]["wait"],
        "prediction": predict(found, settings) if options.predict else None,
        "epoch_seconds": None if settings["tiny"] else found["training_seconds"] * EPOCH / options.updates,
        "extrapolated": options.updates < EPOCH,
        "targets": TARGETS,
    }
    show(content)
    name = f"epoch-{options.model}" + ("-predicted" if options.predict else "")
    path = save_record(name, content, peers=("transformers", "triton"), device=options.device, path=options.output)
    print(f"record: {path}")
    return path


def show(content: dict[str, Any]) -> None:
    """Print the outcome."""
    updates = content["settings"]["updates"]
    print(
        f"\n{updates} updates: {content['training_seconds']:.1f} s ({content['precision']}, {content['audio_format']})"
    )
    if content["epoch_seconds"] is not None:
        how = "extrapolated" if content["extrapolated"] else "measured"
        print(f"{EPOCH} updates: {content['epoch_seconds']:.0f} s ({how}; target {TARGETS['seconds']:.0f} s)")
    if content["prediction"] is not None:
        print(*content["prediction"]["arithmetic"], f"not in it: {content['prediction']['not_in_it']}", sep="\n")
    busy = content["gpu_busy"]
    print(f"GPU busy: {f'{busy:.0%}' if busy is not None else content['gpu_busy_unknown']}")
    for part, share in content["profile"]["shares"].items():
        print(f"  {part:<10}{share:>7.1%}")


if __name__ == "__main__":
    main()
