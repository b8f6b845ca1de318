"""A finished run, made in a second: a tiny encoder exported by the real code and a record with the real keys."""

from __future__ import annotations

import base64
import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import make_model
from hub_server import HubServer
from safetensors.torch import save

from laser_hf import encoders, records
from laser_hf.publishing import export, export_encoder, push, sample_features
from laser_hf.publishing.card import render_card
from laser_hf.publishing.export import load_frames
from laser_hf.publishing.facts import find_facts, read_results
from laser_hf.publishing.repository import without_private
from laser_hf.records import tensors_digest

CONFIG = {**make_model().config.to_dict()}
PREPROCESSOR = {"do_normalize": False, "sampling_rate": 16000}
DIGEST, BASE_DIGEST = "a" * 64, "b" * 64

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
        "schema_version": records.SCHEMA_VERSION,
        "task": "training",
        "method": "laser",
        "preset": f"{kind}-base",
        "changed_from_preset": [],
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
                "reference_frames": None,
            },
            "perturbations": {
                "name": ["speed_pitch"],
                "speed_factors": [0.9, 1.0, 1.1],
                "pitch_steps": [-2.0, 2.0],
            },
            "data": {
                "train_data": "openslr/librispeech_asr",
                "train_name": "clean",
                "train_split": "train.100",
                "crop_seconds": None,
            },
            "training": {
                "pairs_per_update": 8,
                "seconds_per_update": None,
                "max_steps": 3600,
                "learning_rate": 2e-5,
                "lr_scheduler_type": "linear",
                "lr_scheduler_kwargs": None,
                "warmup_steps": 1000,
                "optim": "adamw_torch_fused",
                "coupled_weight_decay": False,
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
        "wall_seconds": 5580.4,
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


def make_result(folder: Path, model: str, digest: str | None, task: str = "qbe", **changes) -> Path:
    """An evaluation record in the frame of all records."""
    metrics = {
        "asr": [{"metric": "wer", "value": 6.1839, "unit": "percent", "split": "test-clean"}],
        "pr": [{"metric": "per", "value": 4.9688, "unit": "percent", "split": "test-clean"}],
        "qbe": [
            {"metric": "mean_average_precision", "value": 0.43219, "unit": "fraction", "split": "test", "layer": 3}
        ],
    }.get(task)
    values = {
        "protocol": "superb" if task in ("asr", "pr") else "quick",
        "metrics": metrics,
        "data": {"source": "openslr/librispeech_asr", "revision": "71cacbfb7e2354c4226d01e70d77d5fca3d04ba1"},
        "recipe": {"learning_rate": 1e-4},
        "seed": 1337,
        "wall_seconds": 61.24,
        **changes,
    }
    written = {"command": f"python -m laser_hf.superb {task}", "written": "2026-11-21T07:00:00+00:00"}
    named = {"model": model, "model_revision": None, "weights_sha256": digest}
    # Asking git and the processor takes longer than all the rest.
    with mock.patch.object(records, "provenance", return_value=written):
        records.write_json(folder / "results.json", records.new_record(task, model=named, **values))
    return folder / "results.json"


def make_conversion(base: str | None = "facebook/hubert-base-ls960") -> dict:
    """`conversion.json` as `laser-hf convert` writes it."""
    record = make_record()
    kept = ("schema_version", "versions", "hardware", "commit", "written")
    named = {"name": base or "states-3600.ckpt", "local": base is None, "model_type": "hubert", "parameters": 94371712}
    return {
        **{name: record[name] for name in kept},
        "task": "conversion",
        "recipe": {"do_normalize": False, "model": {"model_name_or_path": base}, "content": {}},
        "data": {"source": "states-3600.ckpt", "sha256": "c" * 64},
        "seed": None,
        "wall_seconds": 2.0,
        "layout": "S3PRL checkpoint",
        "step": 3600,
        "base_model": {**named, "revision": record["base_model"]["revision"] if base else None},
        "tensors": 211,
        "dropped": ["final_proj.bias", "final_proj.weight"],
        "changed_since_base": ["encoder.layer_norm.bias", "encoder.layers.10", "encoder.layers.11"] if base else None,
        "notes": ["do_normalize is false, as usual with this front-end's normalisation"],
        "weights_sha256": DIGEST,
    }


def render(record: dict, results=(), given=None, **values) -> str:
    """The card of a run or a conversion, without one."""
    return render_card(
        without_private(record),
        find_facts(record, given),
        repo_id="org/hubert-laser",
        config=CONFIG,
        preprocessor=PREPROCESSOR,
        results=results,
        **values,
    )


def read(folder: Path, *paths: Path, base: str = "facebook/hubert-base-ls960"):
    """Results of records in `folder`, by their names there."""
    files = {f"results/{path.parent.name}.json": path for path in paths}
    return read_results(files, DIGEST, BASE_DIGEST, base, ["org/hubert-laser"])


@dataclass
class Run:
    """A finished run folder and what it was made from."""

    folder: Path
    digest: str
    base_digest: str
    base_folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def record(self) -> dict:
        return json.loads((self.folder / "laser_config.json").read_text())

    def change(self, **changes) -> None:
        """Other values in the record."""
        (self.folder / "laser_config.json").write_text(json.dumps({**self.record(), **changes}))

    def add_result(self, name: str, digest: str | None, model: str = "outputs/some", **values) -> None:
        """Another evaluation record among the results."""
        made = make_result(self.folder.parent / f"{self.folder.name}-{name}", model, digest, **values)
        made.rename(self.folder / "results" / f"{name}.json")


@pytest.fixture
def make_run(tmp_path):
    """Builds a finished run: `make_run(kind="hubert", evaluated=True, name="run", hub=None, **record_changes)`.

    With `hub`, the base model is published there first, and the record names its commit.
    """

    def build(kind: str = "hubert", evaluated: bool = True, name: str = "run", hub=None, **changes) -> Run:
        folder: Path = tmp_path / name
        model = make_model(kind, apply_spec_augment=True, layerdrop=0.05)
        # As a checkpoint of a model with a head has it, and with the names of older versions.
        base = {f"{kind}.{n}": t.clone() for n, t in model.state_dict().items()}
        base_digest = tensors_digest(model.state_dict())
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            found = next(n for n in base if n.endswith(f"parametrizations.weight.{new}"))
            base[found.replace(f"parametrizations.weight.{new}", old)] = base.pop(found)
        base_folder = tmp_path / f"{name}-base"
        model.config.save_pretrained(base_folder)
        (base_folder / "model.safetensors").write_bytes(save({**base, "lm_head.weight": torch.ones(3)}))
        config = copy.deepcopy(model.config)
        torch.nn.init.normal_(model.encoder.layers[-1].attention.k_proj.weight)
        export_encoder(model, config, folder)
        record = {**make_record(kind), "sample_features": sample_features(model), **changes}
        if hub is not None:
            files = {path.name: path.read_bytes() for path in base_folder.iterdir()}
            commit = hub.create(record["base_model"]["name"], files).at("main")
            record["base_model"]["revision"] = commit.oid
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
        (folder / "results").mkdir()
        run = Run(folder, tensors_digest(model.state_dict()), base_digest, base_folder)
        if evaluated:
            run.add_result("qbe", run.digest)
        return run

    return build


@pytest.fixture
def base_at_hand(monkeypatch):
    """Makes the base model of a `Run` what a download gives."""

    load = encoders.load_pretrained

    def use(run: Run) -> None:
        def load_base(name, *where):
            return (
                load(str(run.base_folder), *where) if name == run.record()["base_model"]["name"] else load(name, *where)
            )

        monkeypatch.setattr(encoders, "load_pretrained", load_base)

    return use


@pytest.fixture
def publish(capsys):
    """Runs `laser-hf push` in this process, with the reload in this process; returns what it printed."""

    def run(*words, repo_id: str = "org/hubert-laser", load=load_frames) -> str:
        with mock.patch.object(export, "load_in_fresh_process", load):
            push.main(["--repo_id", repo_id, *map(str, words)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on 127.0.0.1 that the client in this process uses; nobody waits for its retries."""
    with HubServer() as server, warnings.catch_warnings():
        server.attach(monkeypatch, tmp_path / "hub-home")
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # of the client, about itself
        yield server
