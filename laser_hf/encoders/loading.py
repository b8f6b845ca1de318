"""Load an encoder from the Hub or a folder, and say what is wrong when that fails."""

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

TRAINING_CONFIG = {"apply_spec_augment": False, "layerdrop": 0.0, "hidden_dropout": 0.1, "attention_dropout": 0.1}
TRAINING_CONFIG |= {"activation_dropout": 0.0, "feat_proj_dropout": 0.1}
"""What the reference recipe trains with (S3PRL in train mode), whatever the checkpoint's config says."""


def load_encoder(
    name_or_path: str,
    revision: str | None = None,
    token: str | None = None,
    training_config: dict | None = None,
    do_normalize: bool | None = False,
) -> SpeechEncoder:
    """Load an encoder by Hub id or folder, in float32 and evaluation mode; a `LaserError` as of `load_pretrained`.

    Args:
        name_or_path: Hub id or folder; a CTC or classification checkpoint of the same family gives its encoder.
        revision: branch, tag or commit on the Hub.
        token: Hub token; by default the usual places.
        training_config: config values to set before the model is built, e.g. `TRAINING_CONFIG`; the originals stay in
            `SpeechEncoder.base_config`.
        do_normalize: as in `SpeechEncoder`, `None` for what the checkpoint's preprocessor says; a warning is logged if
            it asks for something else.
    """
    name_or_path = str(name_or_path)
    model, base_config = load_pretrained(name_or_path, revision, token, training_config)
    where = {"revision": revision, "token": token}
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    path = cached_file(name_or_path, "preprocessor_config.json", **where, **quiet)
    try:
        settings = dict(json.loads(Path(path).read_text())) if path else {}
    except (ValueError, TypeError) as error:
        raise LaserError(f"{name_or_path}: its preprocessor_config.json is damaged ({error})") from error
    if (rate := settings.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise LaserError(f"the encoder {name_or_path!r} hears {rate} Hz; supported are encoders for {SAMPLE_RATE} Hz")
    asked = bool(settings.get("do_normalize", False))
    do_normalize = asked if do_normalize is None else do_normalize
    if asked != do_normalize:
        asks = f"{name_or_path} asks for do_normalize={not do_normalize} in its preprocessor_config.json"
        logger.warning("%s; it runs here with %s.", asks, do_normalize)
    # The cache stores every file in a folder named by its commit.
    path = None if Path(name_or_path).is_dir() else cached_file(name_or_path, "config.json", **where)
    return SpeechEncoder(model, base_config, do_normalize, path and Path(path).parent.name).eval()


def load_pretrained(
    name: str, revision: str | None = None, token: str | None = None, changes: dict | None = None
) -> tuple[PreTrainedModel, PretrainedConfig]:
    """A bare encoder in float32 with `changes` in its config, and its own config. No code of a repository is run.

    Raises:
        LaserError: not found, unreachable, damaged, or of another kind; or weights missing, not fitting or not finite.
    """
    where: dict[str, Any] = {"revision": revision, "token": token}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on weights fills a screen; `_check_weights` names them
    try:
        check_supported(PretrainedConfig.get_config_dict(name, **where)[0], name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        config.__dict__.pop("auto_map", None)  # an export must not name code that it does not hold
        base_config = copy.deepcopy(config)
        config.update(changes or {})
        how = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = AutoModel.from_pretrained(name, trust_remote_code=False, **how, **where)
    except LaserError:
        raise
    except Exception as error:  # a damaged config or checkpoint can fail in any way
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        mend = "Give the id of a model on the Hugging Face Hub or a folder with config.json and model.safetensors"
        raise LaserError(f"cannot load the encoder {name!r} ({said}). {mend}, such as laser_hf/demo/encoder") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    _check_weights(name, model, info)
    return model, base_config


def _check_weights(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse weights that are missing, of other shapes, of another architecture, or not finite. Heads may be there."""
    missing, unexpected = sorted(set(info["missing_keys"]) - {"masked_spec_embed"}), sorted(info["unexpected_keys"])
    prefixes = {other.removesuffix(key) for other in unexpected for key in missing if other.endswith(f".{key}")}
    foreign = f"; its names begin with {min(prefixes)!r}, which has to go" if prefixes else ""
    mismatched = sorted(info["mismatched_keys"])
    shapes = [f"{key} {tuple(found)} instead of {tuple(right)}" for key, found, right in mismatched]
    own = [key.removeprefix(f"{model.base_model_prefix}.") for key in unexpected]
    own = [key for key in own if key.startswith(("feature_extractor.", "feature_projection.", "encoder."))]
    layer, count = re.compile(r"encoder\.layers\.(\d+)\."), model.config.num_hidden_layers  # those above are left out
    unknown = [key for key in own if not (found := layer.match(key)) or int(found[1]) < count]
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
