"""Sinkhorn-Knopp: soft assignment of frames to codes that uses all codes alike, over all processes.

Cuturi, "Sinkhorn Distances" (NeurIPS 2013), with the few steps of Caron et al., "Unsupervised Learning of Visual
Features by Contrasting Cluster Assignments" (SwAV, NeurIPS 2020), Sec. 3.1.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..plugins import Option

EPSILON = Option("epsilon", 0.02, "entropy weight of the Sinkhorn targets", above=0)
ITERATIONS = Option("iterations", 3, "Sinkhorn iterations", low=1)


def several_processes(group: dist.ProcessGroup | None = None) -> bool:
    """Whether the frames of a batch are spread over the processes of `group` (`None`: all of them)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _logsumexp_of_codes(log_q: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Logsumexp over the frames of all processes, `(codes,)`; a process without frames adds nothing."""
    own = torch.logsumexp(log_q, dim=0)
    if not several_processes(group):
        return own
    largest = own.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    total = (own - largest).exp()
    dist.all_reduce(total, dist.ReduceOp.SUM, group=group)
    return total.log() + largest


@torch.no_grad()
def sinkhorn(
    scores: torch.Tensor, epsilon: float, iterations: int, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Distribution over codes of each frame, such that all frames together use all codes nearly alike.

        Q = exp(scores / epsilon);  repeat: every code sums to 1 over the frames, then every frame to 1 over the codes

    SwAV keeps the sum of Q at 1, that of each code at 1/K and that of each frame at 1/B; these constants cancel in the
    next step, and its last step makes every frame sum to 1 too. Everything is computed as logarithms: exp(scores /
    epsilon) overflows float32 where a score exceeds 88 epsilon.

    With several processes of `torch.distributed`, the frames of all of them are assigned together, as if they were in
    one process. Each must then call this equally often, with `(0, codes)` if it has no frames.

    Args:
        scores: similarities of frames and codes, `(frames, codes)`, float32 or float64.
        epsilon: smoothing, in units of the scores; the assignment becomes one-hot as it goes to 0.
        iterations: how often both steps are repeated; codes are exactly balanced only in the limit.
        group: processes that share the frames; `None` for all.

    Returns:
        `(frames, codes)` in the dtype of `scores`, rows of sum 1, without graph.

    Raises:
        ValueError: wrong shape, half precision, epsilon <= 0, iterations < 1.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must have shape (frames, codes), got {tuple(scores.shape)}")
    if scores.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"scores must be float32 or float64, got {scores.dtype}; cast them with .float() first")
    log_q = scores / EPSILON.check(epsilon)
    for _ in range(ITERATIONS.check(iterations)):
        log_q = (log_q - _logsumexp_of_codes(log_q, group)).log_softmax(dim=1)
    return log_q.exp()
