"""Encoders: exact under padding, frozen where they should be, clear about what they cannot do."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model

from laser_hf.encoders import (
    TRAINING_CONFIG,
    SpeechEncoder,
    frame_lengths,
    load_encoder,
    receptive_field,
)
from laser_hf.errors import LaserError

ARCHITECTURES = [
    ("hubert", "group", False),
    ("hubert", "layer", True),
    ("wavlm", "group", False),
    ("wavlm", "layer", True),
    ("wav2vec2", "group", False),
    ("wav2vec2", "layer", True),
    ("data2vec-audio", "layer", False),
]
LENGTHS = torch.tensor([16000, 400, 9777, 12345, 719])


@pytest.mark.parametrize(("kind", "norm", "stable"), ARCHITECTURES)
@pytest.mark.parametrize("do_normalize", [False, True])
def test_padded_equals_alone(kind, norm, stable, do_normalize):
    model = make_model(kind, norm, stable)
    encoder = SpeechEncoder(model, do_normalize=do_normalize)
    torch.manual_seed(0)
    waveforms = torch.randn(len(LENGTHS), 18000) * 0.1  # what lies beyond the lengths must not matter
    with torch.no_grad():
        together = encoder(waveforms, LENGTHS, output_hidden_states=True)
        for i, length in enumerate(LENGTHS.tolist()):
            waveform = waveforms[i : i + 1, :length]
            if do_normalize:
                waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)
            alone = model(waveform, output_hidden_states=True)  # plain transformers, nothing of ours
            frames = alone.last_hidden_state.shape[1]
            assert together.lengths[i] == frames
            torch.testing.assert_close(together.frames[i, :frames], alone.last_hidden_state[0], rtol=1e-5, atol=1e-5)
            assert (together.frames[i, frames:] == 0).all()
            for layer, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(layer[i, :frames], expected[0], rtol=1e-5, atol=1e-5)


def test_plain_transformers_is_not_exact():
    """The trap that the masked statistics exist for; without them this module could go."""
    model = make_model("hubert", "group")
    torch.manual_seed(0)
    waveform = torch.randn(1, 9777) * 0.1
    padded = torch.nn.functional.pad(waveform, (0, 8000))
    mask = torch.nn.functional.pad(torch.ones(1, 9777, dtype=torch.long), (0, 8000))
    with torch.no_grad():
        alone, together = model(waveform).last_hidden_state, model(padded, mask).last_hidden_state
    assert (together[:, : alone.shape[1]] - alone).abs().max() > 1e-2


def test_padded_gradients_equal_alone():
    encoder = SpeechEncoder(make_model("hubert", "group", layerdrop=0.0))
    encoder.freeze_except(2, encoder_layer_norm=True)
    torch.manual_seed(1)
    waveforms, lengths = torch.randn(2, 8000) * 0.1, torch.tensor([8000, 3000])
    weight = encoder.model.encoder.layers[-1].feed_forward.intermediate_dense.weight

    def gradient(*batches):
        encoder.zero_grad()
        for waves, counts in batches:
            output = encoder(waves, counts)
            output.frames.square()[..., :7].sum().backward()
        return weight.grad.clone()

    together = gradient((waveforms, lengths))
    alone = gradient((waveforms[:1], lengths[:1]), (waveforms[1:, :3000], lengths[1:]))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["hubert", "data2vec-audio"])
def test_frame_lengths_and_receptive_field(kind):
    model = make_model(kind)
    assert receptive_field(model.config) == 400
    lengths = torch.tensor([0, 399, 400, 719, 720, 16000, 51234])
    expected = [0, 0, 1, 1, 2, 49, 159]
    assert frame_lengths(model.config, lengths).tolist() == expected
    for length, frames in zip(lengths[2:].tolist(), expected[2:], strict=True):
        assert model.feature_extractor(torch.zeros(1, length)).shape[2] == frames


def test_bad_batches_are_refused():
    encoder = SpeechEncoder(make_model())
    with pytest.raises(ValueError, match="one frame"):
        encoder(torch.zeros(2, 1000), torch.tensor([1000, 399]))
    with pytest.raises(ValueError, match="padded batch"):
        encoder(torch.zeros(1, 1000), torch.tensor([1001]))
    with pytest.raises(ValueError, match=r"\(batch, samples\)"):
        encoder(torch.zeros(1000), torch.tensor([1000]))


@pytest.mark.parametrize(("kind", "norm", "stable"), ARCHITECTURES)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_only_named_layers_train(kind, norm, stable, layer_norm):
    encoder = SpeechEncoder(make_model(kind, norm, stable, layerdrop=0.0))
    names = encoder.freeze_except(2, encoder_layer_norm=layer_norm)
    expected = ("encoder.layers.1.", "encoder.layers.2.") + (("encoder.layer_norm.",) if layer_norm else ())
    assert names
    assert all(name.startswith(expected) for name in names)
    encoder.train()
    output = encoder(torch.randn(1, 4000) * 0.1, torch.tensor([4000]))
    output.frames.square().sum().backward()
    with_gradient = {name for name, p in encoder.model.named_parameters() if p.grad is not None}
    assert with_gradient == set(names)


def test_front_end_has_no_graph_in_train_mode():
    """HuBERT keeps gradients through the CNN unless frozen by its own method: twice the time of an update."""
    encoder = SpeechEncoder(make_model())
    encoder.freeze_except(1)
    encoder.train()
    seen = []
    encoder.model.feature_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    encoder(torch.randn(1, 4000), torch.tensor([4000]))
    assert seen == [False]


@pytest.mark.parametrize("count", [0, 4])
def test_layers_that_do_not_exist(count):
    with pytest.raises(ValueError, match="between 1 and 3"):
        SpeechEncoder(make_model()).freeze_except(count)


def test_training_config_is_set_and_the_original_kept(tmp_path):
    make_model(layerdrop=0.3, activation_dropout=0.25).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, training_config=TRAINING_CONFIG)
    for name, value in TRAINING_CONFIG.items():
        assert getattr(encoder.config, name) == value
    assert encoder.base_config.layerdrop == 0.3
    assert encoder.base_config.activation_dropout == 0.25
    assert encoder.base_config.apply_spec_augment is True
    # Dropouts reach the modules only if set before the model is built.
    assert encoder.model.encoder.layers[0].feed_forward.intermediate_dropout.p == 0.0
    assert encoder.model.feature_projection.dropout.p == 0.1
    assert encoder.model.masked_spec_embed is not None
    assert not encoder.training


def test_training_mode_neither_masks_nor_drops_layers(tmp_path):
    make_model(layerdrop=0.9, mask_time_prob=0.9).save_pretrained(tmp_path)
    quiet = {name: 0.0 for name in TRAINING_CONFIG if "dropout" in name}
    encoder = load_encoder(tmp_path, training_config={**TRAINING_CONFIG, **quiet})
    waveform, length = torch.randn(1, 8000) * 0.1, torch.tensor([8000])
    with torch.no_grad():
        evaluated = encoder.eval()(waveform, length, output_hidden_states=True)
        trained = encoder.train()(waveform, length, output_hidden_states=True)
    torch.testing.assert_close(trained.frames, evaluated.frames)
    assert len(trained.hidden_states) == 4


def test_half_precision_checkpoint_loads_in_float32(tmp_path):
    make_model().half().save_pretrained(tmp_path)
    assert next(load_encoder(tmp_path).parameters()).dtype == torch.float32


def test_ctc_checkpoint_gives_its_encoder(tmp_path):
    import transformers

    base = make_model()
    head = transformers.HubertForCTC(base.config)
    head.hubert.load_state_dict(base.state_dict())
    head.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path)
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_missing_and_unsupported_models(tmp_path):
    with pytest.raises(LaserError, match="laser_hf/demo/encoder"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(LaserError, match="laser_hf/demo/encoder"):
        load_encoder("someone/no-such-model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(LaserError, match="hubert, wavlm, wav2vec2, data2vec-audio"):
        load_encoder(tmp_path)


def test_normalisation_that_differs_from_the_checkpoint_is_announced(tmp_path, caplog):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    load_encoder(tmp_path)
    assert "do_normalize=True" in caplog.text
    caplog.clear()
    load_encoder(tmp_path, do_normalize=True)
    assert "do_normalize" not in caplog.text
