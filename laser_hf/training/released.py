"""The training of the released LASER code, where it differs from the paper and from ours; off unless `--released`.

Source: Trikaldarshi/LASER at commit 3293a19, run through S3PRL 0.4.18. `tests/training/test_golden_step.py` compares
five whole updates with tensors that this code made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..encoders import receptive_field
from ..transfer import to_device
from .model import AlignmentModel


class ReleasedModel(AlignmentModel):
    """Encodes the two views of a pair as one padded batch, as S3PRL does.

    The first GroupNorm takes its statistics over the padding too. Attention leaves out frames that are all padding. An
    utterance keeps `round(samples / 320)` frames (halves to the even number): the shorter view often has one more.
    """

    def frames_of(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames that utterances `(2 * pairs,)` of `lengths` samples keep."""
        hop = math.prod(self.encoder.config.conv_stride)
        longest = self.encoder.frame_lengths(lengths.view(2, -1).amax(0)).repeat(2)
        return torch.round(lengths / hop).long().minimum(longest)

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | Sequence[int]) -> dict[str, torch.Tensor]:
        """As `AlignmentModel.forward`; waveforms and lengths hold all first views, then all second views."""
        lengths = torch.as_tensor(lengths).cpu()
        kept = self.frames_of(lengths)
        frames = waveforms.new_zeros(len(lengths), int(kept.max()), self.encoder.hidden_size)
        pairs = len(lengths) // 2
        for pair in range(pairs):
            rows = slice(pair, None, pairs)  # both views
            encoded = self._encode(waveforms[rows, : int(lengths[rows].max())], lengths[rows])
            for row, output in zip((pair, pair + pairs), encoded, strict=True):
                frames[row, : kept[row]] = output[: kept[row]]
        return {"projected": self.head(frames), "frames": frames.detach(), "lengths": to_device(kept, waveforms.device)}

    def _encode(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        config, samples = self.encoder.config, waveforms.shape[1]
        total = int(self.encoder.frame_lengths(torch.tensor(samples)))
        # S3PRL cuts the samples into as many equal parts as there are frames. A frame is padding if its part is.
        valid = torch.ceil(lengths / (samples // total)).long().clamp(max=total)
        # transformers counts frames by the samples of the mask: as many as give `valid` frames.
        hop = math.prod(config.conv_stride)
        shown = (receptive_field(config) + hop * (valid - 1)).unsqueeze(1)
        mask = (torch.arange(samples, device=waveforms.device) < to_device(shown, waveforms.device)).long()
        return self.encoder.model(waveforms, attention_mask=mask).last_hidden_state


class ReleasedAdamW(torch.optim.Optimizer):
    """S3PRL's AdamW without weight decay: epsilon is added before the bias correction of the second moment.

        p -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

    The arguments are as for `torch.optim.AdamW`.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-7) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in [parameter for parameter in group["params"] if parameter.grad is not None]:
                gradient, state = parameter.grad, self.state[parameter]
                if not state:
                    moments = {name: torch.zeros_like(gradient) for name in ("exp_avg", "exp_avg_sq")}
                    state |= {"step": 0, **moments}
                state["step"] += 1
                state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                size = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
