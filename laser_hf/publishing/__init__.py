"""From a finished run to a folder and a Hub repository that plain transformers loads."""

from __future__ import annotations

import importlib
from typing import Any

# Looked up on first use: pushing needs no transformers in its own process, which takes seconds to import.
_LAZY = {
    "export_encoder": ".export",
    "find_facts": ".facts",
    "render_card": ".card",
    "sample_features": ".export",
}

__all__ = ["export_encoder", "find_facts", "render_card", "sample_features"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
