"""Load an encoder from the Hub or a folder, and say what is wrong when that fails."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import cached_file

from ..errors import LaserError
from .encoder import SpeechEncoder, check_supported

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
    do_normalize: bool = False,
) -> SpeechEncoder:
    """Load an encoder by Hub id or folder, in float32 and evaluation mode.

    Args:
        name_or_path: Hub id (`facebook/hubert-base-ls960`) or folder; a CTC or classification checkpoint of the same
            family gives its encoder.
        revision: branch, tag or commit on the Hub.
        token: Hub token; by default the usual places.
        training_config: config values to set before the model is built, e.g. `TRAINING_CONFIG`; the originals stay in
            `SpeechEncoder.base_config`.
        do_normalize: as in `SpeechEncoder`; a warning is logged if the checkpoint asks for something else.

    Raises:
        LaserError: not found, unreachable, or not of a supported kind; the message says which and what to do.
    """
    name_or_path = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, token=token)
        check_supported(config, name_or_path)
        base_config = copy.deepcopy(config)
        config.update(training_config or {})
        model = AutoModel.from_pretrained(
            name_or_path, config=config, revision=revision, token=token, dtype=torch.float32
        )
    except LaserError:
        raise
    except (OSError, ValueError) as error:
        raise LaserError(
            f"cannot load the encoder {name_or_path!r} ({str(error).strip().splitlines()[0]}). Give the id of a model "
            "on the Hugging Face Hub, or a folder with config.json and model.safetensors such as laser_hf/demo/encoder"
        ) from error
    if preprocessor_settings(name_or_path, revision, token).get("do_normalize", False) != do_normalize:
        logger.warning(
            "%s asks for do_normalize=%s in its preprocessor_config.json; it runs here with %s.",
            name_or_path,
            not do_normalize,
            do_normalize,
        )
    return SpeechEncoder(model, base_config, do_normalize, _commit(name_or_path, revision, token)).eval()


def preprocessor_settings(name_or_path: str, revision: str | None = None, token: str | None = None) -> dict:
    """The checkpoint's own `preprocessor_config.json`, or `{}` if it has none."""
    path = cached_file(
        name_or_path,
        "preprocessor_config.json",
        revision=revision,
        token=token,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return json.loads(Path(path).read_text()) if path else {}


def _commit(name_or_path: str, revision: str | None, token: str | None) -> str | None:
    """The commit that a Hub model was loaded at; `None` for a folder."""
    if Path(name_or_path).is_dir():
        return None
    # The loaded config does not keep it, but the cache stores every file in a folder named by its commit.
    return Path(cached_file(name_or_path, "config.json", revision=revision, token=token)).parent.name
