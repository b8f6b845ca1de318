"""Load an encoder from the Hub or a folder, and say what is wrong when that fails."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from ..errors import LaserError
from .encoder import SAMPLE_RATE, SpeechEncoder, check_supported

logger = logging.getLogger(__name__)

TRAINING_CONFIG = {
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.1,
}
"""What the reference recipe trains with (S3PRL in train mode), whatever the checkpoint's config says."""


def load_encoder(
    name_or_path: str,
    revision: str | None = None,
    token: str | None = None,
    training_config: dict | None = None,
    do_normalize: bool | None = False,
) -> SpeechEncoder:
    """Load an encoder by Hub id or folder, in float32 and evaluation mode.

    Args:
        name_or_path: Hub id or folder; a CTC or classification checkpoint of the same family gives its encoder.
        revision: branch, tag or commit on the Hub.
        token: Hub token; by default the usual places.
        training_config: config values to set before the model is built, e.g. `TRAINING_CONFIG`; the originals stay in
            `SpeechEncoder.base_config`.
        do_normalize: as in `SpeechEncoder`, `None` for what the checkpoint's preprocessor says; a warning is logged if
            it asks for something else.

    Raises:
        LaserError: as `load_pretrained`.
    """
    name_or_path = str(name_or_path)
    model, base_config = load_pretrained(name_or_path, revision, token, training_config)
    settings = preprocessor_settings(name_or_path, revision, token)
    if (rate := settings.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise LaserError(f"the encoder {name_or_path!r} hears {rate} Hz; supported are encoders for {SAMPLE_RATE} Hz")
    if do_normalize is None:
        do_normalize = bool(settings.get("do_normalize", False))
    if settings.get("do_normalize", False) != do_normalize:
        asks = f"{name_or_path} asks for do_normalize={not do_normalize} in its preprocessor_config.json"
        logger.warning("%s; it runs here with %s.", asks, do_normalize)
    return SpeechEncoder(model, base_config, do_normalize, _commit(name_or_path, revision, token)).eval()


def load_pretrained(
    name: str, revision: str | None = None, token: str | None = None, changes: dict | None = None
) -> tuple[PreTrainedModel, PretrainedConfig]:
    """A bare encoder in float32 with `changes` in its config, and its own config. No code of a repository is run.

    Raises:
        LaserError: not found, unreachable, damaged, or of another kind; or weights that are missing, do not fit
            `config.json` or are not finite. The message says which and what to do.
    """
    where: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": False}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on weights fills a screen; `_check_weights` names them
    try:
        check_supported(PretrainedConfig.get_config_dict(name, revision=revision, token=token)[0], name)
        config = AutoConfig.from_pretrained(name, **where)
        config.__dict__.pop("auto_map", None)  # an export must not name code that it does not hold
        base_config = copy.deepcopy(config)
        config.update(changes or {})
        how = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = AutoModel.from_pretrained(name, **how, **where)
    except LaserError:
        raise
    except Exception as error:  # a damaged config or checkpoint can fail in any way
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LaserError(
            f"cannot load the encoder {name!r} ({said}). Give the id of a model on the Hugging Face Hub or a folder "
            "with config.json and model.safetensors, such as laser_hf/demo/encoder"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    _check_weights(
        name, model, *(sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    )
    return model, base_config


def _check_weights(name: str, model: PreTrainedModel, missing: list, unexpected: list, mismatched: list) -> None:
    """Refuse weights that are missing, of other shapes, of another architecture, or not finite. Heads may be there."""
    missing = [key for key in missing if key != "masked_spec_embed"]
    prefixes = {other.removesuffix(key) for other in unexpected for key in missing if other.endswith(f".{key}")}
    foreign = f"; its names begin with {min(prefixes)!r}, which has to go" if prefixes else ""
    shapes = [f"{key} {tuple(found)} instead of {tuple(right)}" for key, found, right in mismatched]
    own = [key.removeprefix(f"{model.base_model_prefix}.") for key in unexpected]
    own = [key for key in own if key.startswith(("feature_extractor.", "feature_projection.", "encoder."))]
    # Layers above num_hidden_layers are left out on purpose.
    layers = [re.match(r"encoder\.layers\.(\d+)\.", key) for key in own]
    count = model.config.num_hidden_layers
    unknown = [key for key, layer in zip(own, layers, strict=True) if layer is None or int(layer[1]) < count]
    broken = [key for key, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    for keys, what in (
        (missing, f"{len(missing)} weights that its config.json describes are missing{foreign}"),
        (shapes, "weights have other shapes than its config.json says"),
        (unknown, "its config.json has no place for some of its weights, so it describes another model"),
        (broken, "weights are not finite"),
    ):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise LaserError(f"the encoder {name!r} cannot be used: {what}: {', '.join(keys[:5])}{more}")


def preprocessor_settings(name_or_path: str, revision: str | None = None, token: str | None = None) -> dict:
    """The checkpoint's own `preprocessor_config.json`, or `{}` if it has none; `LaserError` if it is damaged."""
    path = cached_file(
        name_or_path,
        "preprocessor_config.json",
        revision=revision,
        token=token,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    try:
        return dict(json.loads(Path(path).read_text())) if path else {}
    except (ValueError, TypeError) as error:
        raise LaserError(f"{name_or_path}: its preprocessor_config.json is damaged ({error})") from error


def _commit(name_or_path: str, revision: str | None, token: str | None) -> str | None:
    """The commit that a Hub model was loaded at; `None` for a folder."""
    if Path(name_or_path).is_dir():
        return None
    # The loaded config does not keep it, but the cache stores every file in a folder named by its commit.
    return Path(cached_file(name_or_path, "config.json", revision=revision, token=token)).parent.name
