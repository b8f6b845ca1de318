"""Spin: each view of an utterance predicts the codes of the other's frames."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from ..ops.soft_dtw.api import frames_in_use
from ..plugins import Option
from .objective import Objective
from .sinkhorn import EPSILON, ITERATIONS, several_processes, sinkhorn


class SpinLoss(Objective):
    """The Spin loss (Chang et al., after SwAV). With unit frames z, unit codes c_k,
    p(k | z) = softmax_k(z c_k / temperature) and q the codes that Sinkhorn assigns to the frames of one view:

        L = mean over frames of  -1/2 sum_k [ q(k | y) log p(k | x) + q(k | x) log p(k | y) ]

    The views must be frame-aligned: they may differ in the speaker's voice, not in the timing.

    The valid frames of a view, over all pairs and all processes of the batch, are assigned to codes together; padding
    takes no part. With several processes, each must call `forward` equally often, in evaluation too, with zero rows if
    it has no pairs; otherwise the others wait for it. In eval mode the codes are normalised for the call only; the
    codebook stays as it is.

    Terms, each a sum over the frames of a pair: `swapped_x` and `swapped_y` are the cross-entropies of the first and
    of the second view; `total` is their mean. `perplexity` and `code_perplexity` (of the Sinkhorn targets and of the
    nearest codes) are one effective number of codes for the whole batch, times the frames of the pair; they have no
    gradient.

    Args:
        dim: dimension of the projected frames.
        options: `codes` (K in the paper), `temperature`, `epsilon`, `iterations`.

    Raises:
        LaserError: a parameter out of its range.
    """

    name = "spin"
    title = "Spin"
    summary = (
        "Each view predicts the codes that balanced clustering (Sinkhorn) assigns to the frames of the other view at "
        "the same times."
    )
    paper = (
        "Chang, Liu and Glass, Self-supervised Fine-tuning for Improved Content Representations by Speaker-invariant "
        "Clustering, Interspeech 2023, https://arxiv.org/abs/2305.11072"
    )
    bibtex = """\
@inproceedings{chang2023spin,
  title     = "Self-supervised Fine-tuning for Improved Content Representations by Speaker-invariant Clustering",
  author    = "Chang, Heng-Jui and Liu, Alexander H. and Glass, James",
  booktitle = "Proc. Interspeech",
  year      = "2023",
  eprint    = "2305.11072",
  archivePrefix = "arXiv"
}"""
    options = (
        Option("codes", 256, "size of the codebook (128 to 2048 in the paper)", low=2),
        Option("temperature", 0.1, "temperature of the predictions", above=0),
        EPSILON,
        ITERATIONS,
    )
    term_labels: ClassVar = {
        "total": "total loss",
        "swapped_x": "cross-entropy: clean frames, codes of the perturbed view",
        "swapped_y": "cross-entropy: perturbed frames, codes of the clean view",
        "perplexity": "effective codes, targets",
        "code_perplexity": "effective codes, nearest to frames",
    }
    unit = "frames"
    equal_lengths = True

    def __init__(self, dim: int = 256, **options: Any):
        super().__init__(**options)
        dim = Option("dim", 256, "", low=1).check(dim)
        self.codebook = nn.Linear(dim, self.codes, bias=False)
        self.prepare_update()

    @classmethod
    def build(cls, dim: int, **values: Any) -> SpinLoss:
        return cls(dim, **cls.checked(values))

    @torch.no_grad()
    def prepare_update(self) -> None:
        """Bring every code back to unit length, in place and outside the graph, as the released code does."""
        self.codebook.weight.copy_(nn.functional.normalize(self.codebook.weight, dim=1))

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        if x.shape[2] != self.codebook.in_features:
            raise ValueError(
                f"x must have shape (batch, frames, {self.codebook.in_features}), the dimension of the codebook, got "
                f"{tuple(x.shape)}; give SpinLoss the dim of the projection"
            )
        valid = frames_in_use(m, x.shape[1])
        codebook = self.codebook.weight.to(x.dtype)
        if not self.training:
            codebook = nn.functional.normalize(codebook, dim=1)
        scores_x, scores_y = (nn.functional.linear(view[valid], codebook) for view in (x, y))
        targets_x, targets_y = (sinkhorn(scores, self.epsilon, self.iterations) for scores in (scores_x, scores_y))
        swapped_x, swapped_y = (
            _sum_per_pair(-(targets * (scores / self.temperature).log_softmax(dim=1)).sum(dim=1), valid)
            for scores, targets in ((scores_x, targets_y), (scores_y, targets_x))
        )
        in_targets, nearest = _perplexities(torch.cat((targets_x, targets_y)), torch.cat((scores_x, scores_y)))
        values = (0.5 * (swapped_x + swapped_y), swapped_x, swapped_y, in_targets * m, nearest * m)
        return dict(zip(self.term_names, values, strict=True))


def _sum_per_pair(per_frame: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return per_frame.new_zeros(valid.shape).masked_scatter(valid, per_frame).sum(dim=1)


@torch.no_grad()
def _perplexities(targets: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Effective numbers of codes in the targets and among the nearest codes, over all processes: `(2,)`."""
    nearest = torch.bincount(scores.argmax(dim=1), minlength=scores.shape[1])
    counts = torch.stack((targets.sum(dim=0), nearest.to(targets.dtype)))
    if several_processes():
        dist.all_reduce(counts)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.special.entr(shares).sum(dim=1).exp()
