"""fairseq's HuBERT and WavLM in transformers' terms: names of the weights, and a config inferred from them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, PretrainedConfig, WavLMConfig, WavLMModel

from .errors import ConversionError

CLASSES = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}
"""Config and model classes by the names of the models that can be converted."""
# Heads of pre-training, which an encoder does not need: reported, not kept.
_DROPPED = re.compile(r"label_embs_concat|final_proj\.(weight|bias)")
_CONVOLUTION = re.compile(r"feature_extractor\.conv_layers\.(\d+)\.(0|2(?:\.1)?)\.(weight|bias)")
_RENAMED = [
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


def rename(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights under transformers' names, and the names of the heads that are left out.

    Names that follow no rule stay as they are, so that they show up as unexpected.
    """
    converted, dropped = {}, []
    for name, tensor in weights.items():
        if _DROPPED.fullmatch(name):
            dropped.append(name)
            continue
        match = _CONVOLUTION.fullmatch(name)
        if match:
            kind = "conv" if match[2] == "0" else "layer_norm"
            new = f"feature_extractor.conv_layers.{match[1]}.{kind}.{match[3]}"
        else:
            new = name
            for pattern, replacement in _RENAMED:
                new = re.sub(pattern, replacement, new)
        if new in converted:
            raise ConversionError(f"two weights would both be {new}")
        converted[new] = tensor
    return converted, sorted(dropped)


def infer_config(
    weights: Mapping[str, torch.Tensor],
    model_type: str,
    model_cfg: Mapping[str, Any],
    heads: int | None = None,
    notes: list[str] | None = None,
) -> PretrainedConfig:
    """Config of converted weights: sizes from their shapes, the rest from the checkpoint's own config.

    Dropouts, LayerDrop and masking that the checkpoint does not state are those that HuBERT base and WavLM base were
    pre-trained with.

    Args:
        weights: under transformers' names.
        model_type: "hubert" or "wavlm".
        model_cfg: fairseq's config of the model, possibly empty.
        heads: number of attention heads, where it cannot be found.
        notes: what had to be assumed is appended here.

    Raises:
        ConversionError: weights that lack what the sizes are read from.
    """
    notes = [] if notes is None else notes
    try:
        count = sum(bool(re.fullmatch(r"feature_extractor\.conv_layers\.\d+\.conv\.weight", name)) for name in weights)
        convolutions = [weights[f"feature_extractor.conv_layers.{i}.conv.weight"].shape for i in range(count)]
        hidden = weights["feature_projection.projection.weight"].shape[0]
        intermediate = weights["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0]
        position = weights["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape
        relative = weights["encoder.layers.0.attention.rel_attn_embed.weight"] if model_type == "wavlm" else None
    except KeyError as error:
        raise ConversionError(f"no {model_type} encoder: it lacks {error.args[0]} (transformers' name)") from None
    layers = 1 + max(int(match[1]) for n in weights if (match := re.match(r"encoder\.layers\.(\d+)\.", n)))
    norm = "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in weights else "group"
    stable = model_cfg.get("layer_norm_first")
    if stable is None:
        stable = norm == "layer"
        notes.append(f"layer norm before each block: {'yes' if stable else 'no'}, as usual with this front-end")
    if relative is not None:
        heads = relative.shape[1]
    elif heads is None and "encoder_attention_heads" in model_cfg:
        heads = model_cfg["encoder_attention_heads"]
    elif heads is None and hidden in (768, 1024):
        heads = hidden // 64
        notes.append(f"{heads} attention heads, 64 dimensions each as in all released models")
    elif heads is None:
        raise ConversionError("the weights do not tell the number of attention heads; give --num_attention_heads")
    kernels = [shape[2] for shape in convolutions]
    config_class = CLASSES[model_type][0]
    extra = {} if relative is None else {"num_buckets": relative.shape[0]}
    if relative is not None and "max_distance" in model_cfg:
        extra["max_bucket_distance"] = model_cfg["max_distance"]
    elif relative is not None:
        notes.append("the checkpoint does not state WavLM's max_distance; 800 as in all released models")
    try:
        return config_class(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            conv_dim=[shape[0] for shape in convolutions],
            conv_kernel=kernels,
            conv_stride=_strides(kernels, model_cfg),
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
            mask_time_prob=0.05,
            apply_spec_augment=True,
            **extra,
        )
    except (ValueError, TypeError) as error:
        raise ConversionError(f"the weights make no {model_type} config: {error}") from error


def _strides(kernels: list[int], model_cfg: Mapping[str, Any]) -> list[int]:
    """Strides of the front-end: fairseq writes its layers as "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"."""
    text = str(model_cfg.get("conv_feature_layers") or "")
    if text:
        layers = []
        for part in re.findall(r"\[([^\]]*)\]\s*(?:\*\s*(\d+))?", text):
            layers += list(ast.literal_eval(f"[{part[0]}]")) * int(part[1] or 1)
        if [layer[1] for layer in layers] == kernels:
            return [layer[2] for layer in layers]
        raise ConversionError(f"conv_feature_layers {text!r} does not fit the kernels of the weights, {kernels}")
    if kernels == [10, 3, 3, 3, 3, 2, 2]:
        return [5, 2, 2, 2, 2, 2, 2]
    raise ConversionError(f"the strides of a front-end with kernels {kernels} are not known; give --base")
