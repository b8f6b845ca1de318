"""From a finished run to a folder and a Hub repository that plain transformers loads."""

from .export import export_encoder, sample_features

__all__ = ["export_encoder", "sample_features"]
