"""The command `laser-hf convert`: checkpoints of S3PRL and fairseq become a folder that plain transformers loads.

Read are `states-*.ckpt` of the released LASER and SCORE code (S3PRL: the fine-tuned encoder under `Upstream`), HuBERT
as S3PRL converts it (`model_weight` with `model_cfg` and `task_cfg`), the WavLM release (`model` with `cfg`), fairseq's
own files as far as they hold plain data, and bare state dicts with these names.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from .. import cli
from ..encoders import load_pretrained
from ..errors import LaserError
from ..records import TRAINING_RECORD, new_record, tensors_digest, write_json
from .export import EXPORTED, RECORDS, export_encoder, load_checkpoint, sample_features
from .fairseq import CLASSES, find_weights, infer_config, rename


def main(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint and say what was done; `LaserError` as `convert_checkpoint`."""
    parser = argparse.ArgumentParser(
        prog="laser-hf convert",
        formatter_class=cli.HelpFormatter,
        description="Turn a checkpoint of the released LASER code (S3PRL, states-*.ckpt, trained with -f) or a "
        "fairseq-style HuBERT or WavLM into a folder that AutoModel and AutoFeatureExtractor load.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="the file; it is loaded without running code in it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", help="model of the same shape (hub id or folder) whose config is taken over")
    source.add_argument("--model_type", choices=sorted(CLASSES), help="or: infer the config from the weights")
    add("--output_dir", required=True, help="folder to write")
    add("--revision", help="branch, tag or commit of --base")
    add("--num_attention_heads", type=int, help="with --model_type hubert, if the checkpoint does not say it")
    normalise = "waveforms of zero mean and unit variance (default: as the checkpoint says, else for large models only)"
    add("--do_normalize", choices=("true", "false"), help=normalise)
    add("--overwrite_output_dir", action="store_true", help="write over a model that is there")
    options = vars(parser.parse_args(argv))
    options["do_normalize"] = {"true": True, "false": False}.get(options["do_normalize"])
    record = convert_checkpoint(**options)
    left_out = ", ".join(record["dropped"]) or "nothing"
    print(f"{record['layout']}: {record['tensors']} tensors converted, left out: {left_out}")
    for note in record["notes"]:
        print(f"Note: {note}")
    if record["changed_since_base"] is not None:
        print(f"Differs from {options['base']} in: {', '.join(record['changed_since_base']) or 'nothing'}")
    print(f'AutoModel.from_pretrained("{options["output_dir"]}") loads it.')


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    base: str | None = None,
    model_type: str | None = None,
    revision: str | None = None,
    num_attention_heads: int | None = None,
    do_normalize: bool | None = None,
    overwrite_output_dir: bool = False,
) -> dict[str, Any]:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json` and `conversion.json`; returns the last.

    The arguments are the options of the command; exactly one of `base` and `model_type` must be given. `LaserError` for
    an unknown layout, missing or unexpected weights, other shapes, or a file that would run code.
    """
    if not str(output_dir):
        raise LaserError("--output_dir is empty; give the folder to write")
    started, checkpoint, output_dir = time.perf_counter(), Path(checkpoint), Path(output_dir)
    if (base is None) == (model_type is None):
        raise LaserError("give either a base model or a model type")
    inputs = [checkpoint, *(Path(base).iterdir() if base and Path(base).is_dir() else ())]
    written = {(output_dir / name).resolve() for name in (*EXPORTED, RECORDS[1])}
    if overwritten := [path for path in inputs if path.resolve() in written]:
        read = f"{overwritten[0]}, which is read; choose another one"
        raise LaserError(f"--output_dir {output_dir} would overwrite {read}")
    if (output_dir / TRAINING_RECORD).exists():
        raise LaserError(f"{output_dir} holds a finished run of laser-hf train; choose another --output_dir")
    if (output_dir / "config.json").exists() and not overwrite_output_dir:
        raise LaserError(f"{output_dir} already holds a model; choose another folder or --overwrite_output_dir")
    content = load_checkpoint(checkpoint)
    layout, weights, model_cfg, task_cfg = find_weights(content, checkpoint.name)
    converted, dropped = rename(weights)
    changed, base_digest, notes = None, None, []
    if base is not None:
        model, _ = load_pretrained(base, revision)
        if model.config.model_type not in CLASSES:
            raise LaserError(f"--base {base} is a {model.config.model_type!r} model; expected hubert or wavlm")
        before, base_digest = model.state_dict(), tensors_digest(model.state_dict())
        names = [n for n, tensor in converted.items() if n in before and not torch.equal(before[n], tensor.float())]
        # `encoder.layers.10` instead of its sixteen tensors, in the order of numbers.
        changed = {re.sub(r"^(encoder\.layers\.\d+)\..*", r"\1", name) for name in names}
        changed = sorted(changed, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    else:
        model = CLASSES[model_type][1](infer_config(converted, model_type, model_cfg, num_attention_heads, notes))
    stated = {**model_cfg, **task_cfg}.get("normalize")
    if do_normalize is None:
        do_normalize = model.config.feat_extract_norm == "layer" if stated is None else bool(stated)
        if stated is None:
            notes.append(f"do_normalize is {str(do_normalize).lower()}, as usual with this front-end's normalisation")
    if any(tensor.dtype != torch.float32 for tensor in converted.values()):
        notes.append("weights of lower precision were stored as float32")
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in converted.items()})
    except RuntimeError as error:  # it lists missing and unexpected names and other shapes
        said = textwrap.shorten(str(error).partition(":")[2], 1000, placeholder=" …")
        fits = f"{base or 'the inferred config'} (transformers' names)"
        raise LaserError(f"the checkpoint does not fit {fits}: {said}") from None
    export_encoder(model.eval(), model.config, output_dir, do_normalize=do_normalize)
    digest = tensors_digest(model.state_dict())
    if tensors_digest(load_pretrained(str(output_dir))[0].state_dict()) != digest:
        raise LaserError(f"{output_dir} does not load as it was written")
    hub = base is not None and not Path(base).is_dir()
    # The cache keeps a file of the Hub below its commit.
    commit = Path(cached_file(base, "config.json", revision=revision)).parent.name if hub else None
    about = {"name": base if hub else Path(base or checkpoint).name, "local": not hub, "revision": commit}
    about |= {"model_type": model.config.model_type, "parameters": sum(p.numel() for p in model.parameters())}
    config_from = "base model" if base else "checkpoint" if model_cfg else "shapes of the weights"
    recipe = {"do_normalize": do_normalize, "config_from": config_from, "model": {"model_name_or_path": base}}
    record = new_record(
        "conversion",
        recipe={**recipe, "content": {"model_name_or_path": base_digest}},
        data={"source": checkpoint.name, "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()},
        seed=None,
        wall_seconds=time.perf_counter() - started,
        layout=layout,
        step=content.get("Step") if isinstance(content.get("Step"), int) else None,
        base_model=about,
        sample_features=sample_features(model, do_normalize),
        tensors=len(converted),
        dropped=dropped,
        changed_since_base=changed,
        notes=notes,
        weights_sha256=digest,
    )
    write_json(output_dir / RECORDS[1], record)
    return record
