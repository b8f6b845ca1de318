"""Write an encoder that plain transformers loads, and check that it computes the same after a reload."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LaserError

if TYPE_CHECKING:  # importing transformers takes seconds, and a push does not need it in its own process
    from transformers import PretrainedConfig, PreTrainedModel, Wav2Vec2FeatureExtractor

SAMPLE_RATE = 16_000
"""Of every supported encoder, Hz."""
KEPT_VALUES = 64
"""Numbers kept of the frames by `describe_frames`."""
TOLERANCE = 1e-3
"""Allowed difference in units of the root mean square of the numbers kept; processors differ by far less."""

Load = Callable[[str, Sequence[float]], torch.Tensor]
"""Loads the encoder in a folder and runs it on a waveform: `(samples,)` to frames `(frames, dimension)`."""


def export_encoder(
    model: PreTrainedModel, base_config: PretrainedConfig, output_dir: str | Path, do_normalize: bool = False
) -> None:
    """Save `config.json`, `model.safetensors` and `preprocessor_config.json` at the root of `output_dir`.

    The config is the base checkpoint's, with its dropouts, LayerDrop and SpecAugment: the CTC example script overwrites
    most of them but not `apply_spec_augment`, so an exported training-time value would switch SpecAugment off for
    everyone downstream.

    Args:
        model: bare encoder (no task head), on any device.
        base_config: config of the base checkpoint, before training-time changes.
        output_dir: created if missing; other files in it are left alone.
        do_normalize: whether waveforms were normalised in training.

    Raises:
        LaserError: weights that are not finite.
        OSError: a folder that cannot be written.
    """
    output_dir = Path(output_dir)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LaserError(f"refusing to export weights that are not finite: {', '.join(broken[:5])}")
    config = copy.deepcopy(base_config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(state.values())).dtype
    if getattr(config, "tokenizer_class", None) is None:
        # AutoTokenizer needs it to make a CTC tokenizer for WavLM; the Hub's own configs carry it.
        config.tokenizer_class = "Wav2Vec2CTCTokenizer"
    output_dir.mkdir(parents=True, exist_ok=True)
    # Write to a folder inside first: an interrupted export never leaves half a model at the root.
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=output_dir))
    training_config = model.config
    try:
        model.config = config
        model.save_pretrained(staging, state_dict=state)
        _extractor(do_normalize).save_pretrained(staging)
        for file in staging.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone
            file.replace(output_dir / file.name)
    finally:
        model.config = training_config
        shutil.rmtree(staging, ignore_errors=True)


def _extractor(do_normalize: bool) -> Wav2Vec2FeatureExtractor:
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=do_normalize,
        return_attention_mask=True,
    )


@torch.no_grad()
def sample_features(model: PreTrainedModel, do_normalize: bool = False) -> dict[str, Any]:
    """Frames of one second of made-up sound, for the record: a reloaded encoder is compared with them.

    Computed on the CPU in evaluation mode; the model is left as it was.

    Args:
        model: bare encoder (no task head), on any device.
        do_normalize: whether waveforms were normalised in training.

    Returns:
        `frames`, `dimension` and 64 evenly spaced `values` of the last hidden state.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    encoder = model if on_cpu else copy.deepcopy(model).cpu()
    training = encoder.training
    inputs = _extractor(do_normalize)(made_up_sound(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
    try:
        return describe_frames(encoder.eval()(inputs["input_values"]).last_hidden_state[0])
    finally:
        encoder.train(training)


def made_up_sound() -> list[float]:
    """A second of tones that come and go: quiet and with an offset, so that normalising it changes the frames."""
    time = torch.arange(SAMPLE_RATE, dtype=torch.float64) * (2 * math.pi / SAMPLE_RATE)
    wave = torch.full_like(time, 0.004)
    for pitch in (180.0, 450.0, 1170.0, 2300.0):
        wave += 0.004 * (pitch * time).sin() * ((3 * time + pitch).sin() > 0)
    return wave.tolist()


def describe_frames(frames: torch.Tensor) -> dict[str, Any]:
    """Size of `frames` (frames, dimension) and `KEPT_VALUES` evenly spaced numbers of them, as plain JSON."""
    flat = frames.detach().float().cpu().reshape(-1)
    picks = torch.linspace(0, len(flat) - 1, min(KEPT_VALUES, len(flat)), dtype=torch.float64).long()
    return {"frames": frames.shape[0], "dimension": frames.shape[1], "values": flat[picks].tolist()}


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """How two results of `sample_features` differ, or `None` if they are of the same encoder."""
    sizes = [f"{d['frames']} frames of {d['dimension']}" for d in (expected, found)]
    if sizes[0] != sizes[1]:
        return f"{sizes[1]} instead of {sizes[0]}"
    pairs = list(zip(expected["values"], found["values"], strict=True))
    scale = math.sqrt(sum(value**2 for value, _ in pairs) / len(pairs))
    worst = max(abs(a - b) for a, b in pairs)
    if worst <= TOLERANCE * scale:
        return None
    return f"frames that differ by up to {worst:.3g} from those at the end of training (values of about {scale:.3g})"


def check_reload(folder: Path, record: Mapping[str, Any], load: Load) -> None:
    """Load `folder` through plain `AutoModel` and `AutoFeatureExtractor` and compare its frames with the record's.

    Args:
        folder: with `config.json`, `model.safetensors` and `preprocessor_config.json`.
        record: `laser_config.json`, whose `sample_features` were computed when training ended.
        load: `load_in_fresh_process`, or `load_frames` for this process.

    Raises:
        LaserError: it does not load, or gives other frames than at the end of training.
    """
    expected = record.get("sample_features")
    if not expected:
        raise LaserError("the record has no sample_features, with which a reload is compared; run the training again")
    try:
        frames = load(str(folder), made_up_sound())
    except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = str(error).strip().splitlines()[-1]
        raise LaserError(
            f"the exported encoder does not work with plain AutoModel and AutoFeatureExtractor: {reason}"
        ) from error
    wrong = difference(expected, describe_frames(frames))
    if wrong:
        raise LaserError(
            f"the exported encoder, reloaded by AutoModel and AutoFeatureExtractor, gives {wrong}: config.json, "
            "preprocessor_config.json or model.safetensors were changed since"
        )


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
frames = load_frames(sys.argv[1], json.load(sys.stdin))
assert not any(name.startswith("laser_hf") for name in sys.modules), "loading imported laser_hf"
json.dump(frames.tolist(), open(sys.argv[2], "w"))
"""


def load_in_fresh_process(folder: str, wave: Sequence[float]) -> torch.Tensor:
    """`load_frames` in a process that knows nothing of laser_hf, offline: nothing that the folder lacks is fetched."""
    with tempfile.TemporaryDirectory(prefix="laser-reload-") as scratch:
        out = Path(scratch) / "frames.json"
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, folder, str(out)],
            input=json.dumps(wave),
            capture_output=True,
            text=True,
            timeout=900,
            cwd=scratch,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
        return torch.tensor(json.loads(out.read_text()))
