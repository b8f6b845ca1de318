"""Encoders: exact under padding, frozen where they should be, clear about what they cannot do."""

from __future__ import annotations

import copy
import json

import conftest
import pytest
import torch
from safetensors.torch import save_file

from laser_hf.encoders import (
    TRAINING_CONFIG,
    SpeechEncoder,
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
    ("hubert", "batch", False),
    ("hubert", "batch", True),
]
LENGTHS = torch.tensor([16000, 400, 9777, 12345, 719])


def make_model(kind="hubert", norm="group", stable=False, **extra):
    """As conftest's; with the norm "batch" also a BatchNorm, with statistics, before the positional convolution."""
    if norm != "batch":
        return conftest.make_model(kind, norm, stable, **extra)
    model = conftest.make_model(kind, "group", stable, conv_pos_batch_norm=True, **extra)
    with torch.no_grad():
        for tensor in (*model.encoder.pos_conv_embed.batch_norm.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def write_checkpoint(folder, model, state, old_file=False, **config):
    """A folder as from the Hub: config.json with changes, and weights as given."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | config))
    state = {name: tensor.clone() for name, tensor in state.items()}
    if old_file:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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
    assert SpeechEncoder(model).frame_lengths(lengths).tolist() == expected
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


def test_batch_statistics_stay_those_of_the_checkpoint():
    """Training and evaluation move no buffer, and both see the same statistics."""
    quiet = {name: 0.0 for name in TRAINING_CONFIG if "drop" in name}
    model = make_model("hubert", "batch", apply_spec_augment=False, **quiet)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert set(before) == {
        f"encoder.pos_conv_embed.batch_norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    encoder = SpeechEncoder(model)
    encoder.freeze_except(2)
    torch.manual_seed(0)
    waveforms, lengths = torch.randn(2, 4000) * 0.1, torch.tensor([4000, 2500])
    evaluated = encoder(waveforms, lengths).frames
    torch.testing.assert_close(encoder.train()(waveforms, lengths).frames, evaluated, rtol=0, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_the_exact_group_norm_makes_no_copy_of_a_frozen_front_end():
    encoder = SpeechEncoder(make_model())
    norm = encoder.model.feature_extractor.conv_layers[0].layer_norm
    seen = []
    norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    waveforms, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([9000, 4000])
    with_gradients = encoder(waveforms, lengths).frames  # the front-end is trained: its input must stay
    before, after = seen.pop()
    assert before.data_ptr() != after.data_ptr()
    encoder.freeze_except(2)
    assert torch.equal(encoder(waveforms, lengths).frames, with_gradients)
    before, after = seen.pop()
    assert before.data_ptr() == after.data_ptr()
    with torch.autocast("cpu", torch.bfloat16):
        encoder(waveforms, lengths)
    before, after = seen.pop()
    assert after.shape == before.shape
    assert after[1, :, (4000 - 10) // 5 + 1 :].abs().max() == 0


def test_two_encoders_around_one_model_are_both_exact():
    model = make_model()
    first, second = SpeechEncoder(model), SpeechEncoder(model)
    waveforms, lengths = torch.randn(2, 4000) * 0.1, torch.tensor([4000, 2500])
    with torch.no_grad():
        alone = first(waveforms[1:, :2500], lengths[1:]).frames[0]
        for encoder in (first, second):
            torch.testing.assert_close(encoder(waveforms, lengths).frames[1, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_a_copy_has_its_own_exact_layers():
    """SCORE's twin is a deep copy: its hooks must read its own padding."""
    for kind, norm in (("hubert", "batch"), ("data2vec-audio", "layer")):
        encoder = SpeechEncoder(make_model(kind, norm))
        twin = copy.deepcopy(encoder)
        waveforms, lengths = torch.randn(2, 4000) * 0.1, torch.tensor([4000, 2500])
        with torch.no_grad():
            expected = encoder(waveforms, lengths).frames
            encoder._padded_frames = torch.ones(1, 1, dtype=torch.bool)  # would clear everything in a hook of its own
            torch.testing.assert_close(twin(waveforms, lengths).frames, expected, rtol=0, atol=0)


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


def old_names(state):
    """As before PyTorch's parametrizations."""
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


@pytest.mark.parametrize("old_file", [False, True])
@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2", "data2vec-audio"])
def test_old_names_half_precision_prefixes_and_heads_load(kind, old_file, tmp_path):
    model = make_model(kind, "layer" if kind == "data2vec-audio" else "group")
    prefix = f"{model.base_model_prefix}."
    state = {f"{prefix}{name}": tensor.half() for name, tensor in old_names(model.state_dict()).items()}
    state |= {"lm_head.weight": torch.zeros(4, 32), "lm_head.bias": torch.zeros(4)}
    folder = write_checkpoint(tmp_path / "ctc", model, state, old_file)
    loaded = load_encoder(folder).model.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor.half().float(), rtol=0, atol=0)


def test_first_layers_alone_and_no_mask_vector_load(tmp_path):
    model = make_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "masked_spec_embed"}
    folder = write_checkpoint(tmp_path / "cut", model, state, num_hidden_layers=2)
    assert load_encoder(folder).num_layers == 2


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if "layers.2." not in n or "conv" in n}, {},
         r"16 weights that its config.json describes are missing: encoder.layers.2.attention.k_proj.bias, .* 11 more"),
        (lambda s: {f"module.{n}": t for n, t in s.items()}, {},
         r"66 weights .* missing; its names begin with 'module.', which has to go: encoder"),
        (lambda s: {f"wavlm.{n}": t for n, t in s.items()}, {}, "names begin with 'wavlm.'"),
        (lambda s: s, {"intermediate_size": 16}, r"other shapes .*: encoder.layers.0.*\(64,\) instead of \(16,\)"),
        (lambda s: s | {"encoder.layers.0.attention.gru_rel_pos_const": torch.ones(4)}, {},
         "describes another model: encoder.layers.0.attention.gru_rel_pos_const"),
        (lambda s: s | {"masked_spec_embed": torch.full((32,), float("nan"))}, {},
         "weights are not finite: masked_spec_embed"),
        (lambda s: s | {"encoder.layer_norm.bias": torch.full((32,), float("inf"))}, {},
         "weights are not finite: encoder.layer_norm.bias"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(change, config, message, tmp_path, caplog):
    model = make_model()
    folder = write_checkpoint(tmp_path / "base", model, change(model.state_dict()), **config)
    with pytest.raises(LaserError, match=message):
        load_encoder(folder)
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"),
        ("config.json", b'{"model_type": "hub'),
        ("config.json", b"[1]"),
        ("config.json", b'{"model_type": "hubert", "hidden_size": "big"}'),
        ("config.json", b'{"model_type": "hubert", "conv_dim": [8]}'),
        ("preprocessor_config.json", b"{"),
        ("preprocessor_config.json", b"[1]"),
    ],
)
def test_damaged_files_are_errors_of_one_line(name, content, tmp_path):
    model = make_model()
    folder = write_checkpoint(tmp_path / "base", model, model.state_dict())
    (folder / name).write_bytes(content)
    with pytest.raises(
        LaserError, match=r"cannot load the encoder .*base|preprocessor_config.json is damaged"
    ) as error:
        load_encoder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "data2vec-audio"])
def test_adapters_are_refused(kind, tmp_path):
    model = make_model(kind, "layer" if kind == "data2vec-audio" else "group", add_adapter=True, output_hidden_size=32)
    with pytest.raises(LaserError, match="add_adapter"):
        SpeechEncoder(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(LaserError, match=r"has an adapter behind its layers \(add_adapter\)"):
        load_encoder(tmp_path)


def test_another_sampling_rate_is_refused(tmp_path):
    model = make_model()
    folder = write_checkpoint(tmp_path, model, model.state_dict())
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(LaserError, match="hears 8000 Hz; supported are encoders for 16000 Hz"):
        load_encoder(folder)


def test_code_of_a_repository_never_runs(tmp_path, monkeypatch):
    """Neither with a known type nor with one of its own, whatever is answered; exports do not name it either."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "own.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass C: pass\nclass M: pass\n")
    monkeypatch.chdir(tmp_path)
    model = make_model()
    auto_map = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoFeatureExtractor": "own.C"}
    folder = write_checkpoint(tmp_path, model, model.state_dict(), auto_map=auto_map)
    assert not hasattr(load_encoder(folder).base_config, "auto_map")
    write_checkpoint(tmp_path, model, model.state_dict(), auto_map=auto_map, model_type="my-hubert")
    with pytest.raises(LaserError, match="is a 'my-hubert' model; supported are hubert"):
        load_encoder(folder)
    assert not (tmp_path / "ran").exists()


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
