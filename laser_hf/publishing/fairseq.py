"""HuBERT and WavLM of S3PRL and fairseq in transformers' terms: layouts of checkpoints, names of weights, a config."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, PretrainedConfig, WavLMConfig, WavLMModel

from ..errors import LaserError
from .export import refuse_names

CLASSES = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}
"""Config and model classes by the names of the models that can be converted."""
_LAYOUTS = {"Upstream": "S3PRL checkpoint", "model_weight": "S3PRL's converted fairseq", "model": "fairseq or WavLM"}
_FIRST = "feature_extractor.conv_layers.0.0.weight"
# Heads of pre-training, which an encoder does not need: reported, not kept.
_DROPPED = re.compile(r"label_embs_concat|final_proj\.(weight|bias)")
_RENAMED = [
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2(\.1)?\.", r"\1.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
]


def find_weights(content: Mapping[str, Any], name: str) -> tuple[str, dict, dict, dict]:
    """Layout, weights without prefix, and configs of model and task; `LaserError` if `name` is no such encoder."""
    if {"Downstream", "Optimizer"} & content.keys() and "Upstream" not in content:
        raise LaserError(f"{name} is an S3PRL checkpoint without 'Upstream': its encoder was not trained (no -f)")
    key = next((key for key in _LAYOUTS if isinstance(content.get(key), Mapping)), None)
    state = content[key] if key else content
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    anchor = next((k for k in tensors if k.endswith(_FIRST)), None)
    if anchor is None:
        entries = ", ".join(map(str, list(state)[:8])) or "none"
        raise LaserError(f"{name} has no weights of a fairseq-style HuBERT or WavLM ({_FIRST}); its entries: {entries}")
    prefix, beside = anchor.removesuffix(_FIRST), f"{name} has weights beside the encoder"
    refuse_names([k for k in tensors if not k.startswith(prefix)], f"{beside} ({prefix}…)")
    cfg = content.get("cfg") if isinstance(content.get("cfg"), Mapping) else {}
    if isinstance(content.get("args"), argparse.Namespace):  # fairseq before 2021
        cfg = vars(content["args"])
    model_cfg = content.get("model_cfg") or cfg.get("model") or cfg  # the WavLM release has it without a group
    task_cfg = content.get("task_cfg") or cfg.get("task") or {}
    weights = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return _LAYOUTS.get(key, "bare state dict"), weights, dict(model_cfg), dict(task_cfg)


def rename(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights under transformers' names, those that follow no rule as they are, and names of heads left out."""
    converted, dropped = {}, sorted(name for name in weights if _DROPPED.fullmatch(name))
    for name in (name for name in weights if name not in dropped):
        new = name
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        if new in converted:
            raise LaserError(f"two weights would both be {new}")
        converted[new] = weights[name]
    return converted, dropped


def infer_config(
    weights: Mapping[str, torch.Tensor], model_type: str, model_cfg: Mapping[str, Any], heads: int | None, notes: list
) -> PretrainedConfig:
    """Config of converted weights: sizes from their shapes (`LaserError` without), the rest from fairseq's `model_cfg`.

    Dropouts, LayerDrop and masking that it does not state are those that HuBERT base and WavLM base were pre-trained
    with. `heads` is the number of attention heads where it cannot be found. Assumptions are appended to `notes`.
    """
    try:
        count = sum(bool(re.fullmatch(r"feature_extractor\.conv_layers\.\d+\.conv\.weight", name)) for name in weights)
        convolutions = [weights[f"feature_extractor.conv_layers.{i}.conv.weight"].shape for i in range(count)]
        hidden = weights["feature_projection.projection.weight"].shape[0]
        intermediate = weights["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0]
        position = weights["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape
        relative = weights["encoder.layers.0.attention.rel_attn_embed.weight"] if model_type == "wavlm" else None
    except KeyError as error:
        raise LaserError(f"no {model_type} encoder: it lacks {error.args[0]} (transformers' name)") from None
    norm = "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in weights else "group"
    stable = model_cfg.get("layer_norm_first")
    if stable is None:
        stable = norm == "layer"
        notes.append(f"layer norm before each block: {'yes' if stable else 'no'}, as usual with this front-end")
    extra = {}
    if relative is not None:
        if not isinstance(distance := model_cfg.get("max_distance"), int):
            unknown = "the checkpoint does not state WavLM's max_distance, which decides its features"
            raise LaserError(f"{unknown}; give --base, a model of its kind whose config.json has max_bucket_distance")
        heads = relative.shape[1]
        extra = {"num_buckets": relative.shape[0], "max_bucket_distance": distance}
    heads = heads or model_cfg.get("encoder_attention_heads")
    if heads is None and hidden in (768, 1024):
        heads = hidden // 64
        notes.append(f"{heads} attention heads, 64 dimensions each as in all released models")
    if heads is None:
        raise LaserError("the weights do not tell the number of attention heads; give --num_attention_heads")
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise LaserError(f"{heads} attention heads do not divide the {hidden} dimensions; give --num_attention_heads")
    kernels = [shape[2] for shape in convolutions]
    strides = _strides(kernels, model_cfg)
    try:
        return CLASSES[model_type][0](
            hidden_size=hidden,
            num_hidden_layers=1 + max(int(m[1]) for n in weights if (m := re.match(r"encoder\.layers\.(\d+)\.", n))),
            num_attention_heads=heads,
            intermediate_size=intermediate,
            conv_dim=[shape[0] for shape in convolutions],
            conv_kernel=kernels,
            conv_stride=strides,
            conv_bias="feature_extractor.conv_layers.0.conv.bias" in weights,
            feat_extract_norm=norm,
            do_stable_layer_norm=stable,
            num_conv_pos_embeddings=position[2],
            num_conv_pos_embedding_groups=position[0] // position[1],
            hidden_dropout=model_cfg.get("dropout", 0.1),
            attention_dropout=model_cfg.get("attention_dropout", 0.1),
            activation_dropout=model_cfg.get("activation_dropout", 0.0),
            feat_proj_dropout=model_cfg.get("dropout_input", 0.1),
            layerdrop=model_cfg.get("encoder_layerdrop", 0.05),
            final_dropout=0.0,
            **extra,
        )
    except (ValueError, TypeError) as error:
        raise LaserError(f"the weights make no {model_type} config: {error}") from error


def _strides(kernels: list[int], model_cfg: Mapping[str, Any]) -> list[int]:
    """Strides of the front-end: fairseq writes its layers as "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"."""
    if text := str(model_cfg.get("conv_feature_layers") or ""):
        layers = []
        for part, times in re.findall(r"\[([^\]]*)\]\s*(?:\*\s*(\d+))?", text):
            layers += re.findall(r"\(\s*\d+\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", part) * int(times or 1)
        if [int(kernel) for kernel, _ in layers] == kernels:
            return [int(stride) for _, stride in layers]
        raise LaserError(f"conv_feature_layers {text!r} does not fit the kernels of the weights, {kernels}")
    if kernels == [10, 3, 3, 3, 3, 2, 2]:
        return [5, 2, 2, 2, 2, 2, 2]
    raise LaserError(f"the strides of a front-end with kernels {kernels} are not known; give --base")
