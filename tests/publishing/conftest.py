"""A finished run, made in a second: a tiny encoder exported by the real code and a record with the real keys."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_model

from laser_hf.publishing import export_encoder

CARDS = REPOSITORY / "model_cards"

# One white pixel.
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4////fwAJ+wP9CNHoHgAAAABJRU5ErkJggg=="
)
_NAMES = {"hubert": "facebook/hubert-base-ls960", "wavlm": "microsoft/wavlm-base"}


def _logged(step: int, loss: float, soft_dtw: float, idm: float, cosine: float, rank: float) -> dict:
    return {
        "eval_loss": {"step": step, "value": loss},
        "eval_soft_dtw": {"step": step, "value": soft_dtw},
        "eval_idm": {"step": step, "value": idm},
        "eval_frame_cosine": {"step": step, "value": cosine},
        "eval_effective_rank": {"step": step, "value": rank},
        "eval_collapse": {"step": step, "value": 0},
        "loss": {"step": max(step, 1), "value": loss},
        "learning_rate": {"step": max(step, 1), "value": 2e-5},
    }


def make_record(kind: str = "hubert") -> dict:
    """`laser_config.json` as `train.py` writes it, for a run of the preset on the Hub's base model."""
    weights = ("attention.k_proj.weight", "attention.k_proj.bias", "final_layer_norm.weight", "final_layer_norm.bias")
    return {
        "method": "laser",
        "preset": f"{kind}-base",
        "base_model": {
            "name": _NAMES[kind],
            "local": False,
            "revision": "dba3bb02fda4248b6e082697eee756de8fe8aa8a",
            "model_type": kind,
            "parameters": 94371712,
        },
        "recipe": {
            "model": {
                "model_name_or_path": _NAMES[kind],
                "model_revision": None,
                "trainable_layers": 2,
                "train_encoder_layer_norm": False,
                "projection_dim": 256,
                "do_normalize": False,
            },
            "objective": {
                "name": "laser",
                "gamma": 0.1,
                "alpha": 0.4,
                "sigma": 1,
                "margin": 1.1,
                "distance": "euclidean",
            },
            "data": {"train_data": "openslr/librispeech_asr", "train_name": "clean", "train_split": "train.100"},
            "training": {
                "pairs_per_update": 8,
                "max_steps": 3600,
                "learning_rate": 2e-5,
                "lr_scheduler_type": "SchedulerType.LINEAR",
                "warmup_steps": 1000,
                "optim": "OptimizerNames.ADAMW_TORCH_FUSED",
                "seed": 1337,
            },
        },
        "trained_parameters": [f"encoder.layers.{layer}.{name}" for layer in (1, 2) for name in weights],
        "data": {
            "source": "openslr/librispeech_asr",
            "name": "clean",
            "split": "train.100",
            "utterances": None,
            "skipped": {"utterances": 3, "times": 3, "by_kind": {"too_short": 3}},
        },
        "seed": 1337,
        "updates": 3600,
        "processed_hours": 100.27,
        "wall_time_seconds": 5580.4,
        "processes": 1,
        "precision": "fp32",
        "collapse": {"fired_at": None, "start": {"step": 0, "frame_cosine": 0.27, "effective_rank": 85.5}},
        "first": _logged(0, 11259.978, 224.457, 27588.803, 0.26535, 85.541),
        "last": _logged(3600, 1234.5678, 198.7654, 2589.506, 0.25898, 86.847),
        "command": "python train.py --preset hubert-base --output_dir /home/someone/runs/one --hub_token hf_"
        + "a" * 34,
        "versions": {"python": "3.11.7", "laser_hf": "0.1.0", "torch": "2.12.1", "transformers": "5.23.0"},
        "hardware": {"processor": "A processor", "cores": 16, "memory_gib": 128.0, "gpus": ["NVIDIA A100-SXM4-80GB"]},
        "commit": "c107a10aa3b3f0f0d0c0c0b0a0908070605040302",
        "written": "2026-11-21T06:18:44+00:00",
    }


def make_result(model: str) -> dict:
    """A downstream result, as `python -m laser_hf.superb` writes it."""
    return {
        "task": "qbe",
        "protocol": "quick",
        "model": model,
        "metric": "mean_average_precision",
        "unit": "fraction",
        "value": 0.43219,
        "layer": 3,
        "command": f"python -m laser_hf.superb qbe --model {model}",
        "written": "2026-11-21T07:00:00+00:00",
    }


@pytest.fixture
def make_run(tmp_path):
    """Builds a finished run folder: `make_run(kind="hubert", evaluated=True, **changes_to_the_record)`."""

    def build(kind: str = "hubert", evaluated: bool = True, name: str = "run", **changes) -> Path:
        folder: Path = tmp_path / name
        model = make_model(kind, apply_spec_augment=True, layerdrop=0.05)
        base = copy.deepcopy(model.config)
        torch.nn.init.normal_(model.encoder.layers[-1].attention.k_proj.weight)
        export_encoder(model, base, folder)
        record = {**make_record(kind), **changes}
        (folder / "laser_config.json").write_text(json.dumps(record))
        (folder / "training_log.json").write_text(json.dumps({"log": [{"loss": 11259.978, "step": 1}]}))
        (folder / "recipe.json").write_text("{}")
        (folder / "plots").mkdir()
        (folder / "plots" / "loss_terms.png").write_bytes(_PNG)
        # What must stay: everything pickled.
        checkpoint = folder / "checkpoint-3600"
        checkpoint.mkdir()
        torch.save({"state": 1}, checkpoint / "optimizer.pt")
        torch.save({"state": 1}, folder / "training_args.bin")
        if evaluated:
            (folder / "results").mkdir()
            (folder / "results" / "qbe.json").write_text(json.dumps(make_result(str(folder))))
        return folder

    return build
