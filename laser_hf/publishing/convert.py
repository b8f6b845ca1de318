"""Checkpoints of S3PRL and fairseq as a folder that plain transformers loads.

Read are `states-*.ckpt` of the released LASER and SCORE code (S3PRL: the fine-tuned encoder under `Upstream`), HuBERT
as S3PRL converts it (`model_weight` with `model_cfg` and `task_cfg`), the WavLM release (`model` with `cfg`), fairseq's
own files as far as they hold plain data, and bare state dicts with these names.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    HubertConfig,
    HubertModel,
    PretrainedConfig,
    PreTrainedModel,
    WavLMConfig,
    WavLMModel,
)
from transformers.utils import cached_file

from ..records import provenance, tensors_digest, write_json
from .export import export_encoder

RECORD_NAME = "conversion.json"
_CLASSES = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}
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


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, and why."""


def add_options(commands: Any) -> None:
    """The options of `convert`."""
    parser = commands.add_parser(
        "convert",
        help="turn a checkpoint of S3PRL or fairseq into a folder that transformers loads",
        description="Turn a checkpoint of the released LASER code (S3PRL, states-*.ckpt, trained with -f) or a "
        "fairseq-style HuBERT or WavLM into a folder that AutoModel and AutoFeatureExtractor load.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="the file; it is loaded without running code in it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", help="model of the same shape (hub id or folder) whose config is taken over")
    source.add_argument("--model_type", choices=sorted(_CLASSES), help="or: infer the config from the weights")
    add("--output_dir", type=Path, required=True, help="folder to write")
    add("--revision", help="branch, tag or commit of --base")
    add("--num_attention_heads", type=int, help="with --model_type hubert, where the checkpoint does not say it")
    add(
        "--do_normalize",
        choices=("true", "false"),
        help="whether the model expects waveforms of zero mean and unit variance (default: what the checkpoint says; "
        "else no for base models and yes for large ones)",
    )
    add("--overwrite_output_dir", action="store_true", help="write over a model that is there")


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    base: str | None = None,
    model_type: str | None = None,
    revision: str | None = None,
    num_attention_heads: int | None = None,
    do_normalize: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json` and `conversion.json`.

    Args:
        checkpoint: file written by `torch.save`.
        output_dir: created if missing.
        base: hub id or folder of a model of the same shape; its config is taken over.
        model_type: "hubert" or "wavlm": infer the config instead. Exactly one of the two must be given.
        revision: of `base`.
        num_attention_heads: where neither the weights nor the checkpoint tell.
        do_normalize: what `preprocessor_config.json` says; `None` to find out.
        overwrite: write over an existing model.

    Returns:
        What `conversion.json` holds.

    Raises:
        ConversionError: no such layout, missing or unexpected weights, other shapes, a file that would run code.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    if (base is None) == (model_type is None):
        raise ConversionError("give either a base model or a model type")
    if (output_dir / "config.json").exists() and not overwrite:
        raise ConversionError(f"{output_dir} already holds a model; choose another folder or --overwrite_output_dir")
    content = _load(checkpoint)
    layout, weights, model_cfg, task_cfg = _find_weights(content, checkpoint.name)
    converted, dropped = rename(weights)
    notes: list[str] = []
    base_model = None
    if base is not None:
        base_model, config = _load_base(base, revision)
    else:
        config = infer_config(converted, model_type, model_cfg, num_attention_heads, notes)
    if do_normalize is None:
        do_normalize = bool(task_cfg.get("normalize", model_cfg.get("normalize", config.feat_extract_norm == "layer")))
        if "normalize" not in {*task_cfg, *model_cfg}:
            notes.append(f"do_normalize is {str(do_normalize).lower()}, as usual with this front-end's normalisation")
    model = base_model.__class__(config) if base_model is not None else _CLASSES[model_type][1](config)
    _check_fit(model.state_dict(), converted, base or f"the inferred {model_type} config")
    changed = None
    if base_model is not None:
        before = base_model.state_dict()
        changed = _summary([name for name in converted if not torch.equal(before[name], converted[name].float())])
    if any(tensor.dtype != torch.float32 for tensor in converted.values()):
        notes.append("weights of lower precision were stored as float32")
    model.load_state_dict({name: tensor.float() for name, tensor in converted.items()})
    try:
        export_encoder(model.eval(), config, output_dir, do_normalize=do_normalize)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    digest = tensors_digest(model.state_dict())
    if tensors_digest(AutoModel.from_pretrained(output_dir).state_dict()) != digest:
        raise ConversionError(f"{output_dir} does not load as it was written")
    record = {
        "source": checkpoint.name,
        "source_sha256": _file_sha256(checkpoint),
        "layout": layout,
        "step": content.get("Step") if isinstance(content.get("Step"), int) else None,
        "base_model": base,
        "base_revision": None if base is None or Path(base).is_dir() else _commit(base, revision),
        "config_from": "base model" if base else "checkpoint" if model_cfg else "shapes of the weights",
        "tensors": len(converted),
        "dropped": dropped,
        "changed_since_base": changed,
        "do_normalize": do_normalize,
        "notes": notes,
        "weights_sha256": digest,
        **provenance(),
    }
    write_json(output_dir / RECORD_NAME, record)
    return record


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        # S3PRL stores its command line, a Namespace of plain values, beside the weights. Nothing else is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class|function) '?([\w.]+\.\w+)", str(error))
        raise ConversionError(
            f"{path} is damaged, or holds more than weights and plain values"
            + (f" ({named[1]})" if named else "")
            + ", and loading that could run any code. If you trust its origin, save the weights alone with the "
            'toolkit that wrote it: torch.save(torch.load(FILE, weights_only=False)["Upstream"], "upstream.pt") '
            '(fairseq files: the entry "model") and convert upstream.pt'
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ConversionError(f"{path} cannot be read; is it damaged or cut off? ({error})") from error
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _find_weights(content: Mapping[str, Any], name: str) -> tuple[str, dict, dict, dict]:
    """Layout, weights without their prefix, and the checkpoint's own configs of model and task."""
    layouts = {"Upstream": "S3PRL checkpoint", "model_weight": "S3PRL's converted fairseq", "model": "fairseq or WavLM"}
    if {"Downstream", "Optimizer"} & content.keys() and "Upstream" not in content:
        raise ConversionError(f"{name} is an S3PRL checkpoint without 'Upstream': its encoder was not trained (no -f)")
    key = next((key for key in layouts if isinstance(content.get(key), Mapping)), None)
    state = content[key] if key else content
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    anchor = next((k for k in tensors if k.endswith("feature_extractor.conv_layers.0.0.weight")), None)
    if anchor is None:
        raise ConversionError(
            f"{name} has no weights of a fairseq-style HuBERT or WavLM (feature_extractor.conv_layers.0.0.weight); its "
            f"entries are {', '.join(map(str, list(state)[:8])) or 'none'}"
        )
    prefix = anchor.removesuffix("feature_extractor.conv_layers.0.0.weight")
    stray = [k for k in tensors if not k.startswith(prefix)]
    if stray:
        raise ConversionError(f"{name} has weights beside the encoder ({prefix}…): {_shortened(stray)}")
    cfg = content.get("cfg") if isinstance(content.get("cfg"), Mapping) else {}
    if isinstance(content.get("args"), argparse.Namespace):  # fairseq before 2021
        cfg = vars(content["args"])
    model_cfg = content.get("model_cfg") or cfg.get("model") or ("encoder_layers" in cfg and cfg) or {}
    task_cfg = content.get("task_cfg") or cfg.get("task") or {}
    weights = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return layouts.get(key, "bare state dict"), weights, dict(model_cfg), dict(task_cfg)


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
    config_class = _CLASSES[model_type][0]
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


def _load_base(base: str, revision: str | None) -> tuple[PreTrainedModel, PretrainedConfig]:
    try:
        config = AutoConfig.from_pretrained(base, revision=revision)
        model = AutoModel.from_pretrained(base, revision=revision, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConversionError(f"--base {base} cannot be loaded: {str(error).splitlines()[0]}") from error
    if config.model_type not in _CLASSES:
        raise ConversionError(f"--base {base} is a {config.model_type!r} model; expected hubert or wavlm")
    return model, config


def _commit(base: str, revision: str | None) -> str:
    # The cache keeps a file of the Hub under its commit.
    return Path(cached_file(base, "config.json", revision=revision)).parent.name


def _check_fit(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], what: str) -> None:
    problems = []
    for title, names in (
        ("missing", sorted(expected.keys() - found.keys())),
        ("unexpected", sorted(found.keys() - expected.keys())),
    ):
        if names:
            problems.append(f"{title}: {_shortened(names)}")
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if wrong:
        problems.append(f"other shapes: {_shortened(wrong)}")
    if problems:
        raise ConversionError(f"the checkpoint does not fit {what} (transformers' names); " + "; ".join(problems))


def _shortened(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _summary(names: list[str]) -> list[str]:
    """Parameters by module: `encoder.layers.10` instead of its sixteen tensors."""
    return sorted({re.sub(r"^(encoder\.layers\.\d+)\..*", r"\1", name) for name in names}, key=_numbered)


def _numbered(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
