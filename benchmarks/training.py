"""What the training benchmarks share: options, a random encoder, the command line of `train.py`, an own process."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import peak_mib

WARM_UP = 2
"""Updates that the Trainer's profiler leaves out."""
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmarks that train an encoder through `train.py`'s own code."""
    parser.add_argument("--model", choices=("hubert-base", "wavlm-base"), default="hubert-base")
    parser.add_argument("--speech", type=Path, help="folder of real 16 kHz speech to cut the utterances from")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="more options of train.py")


def make_encoder(name: str, folder: Path, tiny: bool = False, training: bool = False):
    """Save a random encoder of the architecture `name` and return it; `training` sets the recipe's dropouts."""
    import transformers

    from laser_hf.encoders import TRAINING_CONFIG

    kinds = {
        "hubert-base": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm-base": (transformers.WavLMConfig, transformers.WavLMModel),
    }
    config_class, model_class = kinds[name]
    torch.manual_seed(0)
    model = model_class(config_class(**(_TINY if tiny else {}), **(TRAINING_CONFIG if training else {})))
    if not training:
        model.save_pretrained(folder)
    return model


def bf16_trouble(device: str) -> str | None:
    """Why bf16 would not be worth measuring here, or `None`."""
    if device == "cuda":
        return None if torch.cuda.is_bf16_supported() else "this GPU has no bf16 arithmetic"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return None
    return "this CPU has neither AVX512-BF16 nor AMX, so bf16 would be emulated"


def in_process(function, *arguments) -> dict[str, Any]:
    """Result of a module-level function in a fresh process, and the peak memory of it and of its workers in GiB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} failed in its own process; see above") from None
    finally:
        process.join()


def _call(sender, function, arguments) -> None:
    result = function(*arguments)
    result["peak_memory_gib"] = peak_mib() / 1024
    # Linux counts in KiB.
    result["peak_memory_worker_gib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    if torch.cuda.is_available():
        result["peak_memory_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    sender.send(result)


def read_profile(folder: Path) -> dict[str, Any]:
    """`profile.json` of a run with `--profile_updates`, with `shares` of an update; on a GPU, those of its kernels."""
    profile = json.loads((folder / "profile.json").read_text())
    seconds = profile["seconds"] | profile.get("device_seconds", {}) | {"wait": profile["seconds"]["wait"]}
    profile["shares"] = {part: value / profile["seconds_per_update"] for part, value in seconds.items()}
    return profile


def worker_seconds(arguments: list[str], pairs: int) -> dict[str, float]:
    """Seconds of one core to decode and to perturb as many utterances as an update has pairs.

    Args:
        arguments: of `train.py`.
        pairs: of an update.
    """
    from laser_hf.data import decode_audio, draw_generator
    from laser_hf.training import parse_options
    from laser_hf.training.speech import load_pairs

    data, _ = load_pairs(parse_options(arguments))
    seconds = {"decode": 0.0, "perturb": 0.0}
    for index in range(-1, pairs):  # the first one is a warm-up
        row = data.speech[index % len(data)]
        drawn = data.perturbation.draw_for(draw_generator(0, 0, row["id"]), row["id"])
        times = [time.perf_counter()]
        clean = decode_audio(row["audio"]).waveform
        times.append(time.perf_counter())
        data.perturbation.apply(clean, **drawn)
        times.append(time.perf_counter())
        if index >= 0:
            seconds["decode"] += times[1] - times[0]
            seconds["perturb"] += times[2] - times[1]
    return seconds


def train_options(settings: dict[str, Any], folder: str, speech: str, output: str) -> list[str]:
    """The command line of `train.py` for `updates` updates on the files of `speech`."""
    arguments = {
        "preset": settings["model"],
        "model_name_or_path": folder,
        "train_data": speech,
        "train_split": "",
        "train_name": "",
        "output_dir": output,
        "max_steps": settings["updates"],
        "pairs_per_update": settings["pairs"],
        "per_device_train_batch_size": settings["micro_batch"],
        "dataloader_num_workers": settings["workers"],
        "save_strategy": "no",
        "report_to": "none",
        "plots": "false",
        "disable_tqdm": "true",
        "bf16": str(settings["bf16"]).lower(),
        "use_cpu": str(settings["device"] == "cpu").lower(),
        **settings["options"],
    }
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
