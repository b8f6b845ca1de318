"""The exported weights against those of the base model: only what the record names as trained may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from safetensors import SafetensorError, safe_open

from ..records import located, tensors_digest
from .errors import PushError

_FILES = ("model.safetensors", "pytorch_model.bin")
# Older checkpoints name the two parts of a weight-normalised convolution so.
_OLD_NAMES = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
# Transformers makes it anew where a checkpoint lacks it.
_OPTIONAL = {"masked_spec_embed"}


class BaseModelError(PushError):
    """The base model's weights cannot be had, so that nothing can be compared with them."""


class Weights(Mapping[str, torch.Tensor]):
    """Tensors of a checkpoint file by their names in a bare encoder, read one at a time, in float32."""

    def __init__(self, source: str, readers: Mapping[str, Callable[[], torch.Tensor]], model_type: str):
        self.source = source
        prefix = f"{model_type.replace('-', '_')}."
        self._readers = {_canonical(name.removeprefix(prefix)): read for name, read in readers.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._readers[name]()
        return tensor.float() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _canonical(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def open_weights(path: Path, model_type: str) -> Weights:
    """Weights of a `model.safetensors` or `pytorch_model.bin`, with or without the prefix of a model with a head.

    Raises:
        PushError: a file that cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            opened = safe_open(path, framework="pt")
            readers = {name: (lambda n=name: opened.get_tensor(n)) for name in opened.keys()}  # noqa: SIM118
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            readers = {name: (lambda t=tensor: t) for name, tensor in state.items()}
    except SafetensorError as error:
        raise PushError(f"{path} is damaged: {error}") from error
    except Exception as error:  # whatever a foreign file makes torch raise
        raise PushError(f"{path} cannot be read: {error}") from error
    return Weights(str(path), readers, model_type)


def open_base(record: Mapping[str, Any], token: str | None = None) -> Weights:
    """Weights of the base model that a record names: of its folder, or downloaded at the recorded revision.

    Raises:
        BaseModelError: they are not to be had; the message says why.
    """
    base = record["base_model"]
    if base["local"]:
        folder = Path(located(record["recipe"]["model"]["model_name_or_path"]))
        path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
        if path is None:
            raise BaseModelError(f"the base model's folder {folder} is not here, or holds no weights")
    else:
        path = _downloaded(base, token)
    try:
        return open_weights(path, base["model_type"])
    except PushError as error:
        raise BaseModelError(str(error)) from error


def _downloaded(base: Mapping[str, Any], token: str | None) -> Path:
    for name in _FILES:
        try:
            return Path(hf_hub_download(base["name"], name, revision=base["revision"], token=token))
        except EntryNotFoundError as error:
            # Also what an offline client says of a file that is not in its cache.
            reason = error
        except (HTTPError, OSError, ValueError) as error:
            reason = error
            break
    raise BaseModelError(
        f"the base model {base['name']} cannot be downloaded ({str(reason).strip().splitlines()[0]})"
    ) from reason


def digest(weights: Weights, names: Mapping[str, Any] | None = None) -> str:
    """SHA-256 as evaluation records carry it: of the encoder's tensors in float32, as it is loaded for a task.

    Args:
        weights: of the exported encoder or of its base model.
        names: only these, when the file holds more than the encoder.
    """
    if names is None:
        return tensors_digest(weights)
    return tensors_digest({name: weights[name] for name in names if name in weights})


def check_finite(weights: Weights) -> None:
    """Raise `PushError` where a weight is NaN or infinite."""
    broken = [name for name in weights if not torch.isfinite(weights[name]).all()]
    if broken:
        raise PushError(f"{Path(weights.source).name} has weights that are not finite: {_some(broken)}")


def check_trained(weights: Weights, record: Mapping[str, Any]) -> None:
    """Raise `PushError` unless the record names what was trained, and all of it is in the export."""
    trained = record.get("trained_parameters")
    if not trained:
        raise PushError("the record of the run does not say which parameters were trained")
    lost = sorted(set(trained) - set(weights))
    if lost:
        raise PushError(f"the record names trained parameters that the exported encoder lacks: {_some(lost)}")


def check_against_base(weights: Weights, base: Weights, record: Mapping[str, Any]) -> None:
    """Raise `PushError` where frozen weights differ from the base model's, or where the trained ones do not."""
    trained = set(record["trained_parameters"])
    unknown = sorted(set(weights) - set(base) - trained - _OPTIONAL)
    if unknown:
        raise PushError(f"the exported encoder has weights that the base model ({base.source}) lacks: {_some(unknown)}")
    changed = {name for name in weights if name in base and not torch.equal(weights[name], base[name])}
    thawed = sorted(changed - trained)
    if thawed:
        raise PushError(
            f"{len(thawed)} frozen weights differ from the base model's ({base.source}): {_some(thawed)}. The record "
            "names only what was trained; this is another base model or revision, or training changed more than it says"
        )
    if not changed:
        raise PushError(
            f"the trained weights are still those of the base model ({base.source}): there is nothing to publish"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
