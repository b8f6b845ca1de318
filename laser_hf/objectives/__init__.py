"""Training objectives: one file for each method, which takes frames and lengths and returns loss terms per pair."""

from ..ops.soft_dtw.api import frames_in_use
from ..plugins import Option, find_plugin
from .head import ProjectionHead
from .idm import contrastive_idm
from .laser import LaserLoss
from .mse_idm import MseIdmLoss
from .objective import Objective
from .score import ScoreLoss
from .sinkhorn import sinkhorn
from .soft_dtw import SoftDTWLoss
from .spin import SpinLoss

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (LaserLoss, SoftDTWLoss, ScoreLoss, SpinLoss, MseIdmLoss)
}
"""The shipped objectives by name."""


def find_objective(name: str) -> type[Objective]:
    """The objective called `name`: one of `OBJECTIVES`, or a class of your own as `package.module:Class`.

    Raises:
        LaserError: unknown name, a module that cannot be imported, or a class that is no objective.
    """
    return find_plugin(name, Objective, OBJECTIVES)


__all__ = [
    "OBJECTIVES",
    "LaserLoss",
    "MseIdmLoss",
    "Objective",
    "Option",
    "ProjectionHead",
    "ScoreLoss",
    "SoftDTWLoss",
    "SpinLoss",
    "contrastive_idm",
    "find_objective",
    "frames_in_use",
    "sinkhorn",
]
