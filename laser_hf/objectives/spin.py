"""Spin: each view of an utterance predicts the codes of the other's frames.

Chang, Liu & Glass, "Self-supervised Fine-tuning for Improved Content Representations by Speaker-invariant
Clustering", Interspeech 2023, after SwAV (Caron et al., NeurIPS 2020). With unit frames z, unit codes c_k,
p(k | z) = softmax_k(z c_k / temperature) and q the codes that Sinkhorn assigns to the frames of one view:

    L = mean over frames of  -1/2 sum_k [ q(k | y) log p(k | x) + q(k | x) log p(k | y) ]

The views must be frame-aligned: what differs between them may be the speaker's voice, not the timing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ..ops.soft_dtw.api import check_lengths
from .objective import Objective, in_full_precision
from .sinkhorn import check_sinkhorn_parameters, several_processes, sinkhorn


class SpinLoss(Objective):
    """The Spin loss of a ragged batch of frame-aligned pairs, always in float32 (float64 stays float64).

    The valid frames of a view, over all pairs and all processes of the batch, are assigned to codes together; padding
    takes no part. Where several processes train, each must call `forward` equally often, in evaluation too, with zero
    rows if it has no pairs: the others wait for it.

    Args:
        dim: dimension of the projected frames.
        codes: entries of the codebook (K in the paper, 128 to 2048).
        temperature: of the predictions.
        epsilon: smoothing of the Sinkhorn targets.
        iterations: Sinkhorn iterations.

    Raises:
        ValueError: a parameter out of its range.
    """

    term_names = ("total", "swapped_x", "swapped_y", "perplexity", "code_perplexity")
    citation = (
        "@inproceedings{chang23_interspeech, title={Self-supervised Fine-tuning for Improved Content Representations "
        "by Speaker-invariant Clustering}, author={Heng-Jui Chang and Alexander H. Liu and James Glass}, "
        "booktitle={Interspeech}, year={2023}}"
    )
    unit = "frames"

    def __init__(
        self,
        dim: int = 256,
        codes: int = 256,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        iterations: int = 3,
    ):
        super().__init__()
        for name, value, smallest in (("dim", dim, 1), ("codes", codes, 2)):
            if isinstance(value, bool) or int(value) != value or value < smallest:
                raise ValueError(f"{name} must be a whole number, at least {smallest}, got {value!r}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a positive finite number, got {temperature!r}")
        check_sinkhorn_parameters(epsilon, iterations)
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.codebook = nn.Linear(int(dim), int(codes), bias=False)
        self.prepare_update()

    @torch.no_grad()
    def prepare_update(self) -> None:
        """Bring every code back to unit length, in place and outside the graph, as the released code does."""
        self.codebook.weight.copy_(nn.functional.normalize(self.codebook.weight, dim=1))

    def forward(
        self, x: torch.Tensor, lengths_x: torch.Tensor, y: torch.Tensor, lengths_y: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss terms of each pair, as sums over its frames.

        In eval mode the codes are brought to unit length for the call; the codebook stays as it is.

        Args:
            x: projected unit-norm frames of the clean views, `(batch, frames, dim)`.
            lengths_x: frames in use, `(batch,)`.
            y: frames of the perturbed views, aligned with `x`, in the same shape.
            lengths_y: frames in use, equal to `lengths_x`.

        Returns:
            Each `(batch,)`; divided by the frames of the pairs they are means per frame.

            - `total`: mean of `swapped_x` and `swapped_y`.
            - `swapped_x`: cross-entropy of the predictions of `x` with the targets of `y`; `swapped_y` the other way.
            - `perplexity`: effective number of codes (exp of the entropy) in the targets of both views, times the
              frames of the pair. Sinkhorn holds it near `codes`; fewer frames than codes pull it down.
            - `code_perplexity`: the same of the nearest codes of the frames, which nothing balances; a fall towards 1
              is collapse. Both are of the frames of all processes and without graph.

        Raises:
            ValueError: views that are not frame-aligned, or frames of another dimension than the codebook's.
        """
        with torch.autocast(device_type=x.device.type, enabled=False):
            x, y = in_full_precision(x, y)
            valid = self._valid_frames(x, lengths_x, y, lengths_y)
            codebook = self.codebook.weight.to(x.dtype)
            if not self.training:
                codebook = nn.functional.normalize(codebook, dim=1)
            scores_x, scores_y = (nn.functional.linear(view[valid], codebook) for view in (x, y))
            targets_x, targets_y = (sinkhorn(part, self.epsilon, self.iterations) for part in (scores_x, scores_y))
            swapped_x, swapped_y = (
                self._sum_per_pair(-(targets * (scores / self.temperature).log_softmax(dim=1)).sum(dim=1), valid)
                for scores, targets in ((scores_x, targets_y), (scores_y, targets_x))
            )
            frames = valid.sum(dim=1)
            in_targets, nearest = _perplexities(torch.cat((targets_x, targets_y)), torch.cat((scores_x, scores_y)))
            terms = (0.5 * (swapped_x + swapped_y), swapped_x, swapped_y, in_targets * frames, nearest * frames)
            return dict(zip(self.term_names, terms, strict=True))

    def _valid_frames(self, x, lengths_x, y, lengths_y) -> torch.Tensor:
        """Mask `(batch, frames)` of the frames in use, the same for both views."""
        if x.dim() != 3 or x.shape[2] != self.codebook.in_features:
            raise ValueError(
                f"x must have shape (batch, frames, {self.codebook.in_features}), the dimension of the codebook, got "
                f"{tuple(x.shape)}; give SpinLoss the dim of the projection"
            )
        hint = "Spin needs perturbations that keep the duration (voice, equalizer, noise; pitch without speed)"
        if x.shape != y.shape:
            raise ValueError(f"the views are not frame-aligned: shapes {tuple(x.shape)} and {tuple(y.shape)}; {hint}")
        lengths_x = check_lengths(lengths_x, len(x), x.shape[1], x.device, "lengths_x")
        lengths_y = check_lengths(lengths_y, len(y), y.shape[1], y.device, "lengths_y")
        if not torch.equal(lengths_x, lengths_y):
            raise ValueError(
                f"the views are not frame-aligned: {lengths_x.tolist()} and {lengths_y.tolist()} frames; {hint}"
            )
        return torch.arange(x.shape[1], device=x.device) < lengths_x.unsqueeze(1)

    @staticmethod
    def _sum_per_pair(per_frame: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return per_frame.new_zeros(valid.shape).masked_scatter(valid, per_frame).sum(dim=1)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, epsilon={self.epsilon}, iterations={self.iterations}"


@torch.no_grad()
def _perplexities(targets: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Effective numbers of codes in the targets and among the nearest codes, over all processes: `(2,)`."""
    nearest = torch.bincount(scores.argmax(dim=1), minlength=scores.shape[1])
    counts = torch.stack((targets.sum(dim=0), nearest.to(targets.dtype)))
    if several_processes():
        dist.all_reduce(counts)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.special.entr(shares).sum(dim=1).exp()
