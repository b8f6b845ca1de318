"""Signs of representation collapse: how alike the frames of different moments are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# Frames entering the statistics: enough for a stable spectrum, few enough for a singular value decomposition.
MAX_FRAMES = 512


def pick_frames(frames: torch.Tensor, lengths: torch.Tensor, count: int = MAX_FRAMES) -> torch.Tensor:
    """At most `count` valid frames of a batch `(batch, frames, dim)`, evenly spaced, as `(count, dim)` float32.

    Without random numbers, so that looking does not change a run.
    """
    inside = torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(1)
    valid = frames.detach()[inside].float()
    if len(valid) > count:
        valid = valid[torch.linspace(0, len(valid) - 1, count, device=valid.device).long()]
    return valid


@dataclass
class CollapseMonitor:
    """Decides from the projected unit-norm frames whether a run collapses.

    It fires when the mean pairwise cosine has covered `cosine_fraction` of the way from where the run started to 1
    (all frames point the same way), or when the effective rank has fallen below `rank_fraction` of its start. Both
    are relative, because encoders differ in how alike their frames are to begin with. Soft-DTW without its
    regulariser collapses so (LASER, Table 3). Measured on held-out frames where there are any, else on
    training frames.

    Attributes:
        start: first measurement of the run, the reference; kept through a resume.
        fired_at: step of the first alarm, or `None`.
    """

    cosine_fraction: float = 0.5
    rank_fraction: float = 0.5
    start: dict[str, float] | None = None
    fired_at: int | None = None
    reason: str = field(default="", compare=False)

    def check(self, step: int, cosine: float, rank: float) -> bool:
        """Note one measurement; `True` if the collapse signs are there."""
        if self.start is None:
            self.start = {"step": step, "frame_cosine": cosine, "effective_rank": rank}
        reasons = []
        start = self.start["frame_cosine"]
        limit = start + self.cosine_fraction * (1.0 - start)
        if cosine > limit:
            reasons.append(f"mean pairwise cosine {cosine:.3f} (started at {start:.3f}, limit {limit:.3f})")
        if rank < self.rank_fraction * self.start["effective_rank"]:
            reasons.append(f"effective rank {rank:.1f} (started at {self.start['effective_rank']:.1f})")
        self.reason = " and ".join(reasons)
        if reasons and self.fired_at is None:
            self.fired_at = step
        return bool(reasons)
