"""Weights of an encoder from checkpoints of any kind, and what of them may differ from the base model's."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import LaserError
from ..records import located


class NoBaseModel(LaserError):
    """The base model's weights cannot be had, so that nothing can be compared with them."""


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a safetensors file, or the dictionary that `torch.save` wrote.

    Raises:
        LaserError: no such file, a damaged one, or one with more than weights and plain values in it.
    """
    if not path.is_file():
        raise LaserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # S3PRL stores its command line, a Namespace of plain values, beside the weights. Nothing else is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class|function) '?([\w.]+\.\w+)", str(error))
        raise LaserError(
            f"{path} is damaged, or holds more than weights and plain values{f' ({named[1]})' if named else ''}, and "
            "loading that could run any code. If you trust its origin, save the weights alone with the toolkit that "
            'wrote it: torch.save(torch.load(FILE, weights_only=False)["Upstream"], "upstream.pt") (fairseq files: the '
            'entry "model") and convert upstream.pt'
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise LaserError(f"{path} cannot be read, it is damaged or cut off ({error})") from error
    if not isinstance(content, Mapping):
        raise LaserError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def base_weights(record: Mapping[str, Any], token: str | None = None) -> dict[str, torch.Tensor]:
    """Weights in float32 of the base model that a record names, from its folder or the Hub at the recorded revision.

    Raises:
        NoBaseModel: they cannot be had; the message says why.
    """
    from transformers import AutoModel  # takes seconds, which --help and early refusals need not wait for

    base = record["base_model"]
    name, revision = base["name"], base["revision"]
    if base["local"]:
        name, revision = located(record["recipe"]["model"]["model_name_or_path"]), None
    try:
        model, info = AutoModel.from_pretrained(
            name, revision=revision or "main", token=token, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        said = str(error).strip().splitlines()[0]
        raise NoBaseModel(f"the base model {name} cannot be loaded ({said})") from error
    return {name: tensor for name, tensor in model.state_dict().items() if name not in info["missing_keys"]}


def check_weights(
    weights: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor] | None, trained: Sequence[str] | None
) -> None:
    """Compare the exported weights with the base model's: all that was trained may differ, and something must.

    Args:
        weights: of the export.
        base: of the base model; `None` leaves out the comparison.
        trained: names of the trained parameters, from the record.

    Raises:
        LaserError: a weight that is not finite, missing, unknown to the base model or changed although frozen; or
            nothing has changed.
    """
    if not trained:
        raise LaserError("the record of the run does not say which parameters were trained")
    _refuse([n for n in weights if not torch.isfinite(weights[n]).all()], "the export has weights that are not finite")
    _refuse(sorted({*trained} - {*weights}), "the record names trained parameters that the exported encoder lacks")
    if base is None:
        return
    unknown = sorted({*weights} - {*base} - {*trained} - {"masked_spec_embed"})
    _refuse(unknown, "the exported encoder has weights that the base model lacks")
    changed = {name for name in weights if name in base and not torch.equal(weights[name], base[name])}
    frozen = sorted(changed - {*trained})
    what = "training changed more than the record names, or the base model is another one or another revision"
    _refuse(frozen, f"{len(frozen)} frozen weights differ from the base model's ({what})")
    if not changed:
        raise LaserError("the trained weights are still those of the base model: there is nothing to publish")


def _refuse(names: list[str], reason: str) -> None:
    if names:
        raise LaserError(f"{reason}: {shortened(names)}")


def shortened(names: Sequence[str], most: int = 12) -> str:
    """The first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
