"""Spin: each view of an utterance predicts the codes of the other's frames, which Sinkhorn-Knopp assigns."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from ..ops.soft_dtw.api import check_tensor, frames_in_use
from ..plugins import Option
from .objective import Objective

EPSILON = Option("epsilon", 0.02, "entropy weight of the Sinkhorn targets", above=0)
ITERATIONS = Option("iterations", 3, "Sinkhorn iterations", low=1)


def several_processes() -> bool:
    """Whether this process is one of several of `torch.distributed`."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _logsumexp_of_codes(log_q: torch.Tensor, used: torch.Tensor | None) -> torch.Tensor:
    own = torch.logsumexp(log_q if used is None else log_q.masked_fill(~used.unsqueeze(1), -torch.inf), dim=0)
    if not several_processes():
        return own
    largest = own.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (own - largest).exp()
    dist.all_reduce(total, dist.ReduceOp.SUM)
    return total.log() + largest


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int, used: torch.Tensor | None = None) -> torch.Tensor:
    """Distribution over codes of each frame, such that all frames together use all codes nearly alike.

    Cuturi, "Sinkhorn Distances" (NeurIPS 2013), with the few steps of SwAV (Caron et al., NeurIPS 2020, Sec. 3.1):

        Q = exp(scores / epsilon);  repeat: every code sums to 1 over the frames, then every frame to 1 over the codes

    SwAV's constants 1/K and 1/B cancel from step to step, and its last step makes every frame sum to 1 too. Everything
    is computed as logarithms: exp(scores / epsilon) overflows float32 where a score exceeds 88 epsilon.

    With several processes of `torch.distributed`, their frames are assigned together, as if they were in one process.
    Each must then call this equally often, with `(0, codes)` if it has no frames.

    Args:
        scores: similarities `(frames, codes)`, float32 or float64.
        epsilon: smoothing, in units of the scores; the assignment becomes one-hot as it goes to 0.
        iterations: how often both steps are repeated; codes are exactly balanced only in the limit.
        used: bool `(frames,)`: the others are padding, and get zeros; `None` for all.

    Returns:
        `(frames, codes)` in the dtype of `scores`, rows of sum 1, without graph.

    Raises:
        ValueError: wrong shape, half precision, epsilon <= 0, iterations < 1.
    """
    check_tensor("scores", scores, "(frames, codes)", 2)
    log_q = scores / EPSILON.check(epsilon)
    for _ in range(ITERATIONS.check(iterations)):
        log_q = (log_q - _logsumexp_of_codes(log_q, used)).log_softmax(dim=1)
    return log_q.exp() if used is None else log_q.exp().masked_fill(~used.unsqueeze(1), 0.0)


class SpinLoss(Objective):
    """The Spin loss (Chang et al., after SwAV). With unit frames z, unit codes c_k,
    p(k | z) = softmax_k(z c_k / temperature) and q the codes that Sinkhorn assigns to the frames of one view:

        L = mean over frames of  -1/2 sum_k [ q(k | y) log p(k | x) + q(k | x) log p(k | y) ]

    The views must be frame-aligned: they may differ in the speaker's voice, not in the timing.

    The frames in use of a view, over all pairs and processes, are assigned to codes together (`sinkhorn`), so several
    processes must call `forward` equally often, in evaluation too, with zero rows if they have no pairs. In eval mode
    the codes are normalised for the call only.

    Terms, each a sum over the frames of a pair: `swapped_x` and `swapped_y` are the cross-entropies of the views,
    `total` is their mean. `perplexity` and `code_perplexity` (of the Sinkhorn targets and of the nearest codes) are one
    effective number of codes for the whole batch, times the frames of the pair; they have no gradient.

    Args:
        dim: dimension of the projected frames.
        options: `codes` (K in the paper), `temperature`, `epsilon`, `iterations`.
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
    short_labels: ClassVar = {"swapped_x": "CE clean", "swapped_y": "CE perturbed", "code_perplexity": "nearest"}
    unit = "frames"
    equal_lengths = True

    def __init__(self, dim: int = 256, **options: Any):
        super().__init__(**options)
        self.codebook = nn.Linear(Option("dim", 256, "", low=1).check(dim), self.codes, bias=False)
        self.prepare_update()

    @classmethod
    def build(cls, dim: int, **values: Any) -> SpinLoss:
        return cls(dim, **cls.checked(values))

    @torch.no_grad()
    def prepare_update(self) -> None:
        """Bring every code back to unit length, in place and outside the graph, as the released code does."""
        self.codebook.weight.copy_(nn.functional.normalize(self.codebook.weight, dim=1))

    def terms(self, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> dict[str, torch.Tensor]:
        if x.shape[2] != (dim := self.codebook.in_features):
            shape = tuple(x.shape)
            raise ValueError(f"x must have shape (batch, frames, {dim}), the dimension of the codebook, got {shape}")
        # Padding is masked: to take the frames in use by a boolean index would be a host sync.
        valid = frames_in_use(m, x.shape[1])
        used = valid.flatten()
        codebook = self.codebook.weight.to(x.dtype)
        if not self.training:
            codebook = nn.functional.normalize(codebook, dim=1)
        scores_x, scores_y = (
            nn.functional.linear(view.masked_fill(~valid.unsqueeze(2), 0.0).flatten(0, 1), codebook) for view in (x, y)
        )
        targets_x, targets_y = (sinkhorn(one, self.epsilon, self.iterations, used=used) for one in (scores_x, scores_y))
        swapped_x, swapped_y = (
            -(targets * (scores / self.temperature).log_softmax(dim=1)).sum(dim=1).reshape(valid.shape).sum(dim=1)
            for scores, targets in ((scores_x, targets_y), (scores_y, targets_x))
        )
        both = ((targets_x, targets_y), (scores_x, scores_y), (used, used))
        in_targets, nearest = _perplexities(*map(torch.cat, both))
        values = (0.5 * (swapped_x + swapped_y), swapped_x, swapped_y, in_targets * m, nearest * m)
        return dict(zip(self.term_names, values, strict=True))


@torch.no_grad()
def _perplexities(targets: torch.Tensor, scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Effective numbers of codes in the targets and among the nearest codes, over all processes: `(2,)`."""
    codes = torch.arange(scores.shape[1], device=scores.device)
    nearest = (scores.argmax(dim=1, keepdim=True) == codes) & used.unsqueeze(1)
    counts = torch.stack((targets.sum(dim=0), nearest.sum(dim=0).to(targets.dtype)))
    if several_processes():
        dist.all_reduce(counts)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.special.entr(shares).sum(dim=1).exp()
