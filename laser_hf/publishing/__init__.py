"""From a finished run to a folder (and later a Hub repository) that plain transformers loads."""

from .export import export_encoder

__all__ = ["export_encoder"]
