"""Which process trains a point, and whether it is still there."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """Host, process id and start of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def has_ended(owner: dict[str, Any]) -> bool:
    """Whether the process is known to have ended; one on another host is not, its heartbeats tell."""
    if owner["host"] != socket.gethostname():
        return False
    if owner["pid"] == os.getpid():
        return True  # a process takes a point only when it trains none
    try:
        process = psutil.Process(owner["pid"])
        # Process ids come again.
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - owner["started"]) > 1
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
