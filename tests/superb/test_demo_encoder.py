"""The encoder shipped in `laser_hf/demo/encoder`: it loads, and its card says what its records say."""

import json
from pathlib import Path

import torch
from transformers import AutoFeatureExtractor, AutoModel

import laser_hf
from laser_hf.encoders import load_encoder

FOLDER = Path(laser_hf.__file__).parent / "demo" / "encoder"


def test_it_loads_with_plain_transformers():
    model = AutoModel.from_pretrained(FOLDER).eval()
    assert model.dtype == torch.float32  # stored as float16
    assert not AutoFeatureExtractor.from_pretrained(FOLDER).do_normalize
    assert (FOLDER / "model.safetensors").stat().st_size < 12e6
    with torch.inference_mode():
        frames = model(torch.randn(1, 16_000) * 0.05).last_hidden_state
    assert frames.shape == (1, 49, 256)  # as many frames as HuBERT base
    assert frames.isfinite().all()


def test_frames_are_those_of_hubert_base():
    encoder = load_encoder(str(FOLDER))
    samples = torch.arange(400, 4000, 7)
    assert torch.equal(encoder.frame_lengths(samples), (samples - 400) // 320 + 1)


def test_card_agrees_with_records():
    card = (FOLDER / "README.md").read_text()
    qbe = json.loads((FOLDER / "qbe.json").read_text())
    training = json.loads((FOLDER / "pretraining.json").read_text())
    for record in qbe["systems"]:
        for value in record["layers"].values():
            assert f"{value:.3f}" in card
    parameters = sum(p.numel() for p in AutoModel.from_pretrained(FOLDER).parameters())
    assert training["parameters"] == parameters
    assert f"{parameters / 1e6:.2f} million parameters" in card
    hours = sum(entry["hours"] for entry in training["rounds"].values())
    assert f"{hours:.1f} hours" in card
