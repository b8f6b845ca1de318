"""Take real steps with the full-size presets: a random HuBERT or WavLM base on a folder of speech.

Pre-trained weights change no memory and no time, so this shows what a machine needs for the paper's recipe:

    python scripts/full_size_check.py --preset hubert-base --train_data LibriSpeech/train-clean-5 \
        --record docs/records/full_size_hubert-base.json
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from laser_hf.records import provenance, read_json, write_json
from laser_hf.training import parse_options, run_training

MODELS = {
    "hubert-base": (transformers.HubertConfig, transformers.HubertModel),
    "wavlm-base": (transformers.WavLMConfig, transformers.WavLMModel),
}


def main() -> None:
    """Run the check; further options go to train.py's parser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(MODELS), default="hubert-base")
    parser.add_argument("--train_data", required=True, help="folder of speech")
    parser.add_argument("--steps", type=int, default=2, help="updates (default: %(default)s)")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write")
    options, rest = parser.parse_known_args()
    config_class, model_class = MODELS[options.preset]
    with tempfile.TemporaryDirectory() as folder:
        base, output = Path(folder) / f"random-{options.preset}", Path(folder) / "run"
        torch.manual_seed(0)
        model_class(config_class()).save_pretrained(base)
        start = time.perf_counter()
        record = run_training(
            parse_options(
                [
                    "--preset",
                    options.preset,
                    "--model_name_or_path",
                    str(base),
                    "--train_data",
                    options.train_data,
                    "--train_split",
                    "",
                    "--train_name",
                    "",
                    "--output_dir",
                    str(output),
                    "--max_steps",
                    str(options.steps),
                    "--logging_steps",
                    "1",
                    "--report_to",
                    "none",
                    *rest,
                ]
            )
        )
        log = read_json(output / "training_log.json")["log"]
        elapsed = time.perf_counter() - start
    steps = [
        {name: entry[name] for name in ("step", "loss", "soft_dtw", "idm", "grad_norm", "processed_hours")}
        for entry in log
        if "loss" in entry
    ]
    write_json(
        options.record,
        {
            "what": "updates of a full-size encoder with random weights",
            "preset": options.preset,
            "parameters": record["base_model"]["parameters"],
            "options": rest,
            "pairs_per_update": record["recipe"]["training"]["pairs_per_update"],
            "precision": record["precision"],
            "steps": steps,
            "training_seconds": record["wall_time_seconds"],
            "total_seconds": round(elapsed, 1),
            # Linux counts in KiB; workers that decode and perturb come on top.
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "peak_memory_worker_gib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
            **provenance(),
        },
    )
    print(f"wrote {options.record}")


if __name__ == "__main__":
    main()
