"""Write a bare encoder that `AutoModel` and `AutoFeatureExtractor` load without laser_hf."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, Wav2Vec2FeatureExtractor

from .probe import describe_frames, probe_waveform


def export_encoder(
    model: PreTrainedModel,
    base_config: PretrainedConfig,
    output_dir: str | Path,
    do_normalize: bool = False,
    sampling_rate: int = 16_000,
) -> list[Path]:
    """Save `config.json`, `model.safetensors` and `preprocessor_config.json` at the root of `output_dir`.

    The config is the base checkpoint's own, with its dropouts, LayerDrop and SpecAugment: the CTC example script
    overwrites most of them but not `apply_spec_augment`, so an exported training-time value would switch
    SpecAugment off for everyone downstream.

    Args:
        model: bare encoder (no task head), on any device.
        base_config: config of the checkpoint that training started from, before training-time changes.
        output_dir: created if missing; other files in it are left alone.
        do_normalize: whether waveforms were normalised in training.
        sampling_rate: in Hz.

    Returns:
        The files written.

    Raises:
        ValueError: weights that are not finite.
        OSError: a folder that cannot be written.
    """
    output_dir = Path(output_dir)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"refusing to export weights that are not finite: {', '.join(broken[:5])}")
    config = copy.deepcopy(base_config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(state.values())).dtype
    if getattr(config, "tokenizer_class", None) is None:
        # Without it AutoTokenizer cannot make a CTC tokenizer for WavLM; the Hub's own configs carry it.
        config.tokenizer_class = "Wav2Vec2CTCTokenizer"
    extractor = _extractor(do_normalize, sampling_rate)
    output_dir.mkdir(parents=True, exist_ok=True)
    # Through a folder beside it: an interrupted export never leaves half a model at the root.
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=output_dir))
    training_config = model.config
    try:
        model.config = config
        model.save_pretrained(staging, state_dict=state)
        extractor.save_pretrained(staging)
        written = []
        umask = os.umask(0)
        os.umask(umask)
        for file in sorted(staging.iterdir()):
            file.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
            os.replace(file, output_dir / file.name)
            written.append(output_dir / file.name)
    finally:
        model.config = training_config
        shutil.rmtree(staging, ignore_errors=True)
    return written


@torch.no_grad()
def sample_features(model: PreTrainedModel, do_normalize: bool = False, sampling_rate: int = 16_000) -> dict[str, Any]:
    """What the encoder makes of a second of made-up sound: for the record, so that a reload can be compared with it.

    Computed on the CPU in evaluation mode, whatever device and mode `model` is in; the model is left as it was.

    Args:
        model: bare encoder (no task head).
        do_normalize: whether waveforms were normalised in training.
        sampling_rate: in Hz.

    Returns:
        `frames`, `dimension` and some `values` of the last hidden state.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    encoder = model if on_cpu else copy.deepcopy(model).cpu()
    training = encoder.training
    inputs = _extractor(do_normalize, sampling_rate)(
        probe_waveform(sampling_rate), sampling_rate=sampling_rate, return_tensors="pt"
    )
    try:
        return describe_frames(encoder.eval()(inputs["input_values"]).last_hidden_state[0])
    finally:
        encoder.train(training)


def _extractor(do_normalize: bool, sampling_rate: int) -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=sampling_rate,
        padding_value=0.0,
        do_normalize=do_normalize,
        return_attention_mask=True,
    )
