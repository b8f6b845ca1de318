"""A Hugging Face speech encoder of the wav2vec 2.0 family, made exact under padding and ready to fine-tune."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import LaserError
from ..transfer import to_device

SAMPLE_RATE = 16_000
SUPPORTED_MODEL_TYPES = ("hubert", "wavlm", "wav2vec2", "data2vec-audio")


def _mask_of_padding(*args: Any, attention_mask: torch.Tensor | None = None, **how: Any) -> torch.Tensor | None:
    """SDPA's mask. `SpeechEncoder` passes one only if there is padding: transformers need not ask the device."""
    how["allow_is_bidirectional_skip"] = attention_mask is None
    return sdpa_mask(*args, attention_mask=attention_mask, **how)


SDPA = "laser_hf_sdpa"
AttentionInterface.register(SDPA, sdpa_attention_forward)
AttentionMaskInterface.register(SDPA, _mask_of_padding)


class EncoderOutput(NamedTuple):
    """Frames of a padded batch.

    Attributes:
        frames: last hidden state, `(batch, frames, dim)`; positions beyond `lengths` are zero.
        lengths: frames in use, `(batch,)` int64.
        hidden_states: if asked for, all `layers + 1` (S3PRL's numbering: 0 is the input of the first Transformer
            layer). Padding in them is not cleared.
    """

    frames: torch.Tensor
    lengths: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None


def check_supported(config: Mapping[str, Any], name: str) -> None:
    """Raise `LaserError` unless `config`, of the model called `name`, is one that `SpeechEncoder` can be exact for."""
    supported = ", ".join(SUPPORTED_MODEL_TYPES)
    if config.get("model_type") not in SUPPORTED_MODEL_TYPES:
        raise LaserError(f"{name} is a {config.get('model_type')!r} model; supported are {supported} encoders")
    if config.get("add_adapter"):
        what = "an adapter behind its layers (add_adapter), which shortens the frames"
        raise LaserError(f"{name} has {what}; supported are {supported} encoders without one")


def receptive_field(config: PretrainedConfig) -> int:
    """Samples needed for one frame (400, that is 25 ms, for HuBERT base)."""
    field = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field


class _UtteranceGroupNorm(nn.GroupNorm):
    """GroupNorm over time, one channel a group, whose statistics come from each utterance's own frames.

    `SpeechEncoder.forward` sets `valid`, the frames in use of each utterance, for one call; `None`: the stock module.
    """

    valid: list[int] | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.valid is None or min(self.valid) == hidden.shape[-1]:
            return super().forward(hidden)
        # The largest tensor of an update. Without a gradient it is overwritten, and one utterance at a time is copied.
        out = None if hidden.requires_grad or self.weight.requires_grad else hidden
        for row, valid in enumerate(self.valid):
            own = super().forward(hidden[row : row + 1, :, :valid])
            if out is None or out.dtype != own.dtype:  # autocast normalises in float32
                out = torch.empty_like(hidden, dtype=own.dtype)
            out[row, :, :valid], out[row, :, valid:] = own[0], 0.0
        return out


def _use_utterance_statistics(model: PreTrainedModel) -> _UtteranceGroupNorm | None:
    """Replace the first GroupNorm by the exact one, in place; parameters and state-dict keys stay the same."""
    layer = model.feature_extractor.conv_layers[0]
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, _UtteranceGroupNorm):  # of another `SpeechEncoder` around the same model
        return norm
    if not isinstance(norm, nn.GroupNorm):
        return None
    if norm.num_groups != norm.num_channels:
        found = f"{norm.num_groups} groups for {norm.num_channels} channels"
        raise LaserError(f"the first GroupNorm has {found}; expected one each")
    exact = _UtteranceGroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps)
    exact.weight, exact.bias = norm.weight, norm.bias
    layer.layer_norm = exact
    return exact


class SpeechEncoder(nn.Module):
    """A Hugging Face speech encoder whose padded batches give every utterance the frames it gets alone.

    Args:
        model: bare encoder of one of `SUPPORTED_MODEL_TYPES`; a `LaserError` for any other.
        base_config: the checkpoint's own config before any training-time change; exports carry it.
        do_normalize: scale each waveform to zero mean and unit variance first (never with LASER's recipe).
        revision: what was loaded: a commit hash on the Hub, or `None` for a folder.

    Attributes:
        config: in force, training-time changes included.
        hidden_size, num_layers: dimension of a frame, and number of Transformer layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base_config: PretrainedConfig | None = None,
        do_normalize: bool = False,
        revision: str | None = None,
    ):
        super().__init__()
        check_supported(model.config.to_dict(), model.config.name_or_path or type(model).__name__)
        self.model, self.config = model, model.config
        self.hidden_size, self.num_layers = model.config.hidden_size, len(model.encoder.layers)
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(SDPA)
        self.base_config = base_config if base_config is not None else copy.deepcopy(model.config)
        self.do_normalize, self.revision = do_normalize, revision
        self._first_norm = [_use_utterance_statistics(model)]  # in a list, as nn.Module has it as a part of `model`
        self._padded_frames: torch.Tensor | None = None
        # HuBERT's optional BatchNorm and data2vec's stack of convolutions write into padding that the next one reads.
        self._batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
        for layer in (*self._batch_norms, *getattr(model.encoder.pos_conv_embed, "layers", ())):
            layer.register_forward_hook(self._clear_padding)

    def _clear_padding(self, _module, _inputs, output: torch.Tensor) -> torch.Tensor:
        """Zeros in the padding of `(batch, dim, frames)`."""
        padded = self._padded_frames
        return output if padded is None else output.masked_fill(padded.unsqueeze(1), 0.0)

    def train(self, mode: bool = True) -> "SpeechEncoder":
        """As `nn.Module.train`; a BatchNorm keeps the statistics that it was trained with."""
        super().train(mode)
        for norm in self._batch_norms:
            norm.eval()
        return self

    def frame_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames that the convolutional front-end makes of so many samples, elementwise; 0 for too few of them."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=0)

    def forward(
        self, waveforms: torch.Tensor, lengths: torch.Tensor, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Encode a zero-padded batch.

        Args:
            waveforms: `(batch, samples)`, 16 kHz, roughly within [-1, 1].
            lengths: samples in use, `(batch,)`; pass a CPU tensor to avoid a host sync.
            output_hidden_states: also return every layer.

        Raises:
            ValueError: shapes that do not fit, or an utterance too short for a single frame.
        """
        if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
            shapes = f"{tuple(waveforms.shape)} and {tuple(lengths.shape)}"
            raise ValueError(f"expected waveforms (batch, samples) and lengths (batch,), got {shapes}")
        samples = lengths.tolist()
        shortest, longest = receptive_field(self.config), max(samples)
        if min(samples) < shortest or longest > waveforms.shape[1]:
            limits = f"{shortest} samples (one frame) and the {waveforms.shape[1]} of the padded batch"
            raise ValueError(f"every utterance needs between {limits}; got lengths {samples}")
        frames = self.frame_lengths(lengths)
        index = torch.arange(int(frames.max()), device=waveforms.device)
        lengths, frames = to_device(torch.stack((lengths, frames)), waveforms.device)
        inside = torch.arange(longest, device=waveforms.device) < lengths.unsqueeze(1)
        waveforms = waveforms[:, :longest].masked_fill(~inside, 0.0)
        if self.do_normalize:  # over each utterance's own samples, as `Wav2Vec2FeatureExtractor` does
            count = lengths.unsqueeze(1)
            centred = (waveforms - waveforms.sum(1, keepdim=True) / count).masked_fill(~inside, 0.0)
            waveforms = centred / torch.sqrt(centred.square().sum(1, keepdim=True) / count + 1e-7)
        if min(samples) == longest:  # Without padding no mask is passed, so that attention can take its fastest kernel.
            output = self.model(waveforms, output_hidden_states=output_hidden_states)
            last = output.last_hidden_state
        else:
            padded = index >= frames.unsqueeze(1)
            norm, self._padded_frames = self._first_norm[0], padded
            if norm is not None:
                kernel, stride = self.config.conv_kernel[0], self.config.conv_stride[0]
                norm.valid = [(length - kernel) // stride + 1 for length in samples]
            try:  # with the exact layers knowing what is padding
                output = self.model(waveforms, attention_mask=inside.long(), output_hidden_states=output_hidden_states)
            finally:
                self._padded_frames = None
                if norm is not None:
                    norm.valid = None
            last = output.last_hidden_state.masked_fill(padded.unsqueeze(2), 0.0)
        return EncoderOutput(last, frames, output.hidden_states if output_hidden_states else None)

    def freeze_except(self, trainable_layers: int, encoder_layer_norm: bool = False) -> list[str]:
        """Train the last `trainable_layers` Transformer layers and nothing else; return the parameters' names.

        `encoder_layer_norm` adds the encoder's own LayerNorm, as the released LASER code does, which freezes by
        counting parameters. It stands behind the positional convolution, and gradients then run through all layers; in
        encoders with `do_stable_layer_norm` it stands behind the last layer. A `LaserError` says that there are fewer
        layers than `trainable_layers`, or that this is less than one.
        """
        if not 1 <= trainable_layers <= self.num_layers:
            raise LaserError(f"trainable_layers must lie between 1 and {self.num_layers}, got {trainable_layers}")
        self.model.requires_grad_(False)
        # Also keeps the front-end from asking for gradients of the waveform in train mode, which would keep its graph.
        self.model.feature_extractor._freeze_parameters()
        for layer in self.model.encoder.layers[-trainable_layers:]:
            layer.requires_grad_(True)
        if encoder_layer_norm:
            self.model.encoder.layer_norm.requires_grad_(True)
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
