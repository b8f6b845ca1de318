"""An allocator hint for training on a CPU: glibc returns large freed blocks, so every new tensor is paged in again."""

from __future__ import annotations

import ctypes

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep, for good, the memory it frees for its next tensors; `False` without glibc's allocator."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
