"""Training objectives: they take frames and lengths of two views and return loss terms of each pair."""

from ..ops.soft_dtw.api import frames_in_use
from ..plugins import Option, find_plugin
from .idm import MseIdmLoss, contrastive_idm
from .laser import LaserLoss, ScoreLoss, SoftDTWLoss
from .objective import Objective, ProjectionHead
from .spin import SpinLoss, sinkhorn

OBJECTIVES: dict[str, type[Objective]] = {o.name: o for o in (LaserLoss, SoftDTWLoss, ScoreLoss, SpinLoss, MseIdmLoss)}
"""The shipped objectives by name."""


def find_objective(name: str) -> type[Objective]:
    """The objective called `name`: one of `OBJECTIVES`, or your own as `package.module:Class`; see `find_plugin`."""
    return find_plugin(name, Objective, OBJECTIVES)


__all__ = [
    "OBJECTIVES", "LaserLoss", "MseIdmLoss", "Objective", "Option", "ProjectionHead", "ScoreLoss", "SoftDTWLoss",
    "SpinLoss", "contrastive_idm", "find_objective", "frames_in_use", "sinkhorn",
]  # fmt: skip
