"""Training objectives: one file a method, frames and lengths in, named loss terms per pair out."""

from .head import ProjectionHead
from .idm import contrastive_idm
from .laser import LaserLoss
from .objective import Objective
from .score import ScoreLoss
from .sinkhorn import sinkhorn
from .soft_dtw import SoftDTWLoss
from .spin import SpinLoss

__all__ = [
    "LaserLoss",
    "Objective",
    "ProjectionHead",
    "ScoreLoss",
    "SoftDTWLoss",
    "SpinLoss",
    "contrastive_idm",
    "sinkhorn",
]
