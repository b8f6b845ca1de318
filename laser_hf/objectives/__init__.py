"""Training objectives: one file a method, frames and lengths in, named loss terms per pair out."""

from .head import ProjectionHead
from .idm import contrastive_idm
from .laser import LaserLoss

__all__ = ["LaserLoss", "ProjectionHead", "contrastive_idm"]
