"""Checkpoints of S3PRL and fairseq as a folder that plain transformers loads.

Read are `states-*.ckpt` of the released LASER and SCORE code (S3PRL: the fine-tuned encoder under `Upstream`), HuBERT
as S3PRL converts it (`model_weight` with `model_cfg` and `task_cfg`), the WavLM release (`model` with `cfg`), fairseq's
own files as far as they hold plain data, and bare state dicts with these names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from ..records import provenance, tensors_digest, write_json
from .errors import ConversionError, shortened
from .export import export_encoder
from .fairseq import CLASSES, infer_config, rename
from .foreign_checkpoint import find_weights, load_checkpoint

RECORD_NAME = "conversion.json"


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
    source.add_argument("--model_type", choices=sorted(CLASSES), help="or: infer the config from the weights")
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
    content = load_checkpoint(checkpoint)
    layout, weights, model_cfg, task_cfg = find_weights(content, checkpoint.name)
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
    model = base_model.__class__(config) if base_model is not None else CLASSES[model_type][1](config)
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


def _load_base(base: str, revision: str | None) -> tuple[PreTrainedModel, PretrainedConfig]:
    try:
        config = AutoConfig.from_pretrained(base, revision=revision)
        model = AutoModel.from_pretrained(base, revision=revision, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConversionError(f"--base {base} cannot be loaded: {str(error).splitlines()[0]}") from error
    if config.model_type not in CLASSES:
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
            problems.append(f"{title}: {shortened(names)}")
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if wrong:
        problems.append(f"other shapes: {shortened(wrong)}")
    if problems:
        raise ConversionError(f"the checkpoint does not fit {what} (transformers' names); " + "; ".join(problems))


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
