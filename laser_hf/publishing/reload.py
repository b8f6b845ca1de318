"""Load a folder as any user would, in a process that knows nothing of laser_hf, and compare what it makes of sound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import PushError
from .probe import describe_frames, difference, probe_waveform

_PROGRAM = """
import json, sys
import torch
from transformers import AutoFeatureExtractor, AutoModel
folder, out = sys.argv[1:]
model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
wrong = {key: sorted(info[key])[:3] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
if wrong:
    sys.exit(f"weights and config.json do not fit: {wrong}")
extractor = AutoFeatureExtractor.from_pretrained(folder)
wave = json.load(sys.stdin)
with torch.no_grad():
    inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    frames = model.eval()(**inputs).last_hidden_state[0]
if not torch.isfinite(frames).all():
    sys.exit("the reloaded encoder gives frames that are not finite")
if any(name.startswith("laser_hf") for name in sys.modules):
    sys.exit("loading imported laser_hf")
torch.save(frames.float(), out)
"""
_LIMIT = 900  # seconds


def check_reload(folder: Path, record: Mapping[str, Any], sampling_rate: int = 16_000) -> None:
    """Reload `folder` through plain `AutoModel` and `AutoFeatureExtractor` and compare its frames with the record's.

    Args:
        folder: with `config.json`, `model.safetensors` and `preprocessor_config.json`.
        record: `laser_config.json`, whose `sample_features` were taken from the encoder when training ended.
        sampling_rate: in Hz, as the feature extractor has it.

    Raises:
        PushError: it does not load, or gives other frames than at the end of training.
    """
    expected = record.get("sample_features")
    if not expected:
        raise PushError(
            "the record of the run has no sample_features, by which a reload is checked: the run was finished by an "
            "older laser_hf. Run it again"
        )
    with tempfile.TemporaryDirectory(prefix="laser-reload-") as scratch:
        frames = _run(folder, scratch, probe_waveform(sampling_rate))
    wrong = difference(expected, describe_frames(frames))
    if wrong:
        raise PushError(
            f"the exported encoder, reloaded by AutoModel and AutoFeatureExtractor, gives {wrong}: config.json, "
            "preprocessor_config.json or model.safetensors were changed since"
        )


def _run(folder: Path, scratch: str, wave: list[float]) -> torch.Tensor:
    out = Path(scratch) / "frames.pt"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder), str(out)],
            input=json.dumps(wave),
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            cwd=scratch,
            # Nothing of what the folder lacks may come from the Hub.
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PushError(
            f"reloading the encoder took more than {_LIMIT // 60} minutes; is this machine short of memory?"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PushError(f"the exported encoder does not work with plain AutoModel and AutoFeatureExtractor: {reason}")
    return torch.load(out, weights_only=True)
