"""A finished run of a tiny encoder, word times for its speech, and what the tests look at in pictures."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import pytest
import torch

from laser_hf import figures
from laser_hf.encoders import load_encoder
from laser_hf.records import TRAINING_RECORD, new_record, write_json

WORDS = ("river", "garden", "letter", "winter")


@pytest.fixture(scope="session")
def word_times(small_tree, tmp_path_factory) -> Path:
    """Two words of 0.2 s in each utterance of `small_tree`, the same ones for every speaker."""
    rows = ["utterance\tword\tstart_seconds\tduration_seconds"]
    for file in sorted(small_tree.rglob("*.flac")):
        take = int(file.stem[-1])
        rows += [f"{file.stem}\t{WORDS[(take + place) % 4]}\t{0.05 + 0.21 * place:.2f}\t0.20" for place in range(2)]
    path = tmp_path_factory.mktemp("times") / "alignments.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def make_history(*terms: str, steps=(1, 2, 3), held_out: bool = True, scale: float = 1.0) -> list[dict]:
    """A log as training writes it."""
    log = []
    for step in steps:
        values = {name: scale * (number + 1) / step for number, name in enumerate(("loss", *terms))}
        values |= {"frame_cosine": 0.1 * step, "effective_rank": 30.0 - step}
        log.append({"step": step, **values, "grad_norm": 2.0, "learning_rate": 1e-4, "epoch": 0.5, "collapse": 0})
        if held_out:
            log.append({"step": step, **{f"eval_{name}": value for name, value in values.items()}})
    log.append({"step": steps[-1], "train_loss": 1.0, "train_runtime": 3.0, "total_flos": 0.0})
    return log


@pytest.fixture(scope="session")
def finished_run(tiny_encoder, small_tree, tmp_path_factory) -> Path:
    """What a run of three updates leaves in its folder, without pictures."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    encoder = load_encoder(tiny_encoder)
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.model.encoder.layers[-1].parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    encoder.model.save_pretrained(folder)
    write_json(folder / "training_log.json", {"log": make_history("soft_dtw", "idm")})
    record = new_record(
        "training",
        recipe={
            "model": {"model_name_or_path": str(tiny_encoder), "model_revision": None, "do_normalize": False},
            "objective": {"name": "laser", "gamma": 0.1, "alpha": 0.4},
            "perturbations": {"name": ["speed_pitch"], "speed_factors": [1.1], "pitch_steps": [2.0]},
            "data": {},
        },
        data={"source": str(small_tree), "name": None, "split": "train", "held_out": str(small_tree)},
        seed=3,
        wall_seconds=1.0,
        method="laser",
        base_model={"name": Path(tiny_encoder).name, "local": True, "revision": None},
        updates=3,
    )
    write_json(folder / TRAINING_RECORD, record)
    return folder


@pytest.fixture
def saved(monkeypatch):
    """Titles of the pictures by file name, as they are written."""
    titles = {}
    original = figures.save

    def save(figure, path, title=""):
        titles[Path(path).name] = title
        return original(figure, path, title)

    monkeypatch.setattr(figures, "save", save)
    return titles


def assert_drawn(path: Path) -> None:
    """A PNG of some size with more than one colour in it."""
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.02
    assert math.isfinite(float(picture.sum()))
