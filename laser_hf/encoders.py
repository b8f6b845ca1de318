"""Any Hugging Face speech encoder of the wav2vec 2.0 family, made exact under padding and ready to fine-tune.

What Hugging Face leaves to the user and this module does:

* the first GroupNorm of base models takes its statistics over time and therefore sees zero padding; here every
  utterance of a batch is normalised by its own samples only;
* training mode means masking, LayerDrop and dropouts as the checkpoint was pre-trained with; fine-tuning by
  correspondence needs others, so they are set here and the originals kept for the exported config;
* the convolutional front-end keeps a graph in training mode unless it is frozen through its own method.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .cpu import CheapDropout

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
SUPPORTED_MODEL_TYPES = ("hubert", "wavlm", "wav2vec2", "data2vec-audio")

# What the reference recipe trains with (S3PRL in train mode), whatever the checkpoint's config says.
TRAINING_CONFIG = {
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.1,
}


class EncoderError(ValueError):
    """An encoder that cannot be loaded, or is not of a supported kind."""


@dataclass
class EncoderOutput:
    """Frames of a padded batch.

    Attributes:
        frames: last hidden state, `(batch, frames, dim)`; positions beyond `lengths` are zero.
        lengths: frames in use, `(batch,)` int64.
        hidden_states: all `layers + 1` hidden states when asked for (S3PRL's numbering: 0 is the input of the
            first Transformer layer), else `None`. Padding in them is not cleared.
    """

    frames: torch.Tensor
    lengths: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None


def frame_lengths(config: PretrainedConfig, sample_lengths: torch.Tensor) -> torch.Tensor:
    """Frames that the convolutional front-end makes of `sample_lengths` samples, elementwise.

    The one place where samples become frames: `floor((L - kernel) / stride) + 1`, layer by layer. 0 means that
    the utterance is shorter than the receptive field.
    """
    lengths = sample_lengths
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp(min=0)


def receptive_field(config: PretrainedConfig) -> int:
    """Samples needed for one frame (400, that is 25 ms, for HuBERT base)."""
    field = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field


class _UtteranceGroupNorm(nn.GroupNorm):
    """GroupNorm over time whose statistics come from each utterance's own frames, not from its padding.

    One channel a group, as in all base models. `valid` holds the frames in use of each utterance as a list, set by
    `SpeechEncoder.forward` for one call; `None` gives the stock module.
    """

    valid: list[int] | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.valid is None or min(self.valid) == hidden.shape[-1]:
            return super().forward(hidden)
        utterances = []
        for utterance, valid in zip(hidden, self.valid, strict=True):
            normalised = nn.functional.group_norm(
                utterance[None, :, :valid], self.num_groups, self.weight, self.bias, self.eps
            )
            utterances.append(nn.functional.pad(normalised, (0, hidden.shape[-1] - valid)))
        return torch.cat(utterances)


def _use_utterance_statistics(model: PreTrainedModel) -> _UtteranceGroupNorm | None:
    """Swap the first GroupNorm for the exact one, in place, parameters and state-dict keys unchanged."""
    layer = model.feature_extractor.conv_layers[0]
    norm = getattr(layer, "layer_norm", None)
    if not isinstance(norm, nn.GroupNorm):
        return None
    if norm.num_groups != norm.num_channels:
        raise EncoderError(
            f"the first GroupNorm has {norm.num_groups} groups for {norm.num_channels} channels; expected one each"
        )
    exact = _UtteranceGroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps)
    exact.weight, exact.bias = norm.weight, norm.bias
    layer.layer_norm = exact
    return exact


class SpeechEncoder(nn.Module):
    """A Hugging Face speech encoder whose padded batches give every utterance the frames it gets alone.

    Args:
        model: bare encoder (`HubertModel`, `WavLMModel`, `Wav2Vec2Model`, `Data2VecAudioModel`).
        base_config: the checkpoint's own config before any training-time change; what an export must carry.
        do_normalize: scale each waveform to zero mean and unit variance first (never with LASER's recipe).
        revision: what was loaded: a commit hash on the Hub, or `None` for a folder.

    Raises:
        EncoderError: a model that is not of this family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base_config: PretrainedConfig | None = None,
        do_normalize: bool = False,
        revision: str | None = None,
    ):
        super().__init__()
        _check_supported(model.config, model.config.name_or_path or type(model).__name__)
        self.model = model
        self.base_config = base_config if base_config is not None else copy.deepcopy(model.config)
        self.do_normalize = do_normalize
        self.revision = revision
        self._first_norm = [_use_utterance_statistics(model)]  # in a list: it is a sub-module of `model` already
        self._padded_frames: torch.Tensor | None = None
        if model.config.model_type == "data2vec-audio":
            # Its positional convolution is a stack; without this the second layer sees the first one's padding.
            for layer in model.encoder.pos_conv_embed.layers:
                layer.register_forward_pre_hook(self._clear_padding)

    def _clear_padding(self, _module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if self._padded_frames is None:
            return None
        return (inputs[0].masked_fill(self._padded_frames.unsqueeze(1), 0.0),)

    @property
    def config(self) -> PretrainedConfig:
        """Config in force, training-time changes included."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """Dimension of a frame."""
        return self.model.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Number of Transformer layers."""
        return len(self.model.encoder.layers)

    def frame_lengths(self, sample_lengths: torch.Tensor) -> torch.Tensor:
        """`frame_lengths` for this encoder."""
        return frame_lengths(self.model.config, sample_lengths)

    def forward(
        self, waveforms: torch.Tensor, lengths: torch.Tensor, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Encode a zero-padded batch.

        Args:
            waveforms: `(batch, samples)`, 16 kHz, roughly within [-1, 1].
            lengths: samples in use, `(batch,)`; on the CPU they are read without waiting for the device.
            output_hidden_states: also return every layer.

        Raises:
            ValueError: shapes that do not fit, or an utterance too short for a single frame.
        """
        if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
            raise ValueError(
                "expected waveforms (batch, samples) and lengths (batch,), got "
                f"{tuple(waveforms.shape)} and {tuple(lengths.shape)}"
            )
        samples = lengths.tolist()
        shortest = receptive_field(self.config)
        if samples and (min(samples) < shortest or max(samples) > waveforms.shape[1]):
            raise ValueError(
                f"every utterance needs between {shortest} samples (one frame) and the {waveforms.shape[1]} of the "
                f"padded batch; got lengths {samples}"
            )
        longest = max(samples)
        waveforms = waveforms[:, :longest]
        frames = self.frame_lengths(lengths)
        longest_frames = int(frames.max())
        lengths, frames = (count.to(waveforms.device, non_blocking=True) for count in (lengths, frames))
        inside = torch.arange(longest, device=waveforms.device) < lengths.unsqueeze(1)
        waveforms = waveforms.masked_fill(~inside, 0.0)
        if self.do_normalize:
            waveforms = _normalize(waveforms, lengths, inside)
        ragged = min(samples) < longest
        kernel, stride = self.config.conv_kernel[0], self.config.conv_stride[0]
        norm = self._first_norm[0]
        try:
            if ragged:
                if norm is not None:
                    norm.valid = [(length - kernel) // stride + 1 for length in samples]
                index = torch.arange(longest_frames, device=frames.device)
                self._padded_frames = index >= frames.unsqueeze(1)
            # No mask where nothing is padded: attention may then take its fastest kernel.
            with self._dropout_on(waveforms.device):
                output = self.model(
                    waveforms,
                    attention_mask=inside.long() if ragged else None,
                    output_hidden_states=output_hidden_states,
                )
            last = output.last_hidden_state
            if self._padded_frames is not None:
                last = last.masked_fill(self._padded_frames.unsqueeze(2), 0.0)
        finally:
            self._padded_frames = None
            if norm is not None:
                norm.valid = None
        return EncoderOutput(last, frames, output.hidden_states if output_hidden_states else None)

    def _dropout_on(self, device: torch.device) -> contextlib.AbstractContextManager:
        """How the model draws its dropout; a compiled one in PyTorch's way, which the compiler knows."""
        cheap = self.training and device.type == "cpu" and not torch.compiler.is_compiling()
        return CheapDropout() if cheap else contextlib.nullcontext()

    def freeze_except(self, trainable_layers: int, encoder_layer_norm: bool = False) -> list[str]:
        """Train the last `trainable_layers` Transformer layers and nothing else; return the parameters' names.

        `encoder_layer_norm` adds the LayerNorm behind the positional convolution, which the released LASER code
        trains too (it freezes by counting parameters), so that gradients run through all layers.

        Raises:
            ValueError: more layers than there are, or fewer than one.
        """
        if not 1 <= trainable_layers <= self.num_layers:
            raise ValueError(f"trainable_layers must lie between 1 and {self.num_layers}, got {trainable_layers}")
        self.model.requires_grad_(False)
        # Through its own method, which HubertModel does not pass on: it also stops the front-end from asking
        # for gradients of the waveform in train mode, which would keep its graph.
        self.model.feature_extractor._freeze_parameters()
        for layer in self.model.encoder.layers[-trainable_layers:]:
            layer.requires_grad_(True)
        if encoder_layer_norm:
            self.model.encoder.layer_norm.requires_grad_(True)
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]


def _normalize(waveforms: torch.Tensor, lengths: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Zero mean, unit variance over each utterance's own samples, as `Wav2Vec2FeatureExtractor` does."""
    count = lengths.unsqueeze(1)
    centred = (waveforms - waveforms.sum(1, keepdim=True) / count).masked_fill(~inside, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / torch.sqrt(variance + 1e-7)


def _check_supported(config: PretrainedConfig, name: str) -> None:
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise EncoderError(
            f"{name} is a {config.model_type!r} model; supported are {', '.join(SUPPORTED_MODEL_TYPES)} encoders"
        )


def preprocessor_settings(name_or_path: str, revision: str | None = None, token: str | None = None) -> dict:
    """The checkpoint's own `preprocessor_config.json`, or `{}` where it has none."""
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


def load_encoder(
    name_or_path: str,
    revision: str | None = None,
    token: str | None = None,
    training_config: dict | None = None,
    do_normalize: bool = False,
) -> SpeechEncoder:
    """Load an encoder by hub id or folder, in float32 and evaluation mode.

    Args:
        name_or_path: hub id (`facebook/hubert-base-ls960`) or folder; a CTC or classification checkpoint of the
            same family gives its encoder.
        revision: branch, tag or commit on the Hub.
        token: Hub token; by default the usual places.
        training_config: config values to set before the model is built, e.g. `TRAINING_CONFIG`; the originals
            stay in `SpeechEncoder.base_config`.
        do_normalize: as in `SpeechEncoder`.

    Raises:
        EncoderError: not found, unreachable, or not of a supported kind; the message says which and what to do.
    """
    name_or_path = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, token=token)
        _check_supported(config, name_or_path)
        base_config = copy.deepcopy(config)
        config.update(training_config or {})
        model = AutoModel.from_pretrained(
            name_or_path, config=config, revision=revision, token=token, dtype=torch.float32
        )
    except EncoderError:
        raise
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"cannot load the encoder {name_or_path!r} ({str(error).strip().splitlines()[0]}). Give the id of a model "
            "on the Hugging Face Hub or a folder with config.json and model.safetensors. Without network access: "
            "`--preset demo` uses the encoder shipped with laser_hf, and --train_data PATH your own speech."
        ) from error
    if preprocessor_settings(name_or_path, revision, token).get("do_normalize", False) != do_normalize:
        logger.warning(
            "%s asks for do_normalize=%s in its preprocessor_config.json; it runs here with %s.",
            name_or_path,
            not do_normalize,
            do_normalize,
        )
    return SpeechEncoder(model, base_config, do_normalize, _commit(name_or_path, revision, token)).eval()


def _commit(name_or_path: str, revision: str | None, token: str | None) -> str | None:
    """The commit a Hub model was loaded at; `None` for a folder."""
    if Path(name_or_path).is_dir():
        return None
    # The config no longer says it, but the cache keeps every file under its commit.
    return Path(cached_file(name_or_path, "config.json", revision=revision, token=token)).parent.name
