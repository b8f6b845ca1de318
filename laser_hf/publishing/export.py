"""Write an encoder that plain transformers loads, and check weights and frames of what was written."""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import LaserError
from ..records import TRAINING_RECORD

if TYPE_CHECKING:  # importing transformers takes seconds that --help and early refusals of a push need not wait for
    from transformers import PretrainedConfig, PreTrainedModel, Wav2Vec2FeatureExtractor

EXPORTED = ("config.json", "model.safetensors", "preprocessor_config.json")
RECORDS = (TRAINING_RECORD, "conversion.json")
"""What a folder that can be published has one of."""
SAMPLE_RATE = 16_000
TOLERANCE = 1e-3
"""Allowed difference in units of the root mean square of the numbers kept; processors differ by far less."""


def export_encoder(
    model: PreTrainedModel, base_config: PretrainedConfig, output_dir: str | Path, do_normalize: bool = False
) -> None:
    """Save `config.json`, `model.safetensors` and `preprocessor_config.json` at the root of `output_dir`.

    The config is the base checkpoint's, with its dropouts, LayerDrop and SpecAugment: the CTC example script overwrites
    most of them but not `apply_spec_augment`, so an exported training-time value would switch SpecAugment off for
    everyone downstream.

    Args:
        model: bare encoder (no task head), on any device; `LaserError` if a weight is not finite.
        base_config: config of the base checkpoint, before training-time changes.
        output_dir: created if missing; other files in it are left alone.
        do_normalize: whether waveforms were normalised in training.
    """
    output_dir = Path(output_dir)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    infinite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    refuse_names(infinite, "refusing to export weights that are not finite")
    config = copy.deepcopy(base_config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(state.values())).dtype
    # AutoTokenizer needs it to make a CTC tokenizer for WavLM; the Hub's own configs carry it.
    config.tokenizer_class = getattr(config, "tokenizer_class", None) or "Wav2Vec2CTCTokenizer"
    # Write to a folder inside first: an interrupted export never leaves half a model at the root.
    staging = output_dir / ".export-staging"
    shutil.rmtree(staging, ignore_errors=True)  # of a killed export
    staging.mkdir(parents=True)
    try:
        config.save_pretrained(staging)
        save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
        _extractor(do_normalize).save_pretrained(staging)
        for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):  # last: it says "complete"
            file.chmod(0o644)  # safetensors writes for the owner alone
            file.replace(output_dir / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _extractor(do_normalize: bool) -> Wav2Vec2FeatureExtractor:
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)


@torch.no_grad()
def sample_features(model: PreTrainedModel, do_normalize: bool = False) -> dict[str, Any]:
    """Frames of one second of made-up sound, for the record: a reloaded encoder is compared with them.

    They are `frames`, `dimension` and 64 evenly spaced `values` of the last hidden state of a bare encoder, of which a
    copy runs on the CPU in evaluation mode. `do_normalize` says whether waveforms were normalised in training.
    """
    inputs = _extractor(do_normalize)(made_up_sound(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
    return describe_frames(copy.deepcopy(model).cpu().eval()(inputs["input_values"]).last_hidden_state[0])


def made_up_sound() -> list[float]:
    """A second of tones that come and go: quiet and with an offset, so that normalising it changes the frames."""
    time = torch.arange(SAMPLE_RATE, dtype=torch.float64) * (2 * math.pi / SAMPLE_RATE)
    wave = torch.full_like(time, 0.004)
    for pitch in (180.0, 450.0, 1170.0, 2300.0):
        wave += 0.004 * (pitch * time).sin() * ((3 * time + pitch).sin() > 0)
    return wave.tolist()


def describe_frames(frames: torch.Tensor) -> dict[str, Any]:
    """Size of `frames` (frames, dimension) and 64 evenly spaced numbers of them, as plain JSON."""
    flat = frames.detach().float().cpu().reshape(-1)
    picks = torch.linspace(0, len(flat) - 1, min(64, len(flat)), dtype=torch.float64).long()
    return {"frames": frames.shape[0], "dimension": frames.shape[1], "values": flat[picks].tolist()}


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """How two results of `sample_features` differ, or `None` if they are of the same encoder."""
    sizes = [f"{d['frames']} frames of {d['dimension']}" for d in (expected, found)]
    if sizes[0] != sizes[1]:
        return f"{sizes[1]} instead of {sizes[0]}"
    kept, new = (torch.tensor(one["values"], dtype=torch.float64) for one in (expected, found))
    scale, worst = kept.square().mean().sqrt(), (kept - new).abs().max()
    if worst <= TOLERANCE * scale:
        return None
    return f"frames that differ by up to {worst:.3g} from those at the end of training (values of about {scale:.3g})"


def check_reload(folder: Path, record: Mapping[str, Any]) -> None:
    """`LaserError` unless plain transformers load `folder` and give the frames in `record` (`sample_features`)."""
    if not record.get("sample_features"):
        raise LaserError("the record has no sample_features, with which a reload is compared; run the training again")
    try:
        frames = load_in_fresh_process(str(folder), made_up_sound())
    except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = str(error).strip().splitlines()[-1]
        fails = "the exported encoder does not work with plain AutoModel and AutoFeatureExtractor"
        raise LaserError(f"{fails}: {reason}") from error
    if wrong := difference(record["sample_features"], describe_frames(frames)):
        files = "config.json, preprocessor_config.json or model.safetensors were changed since"
        raise LaserError(f"the exported encoder, reloaded by plain transformers, gives {wrong}: {files}")


def load_frames(folder, wave):
    """Frames `(frames, dimension)` of `wave` by the encoder in `folder`. Its source runs without laser_hf, too."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    model, info = AutoModel.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
    wrong = {key: sorted(info[key])[:3] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    if wrong:
        raise ValueError(f"weights and config.json do not fit: {wrong}")
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    with torch.no_grad():
        inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        frames = model.eval()(**inputs).last_hidden_state[0].float()
    if not torch.isfinite(frames).all():
        raise ValueError("the reloaded encoder gives frames that are not finite")
    return frames


_PROGRAM = f"""
{inspect.getsource(load_frames)}
import json, sys
frames = load_frames(".", json.load(sys.stdin))
assert not any(name.startswith("laser_hf") for name in sys.modules), "loading imported laser_hf"
print("\\n" + json.dumps(frames.tolist()))
"""


def load_in_fresh_process(folder: str, wave: Sequence[float]) -> torch.Tensor:
    """`load_frames` in a process that knows nothing of laser_hf, offline: nothing that the folder lacks is fetched."""
    command, how = [sys.executable, "-c", _PROGRAM], {"text": True, "capture_output": True, "timeout": 900}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, input=json.dumps(wave), cwd=folder, env=environment, check=False, **how)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a safetensors file or of `torch.save`; `LaserError` unless it is weights and plain values."""
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
        what = f"is damaged, or holds more than weights and plain values{f' ({named[1]})' if named else ''}"
        save = 'torch.save(torch.load(FILE)["Upstream"], "upstream.pt") for S3PRL, ["model"] for fairseq'
        mend = f"If you trust it, save its weights alone with the toolkit that wrote it: {save}"
        raise LaserError(f"{path} {what}, and loading that could run any code. {mend}") from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise LaserError(f"{path} cannot be read, it is damaged or cut off ({error})") from error
    if not isinstance(content, Mapping):
        raise LaserError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def refuse_names(names: Sequence[str], reason: str) -> None:
    """Raise `LaserError` with the first of the names if there are any."""
    if names:
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        raise LaserError(f"{reason}: {', '.join(names[:12])}{more}")
