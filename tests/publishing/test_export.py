"""An exported folder must serve plain transformers as the base model's own would."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file
from transformers import AutoConfig

from laser_hf.encoders import TRAINING_CONFIG, load_encoder
from laser_hf.publishing import export_encoder
from laser_hf.publishing.export import load_frames

KINDS = [
    ("hubert", "group"),
    ("hubert", "layer"),
    ("wavlm", "group"),
    ("wav2vec2", "group"),
    ("data2vec-audio", "layer"),
]


@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_an_export_serves_plain_transformers(kind, norm, tmp_path):
    """That no laser_hf is needed for it is tested in test_train_and_publish and test_interoperability."""
    base, out = tmp_path / "base", tmp_path / "out"
    make_model(kind, norm, layerdrop=0.05, activation_dropout=0.02).save_pretrained(base)
    encoder = load_encoder(base, training_config=TRAINING_CONFIG)
    torch.nn.init.normal_(encoder.model.encoder.layers[-1].final_layer_norm.weight)
    export_encoder(encoder.model, encoder.base_config, out)
    waveform, length = torch.randn(1, 5000) * 0.1, torch.tensor([5000])
    with torch.no_grad():
        expected = encoder(waveform, length).frames[0]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [type(encoder.model).__name__]
    assert config["tokenizer_class"] == "Wav2Vec2CTCTokenizer"
    preprocessor = json.loads((out / "preprocessor_config.json").read_text())
    assert (preprocessor["do_normalize"], preprocessor["return_attention_mask"]) == (False, True)
    # The config that training used is untouched.
    assert encoder.model.config.apply_spec_augment is False
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    torch.testing.assert_close(load_frames(str(out), waveform[0].numpy()), expected, rtol=1e-5, atol=1e-5)
    loaded = AutoConfig.from_pretrained(out)
    spec_augment = getattr(loaded, "apply_spec_augment", True)
    assert (spec_augment, loaded.layerdrop, loaded.activation_dropout) == (True, 0.05, 0.02)


def test_old_names_of_the_base_model_are_not_exported(tmp_path):
    """Transformers would write back weight_g and weight_v, which the publish check then takes for unknown weights."""
    model = make_model()
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = model.state_dict()
    for new, old in names.items():
        state = {name.replace(new, old): tensor.clone() for name, tensor in state.items()}
    model.config.save_pretrained(tmp_path / "base")
    torch.save(state, tmp_path / "base" / "pytorch_model.bin")
    encoder = load_encoder(tmp_path / "base")
    export_encoder(encoder.model, encoder.base_config, tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(exported[name], tensor)


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


def test_leftovers_of_a_killed_export_go_with_the_next_one(tmp_path):
    model = make_model()
    (tmp_path / ".export-staging").mkdir()
    (tmp_path / ".export-staging" / "model.safetensors").write_bytes(b"half")
    export_encoder(model, model.config, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
