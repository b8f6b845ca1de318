"""An exported folder must serve plain transformers as the base model's own would."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import make_model

from laser_hf.encoders import TRAINING_CONFIG, load_encoder
from laser_hf.publishing import export_encoder

KINDS = [
    ("hubert", "group"),
    ("hubert", "layer"),
    ("wavlm", "group"),
    ("wav2vec2", "group"),
    ("data2vec-audio", "layer"),
]


# All kinds in one process, because importing transformers takes most of the time.
_PROGRAM = """
import sys, torch
from transformers import AutoFeatureExtractor, AutoModel
for folder in sys.argv[1:]:
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    io = torch.load(folder + ".io.pt")
    inputs = extractor(io["waveform"].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        frames = model(**inputs).last_hidden_state[0]
    torch.testing.assert_close(frames, io["expected"], rtol=1e-5, atol=1e-5)
    spec_augment = getattr(model.config, "apply_spec_augment", True)
    print(type(model).__name__, spec_augment, model.config.layerdrop, model.config.activation_dropout)
assert not any(name.startswith("laser_hf") for name in sys.modules)
"""


def test_loads_in_a_process_without_laser_hf(tmp_path):
    folders, classes = [], []
    for kind, norm in KINDS:
        base, out = tmp_path / f"{kind}-{norm}-base", tmp_path / f"{kind}-{norm}"
        make_model(kind, norm, layerdrop=0.05, activation_dropout=0.02).save_pretrained(base)
        encoder = load_encoder(base, training_config=TRAINING_CONFIG)
        torch.nn.init.normal_(encoder.model.encoder.layers[-1].final_layer_norm.weight)
        export_encoder(encoder.model, encoder.base_config, out)
        waveform, length = torch.randn(1, 5000) * 0.1, torch.tensor([5000])
        with torch.no_grad():
            expected = encoder(waveform, length).frames[0]
        torch.save({"waveform": waveform[0], "expected": expected}, f"{out}.io.pt")
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == [type(encoder.model).__name__]
        assert config["tokenizer_class"] == "Wav2Vec2CTCTokenizer"
        preprocessor = json.loads((out / "preprocessor_config.json").read_text())
        assert (preprocessor["do_normalize"], preprocessor["return_attention_mask"]) == (False, True)
        # What trained on is untouched.
        assert encoder.model.config.apply_spec_augment is False
        assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
        folders.append(str(out))
        classes.append(type(encoder.model).__name__)
    program = [sys.executable, "-c", _PROGRAM, *folders]
    result = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{name} True 0.05 0.02" for name in classes]


def test_do_normalize_is_written_as_trained(tmp_path):
    model = make_model()
    export_encoder(model, model.config, tmp_path, do_normalize=True)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_normalize"] is True


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = make_model()
    model.encoder.layers[0].attention.k_proj.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"encoder\.layers\.0\.attention\.k_proj\.bias"):
        export_encoder(model, model.config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
