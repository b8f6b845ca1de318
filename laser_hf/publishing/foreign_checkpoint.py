"""Checkpoints of other toolkits, read without running code in them, and where their layouts keep the encoder."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import ConversionError, shortened


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The dictionary that `torch.save` wrote.

    Raises:
        ConversionError: no such file, a damaged one, or one with more than weights and plain values in it.
    """
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


def find_weights(content: Mapping[str, Any], name: str) -> tuple[str, dict, dict, dict]:
    """Layout, weights without their prefix, and the checkpoint's own configs of model and task.

    Args:
        content: of the checkpoint.
        name: of its file, for messages.

    Raises:
        ConversionError: no fairseq-style encoder, or weights beside it.
    """
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
        raise ConversionError(f"{name} has weights beside the encoder ({prefix}…): {shortened(stray)}")
    cfg = content.get("cfg") if isinstance(content.get("cfg"), Mapping) else {}
    if isinstance(content.get("args"), argparse.Namespace):  # fairseq before 2021
        cfg = vars(content["args"])
    model_cfg = content.get("model_cfg") or cfg.get("model") or ("encoder_layers" in cfg and cfg) or {}
    task_cfg = content.get("task_cfg") or cfg.get("task") or {}
    weights = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return layouts.get(key, "bare state dict"), weights, dict(model_cfg), dict(task_cfg)
