"""Copies between the CPU and the device that trains for which the program does not wait."""

from __future__ import annotations

from collections.abc import Callable

import torch


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on `device`. From the CPU to CUDA they go through pinned memory, without a host sync."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def read_later(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy `values` to the CPU; the function returned gives the copy, and waits if the device is not done."""
    copied = values.to("cpu", non_blocking=True)
    if values.device.type != "cuda":
        return lambda: copied
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))

    def read() -> torch.Tensor:
        done.synchronize()
        return copied

    return read
