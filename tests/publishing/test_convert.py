"""Checkpoints of other toolkits become folders of transformers with the same weights and the same outputs.

`s3prl_witness.npz` holds the weights of tiny random HuBERT and WavLM models as S3PRL 0.4.18 builds and names them, and
what S3PRL computes with them (torch 2.8.0).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, AutoModel

from laser_hf.__main__ import main as laser_hf
from laser_hf.errors import LaserError
from laser_hf.publishing.convert import convert_checkpoint, main
from laser_hf.publishing.fairseq import rename
from laser_hf.records import read_record, tensors_digest

STRIDES = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"


def witness(kind: str) -> tuple[dict, dict, torch.Tensor, torch.Tensor]:
    """Weights under S3PRL's names, its config, an input and S3PRL's output."""
    with np.load(Path(__file__).parent / "s3prl_witness.npz") as file:
        start = f"{kind}/weights/"
        weights = {name.removeprefix(start): torch.tensor(file[name]) for name in file.files if name.startswith(start)}
        config = json.loads(str(file[f"{kind}/config"]))
        return weights, config, torch.tensor(file["input"]), torch.tensor(file[f"{kind}/output"])


def states(weights: dict, **more) -> dict:
    """A training checkpoint as S3PRL's runner writes it."""
    return {
        "Optimizer": {
            "state": {0: {"step": 3600, "exp_avg": torch.zeros(2)}},
            "param_groups": [{"betas": (0.9, 0.999)}],
        },
        "Step": 3600,
        "Epoch": 1,
        "Args": argparse.Namespace(upstream="hubert", upstream_trainable=True, seed=1337, config=None),
        "Config": {"runner": {"total_steps": 3600}, "downstream_expert": {"margin": 1.1}},
        "Upstream": {f"model.{name}": tensor for name, tensor in weights.items()},
        "Downstream": {"connector.weight": torch.zeros(2, 2)},
        "Scheduler": {"lr_lambdas": [None], "last_epoch": 3600},
        **more,
    }


def fairseq_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a transformers model under fairseq's names, group norm front-end."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        for new, old in (
            (r"conv_layers.\1.0.", r"conv_layers\.(\d+)\.conv\."),
            (r"conv_layers.\1.2.", r"conv_layers\.(\d+)\.layer_norm\."),
            ("post_extract_proj.", r"feature_projection\.projection\."),
            ("layer_norm.", r"feature_projection\.layer_norm\."),
            ("mask_emb", "masked_spec_embed"),
            ("pos_conv.0.weight_g", r"pos_conv_embed\.conv\.parametrizations\.weight\.original0"),
            ("pos_conv.0.weight_v", r"pos_conv_embed\.conv\.parametrizations\.weight\.original1"),
            ("pos_conv.0.", r"pos_conv_embed\.conv\."),
            (r"layers.\1.self_attn_layer_norm.", r"layers\.(\d+)\.layer_norm\."),
            ("self_attn.grep_linear.", r"attention\.gru_rel_pos_linear\."),
            ("self_attn.grep_a", r"attention\.gru_rel_pos_const"),
            ("self_attn.relative_attention_bias.", r"attention\.rel_attn_embed\."),
            ("self_attn.", r"attention\."),
            ("fc1.", r"feed_forward\.intermediate_dense\."),
            ("fc2.", r"feed_forward\.output_dense\."),
        ):
            changed = re.sub(old, new, name)
            if changed != name:
                name = changed
                break
        renamed[name] = tensor.clone()
    assert len(renamed) == len(model.state_dict())
    return renamed


@pytest.fixture
def base(tmp_path):
    model = make_model("hubert", layerdrop=0.07)
    model.save_pretrained(tmp_path / "base")
    return model, str(tmp_path / "base")


@pytest.mark.parametrize("kind", ["hubert-group", "hubert-layer", "wavlm-group"])
def test_computes_what_s3prl_computes(kind, tmp_path):
    weights, config, wave, expected = witness(kind)
    if kind.startswith("hubert"):
        content = {
            "task_cfg": {"normalize": config["layer_norm_first"]},
            "model_cfg": config,
            "model_weight": weights,
            "dictionaries_symbols": [["a"]],
        }
    else:
        content = {"cfg": config, "model": weights}
    torch.save(content, tmp_path / "model.pt")
    record = convert_checkpoint(tmp_path / "model.pt", tmp_path / "out", model_type=kind.split("-")[0])
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(wave).last_hidden_state, expected, rtol=1e-5, atol=3e-6)
    assert record["weights_sha256"] == tensors_digest(model.state_dict())
    assert (record["recipe"]["config_from"], record["notes"], record["changed_since_base"]) == ("checkpoint", [], None)
    heads = ["final_proj.bias", "final_proj.weight", "label_embs_concat"] if kind.startswith("hubert") else []
    assert record["dropped"] == heads
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.do_normalize, extractor.return_attention_mask) == (kind == "hubert-layer", True)
    assert (model.config.layerdrop, model.config.feat_proj_dropout, model.config.apply_spec_augment) == (
        0.05,
        0.1,
        True,
    )
    # Some by hand, against the whole key map being wrong in the same way twice.
    state = model.state_dict()
    for ours, theirs in {
        "masked_spec_embed": "mask_emb",
        "feature_projection.layer_norm.bias": "layer_norm.bias",
        "encoder.layer_norm.bias": "encoder.layer_norm.bias",
        "encoder.layers.1.layer_norm.bias": "encoder.layers.1.self_attn_layer_norm.bias",
        "encoder.layers.1.final_layer_norm.bias": "encoder.layers.1.final_layer_norm.bias",
        "encoder.layers.0.attention.v_proj.weight": "encoder.layers.0.self_attn.v_proj.weight",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    }.items():
        assert torch.equal(state[ours], weights[theirs]), ours


@pytest.mark.parametrize(
    ("kind", "layout"), [("hubert", "states"), ("wavlm", "states"), ("hubert", "bare"), ("wavlm", "parametrized")]
)
def test_round_trip_is_bit_equal(kind, layout, tmp_path):
    model = make_model(kind, **({"max_bucket_distance": 80} if kind == "wavlm" else {}))
    weights = fairseq_names(model)
    if layout == "parametrized":  # weight norm as newer torch names it
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            weights[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = weights.pop(f"encoder.pos_conv.0.{old}")
    content = states(weights) if layout == "states" else weights
    if kind == "wavlm":  # released checkpoints may state little more than this
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(LaserError, match=r"does not state WavLM's max_distance.* give --base"):
            convert_checkpoint(tmp_path / "c.pt", tmp_path / "out", model_type=kind)
        content = {"cfg": {"max_distance": 80}, **(content if layout == "states" else {"model": content})}
    torch.save(content, tmp_path / "c.pt")
    record = convert_checkpoint(tmp_path / "c.pt", tmp_path / "out", model_type=kind, num_attention_heads=4)
    converted = AutoModel.from_pretrained(tmp_path / "out")
    assert converted.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in converted.state_dict().items())
    for name in ("hidden_size", "num_attention_heads", "intermediate_size", "conv_stride", "num_conv_pos_embeddings",
                 "num_conv_pos_embedding_groups", "feat_extract_norm", "do_stable_layer_norm"):  # fmt: skip
        found, expected = getattr(converted.config, name), getattr(model.config, name)
        assert found == (list(expected) if isinstance(expected, tuple) else expected), name
    if kind == "wavlm":
        assert converted.config.max_bucket_distance == 80
        waveform = torch.randn(1, 4000)
        assert torch.equal(converted(waveform).last_hidden_state, model.eval()(waveform).last_hidden_state)
    assert record["recipe"]["config_from"] == ("checkpoint" if kind == "wavlm" else "shapes of the weights")
    assert any("do_normalize is false" in note for note in record["notes"])


def test_with_a_base_model_by_the_command(base, tmp_path, capsys):
    model, folder = base
    weights = fairseq_names(model)
    weights["encoder.layers.2.fc1.weight"] += 1
    weights["encoder.layer_norm.bias"] += 1
    weights["label_embs_concat"] = torch.zeros(5, 4)
    torch.save(states(weights), tmp_path / "states-3600.ckpt")
    command = [str(tmp_path / "states-3600.ckpt"), "--base", folder, "--output_dir", str(tmp_path / "out")]
    main(command)
    out = capsys.readouterr().out
    assert "left out: label_embs_concat" in out
    assert "Differs from" in out
    assert "encoder.layer_norm.bias, encoder.layers.2" in out
    record = read_record(tmp_path / "out" / "conversion.json")
    assert record["data"]["source"] == "states-3600.ckpt"
    assert record["step"] == 3600
    assert record["changed_since_base"] == ["encoder.layer_norm.bias", "encoder.layers.2"]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(record["data"]["sha256"]) == 64
    converted = AutoModel.from_pretrained(tmp_path / "out")
    assert converted.config.layerdrop == 0.07
    assert torch.equal(
        converted.encoder.layers[2].feed_forward.intermediate_dense.weight, weights["encoder.layers.2.fc1.weight"]
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "conversion.json"}
    # A second time only when asked to.
    with pytest.raises(LaserError, match="already holds a model"):
        main(command)
    laser_hf(["convert", *command, "--overwrite_output_dir"])


def test_every_misfit_is_named(base, tmp_path):
    model, folder = base
    weights = fairseq_names(model)
    del weights["encoder.layers.1.fc2.bias"]
    weights["encoder.layers.0.adapter.weight"] = torch.zeros(2)
    weights["layer_norm.weight"] = torch.zeros(7)
    torch.save(states(weights), tmp_path / "c.ckpt")
    with pytest.raises(LaserError) as caught:
        convert_checkpoint(tmp_path / "c.ckpt", tmp_path / "out", base=folder)
    message = str(caught.value)
    assert 'Missing key(s) in state_dict: "encoder.layers.1.feed_forward.output_dense.bias".' in message
    assert 'Unexpected key(s) in state_dict: "encoder.layers.0.adapter.weight".' in message
    assert "size mismatch for feature_projection.layer_norm.weight" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()
    # WavLM's own weights in what is said to be a HuBERT, and the other way round.
    torch.save(fairseq_names(make_model("wavlm")), tmp_path / "w.pt")
    with pytest.raises(LaserError, match=r"Unexpected key.*gru_rel_pos_const"):
        convert_checkpoint(tmp_path / "w.pt", tmp_path / "out", model_type="hubert", num_attention_heads=4)
    torch.save(fairseq_names(model), tmp_path / "h.pt")
    with pytest.raises(LaserError, match=r"no wavlm encoder: it lacks .*rel_attn_embed"):
        convert_checkpoint(tmp_path / "h.pt", tmp_path / "out", model_type="wavlm")
    with pytest.raises(LaserError, match="--num_attention_heads"):
        convert_checkpoint(tmp_path / "h.pt", tmp_path / "out", model_type="hubert")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("laser-hf-was-run"),))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**states({}), "Args": Evil()}, "loading that could run any code"),
        ({"Optimizer": {}, "Downstream": {}, "Step": 5}, "its encoder was not trained"),
        ({"model": {"decoder.weight": torch.zeros(1)}}, r"no weights of a fairseq-style .*decoder\.weight"),
        ([1, 2], "holds a list"),
        (b"garbage", "damaged"),
        (None, "no such file"),
        ({"model": {"a.feature_extractor.conv_layers.0.0.weight": torch.zeros(1), "b.c": torch.zeros(1)}}, "beside"),
    ],
)  # fmt: skip
def test_files_that_are_refused(content, said, tmp_path):
    path = tmp_path / "states-1.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(LaserError, match=said):
        convert_checkpoint(path, tmp_path / "out", model_type="hubert")
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_cut_off(base, tmp_path):
    torch.save(states(fairseq_names(base[0])), tmp_path / "c.ckpt")
    data = (tmp_path / "c.ckpt").read_bytes()
    (tmp_path / "c.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(LaserError, match="damaged"):
        convert_checkpoint(tmp_path / "c.ckpt", tmp_path / "out", base=base[1])


def test_weights_that_are_not_finite_and_half_precision(base, tmp_path):
    weights = {name: tensor.half() for name, tensor in fairseq_names(base[0]).items()}
    torch.save(weights, tmp_path / "half.pt")
    record = convert_checkpoint(tmp_path / "half.pt", tmp_path / "half", base=base[1])
    assert any("float32" in note for note in record["notes"])
    weights["mask_emb"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(LaserError, match="not finite: masked_spec_embed"):
        convert_checkpoint(tmp_path / "nan.pt", tmp_path / "nan", base=base[1])


def test_strides_come_from_the_checkpoint(tmp_path):
    model = make_model()
    weights, config = fairseq_names(model), {"encoder_attention_heads": 4, "layer_norm_first": False}
    for layers, said in ((STRIDES, None), (STRIDES.replace("10,5", "8,4"), "does not fit the kernels")):
        torch.save({"model_cfg": {**config, "conv_feature_layers": layers}, "model_weight": weights}, tmp_path / "c.pt")
        if said:
            with pytest.raises(LaserError, match=said):
                convert_checkpoint(tmp_path / "c.pt", tmp_path / "no", model_type="hubert")
        else:
            convert_checkpoint(tmp_path / "c.pt", tmp_path / "out", model_type="hubert")


def test_unknown_names_stay_as_they_are():
    converted, dropped = rename({"final_proj.weight": torch.zeros(1), "final_proj_extra": torch.zeros(1)})
    assert list(converted) == ["final_proj_extra"]
    assert dropped == ["final_proj.weight"]


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_heads_that_do_not_divide_the_dimensions(heads, base, tmp_path):
    torch.save(fairseq_names(base[0]), tmp_path / "c.pt")
    with pytest.raises(LaserError, match="--num_attention_heads"):
        convert_checkpoint(tmp_path / "c.pt", tmp_path / "out", model_type="hubert", num_attention_heads=heads)


def test_folders_that_are_read_are_not_written(base, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "laser_config.json").write_text("{}")
    (tmp_path / "link").symlink_to(base[1])
    torch.save(fairseq_names(base[0]), tmp_path / "c.pt")
    for out, said in (
        ("base", "would overwrite .*, which is read"),
        ("link", "would overwrite"),
        ("run", "finished run"),
    ):
        with pytest.raises(LaserError, match=said):
            convert_checkpoint(tmp_path / "c.pt", tmp_path / out, base=base[1], overwrite_output_dir=True)
    save_file(fairseq_names(base[0]), tmp_path / "model.safetensors")
    with pytest.raises(LaserError, match=r"would overwrite .*model\.safetensors"):
        convert_checkpoint(tmp_path / "model.safetensors", tmp_path, model_type="hubert")
    with pytest.raises(LaserError, match="--output_dir is empty"):
        convert_checkpoint(tmp_path / "c.pt", "", base=base[1])
    AutoModel.from_pretrained(base[1])
