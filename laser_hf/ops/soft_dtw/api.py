"""`soft_dtw`, its normalised form and its expected alignment: argument checks and choice of the backend."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache

import torch
from torch import Tensor

from ...plugins import Option
from ...transfer import to_device
from . import IDM, operators
from .reference import ReferenceSoftDTW

Counts = Tensor | None
"""Frames in use of each sequence, `(batch,)`; `None` for all."""


class SoftDTWBackendError(ValueError):
    """An unknown soft-DTW backend, or one that cannot run on the given tensors."""


BACKENDS = ("reference", "cpu", "triton")
"""What `backend=` accepts besides "auto"."""
_GAMMA = Option("gamma", 0.1, "smoothing of soft-DTW", above=0)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
# Triton's interpreter runs the kernels on CPU tensors; the tests use it where there is no GPU.
_TRITON_DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


@cache
def _announce(reason: str) -> None:
    warnings.warn(f"soft-DTW runs in plain PyTorch (backend 'reference'): {reason}", stacklevel=4)


def pick_backend(name: str, tensor: Tensor) -> str:
    """Resolve `backend=` for `tensor`: "auto" is "cpu" on the CPU, "triton" for float32 on CUDA, else "reference".

    If "auto" has to take "reference" on an accelerator, a warning says so once.

    Raises:
        SoftDTWBackendError: a backend that does not exist or cannot run on this tensor.
    """
    kind, fault = tensor.device.type, ""
    if name not in ("auto", *BACKENDS):
        raise SoftDTWBackendError(f"unknown soft-DTW backend {name!r}; choose one of: auto, {', '.join(BACKENDS)}")
    wanted = name if name != "auto" else "cpu" if kind == "cpu" else "triton"
    if wanted == "cpu" and kind != "cpu":
        fault = f"cannot take tensors on {tensor.device}"
    elif wanted == "triton" and kind not in _TRITON_DEVICES:
        fault = f"cannot take tensors on {tensor.device}, only on CUDA"
    elif wanted == "triton" and not _TRITON_INSTALLED:
        fault = "needs Triton (pip install triton)"
    elif wanted == "triton" and tensor.dtype != torch.float32:
        fault = f"takes float32, got {tensor.dtype}"
    if not fault:
        return wanted
    if name != "auto":
        raise SoftDTWBackendError(f"backend {name!r} {fault}; use 'auto' or 'reference'")
    _announce(f"backend {wanted!r} {fault}")
    return "reference"


def check_tensor(name: str, tensor: Tensor, shape: str, dims: int) -> None:
    """Raise `ValueError` unless `tensor` has `dims` dimensions, in words `shape`, and is float32 or float64."""
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {tensor.dtype}; cast with .float() first")


def check_lengths(lengths: Counts, batch: int, longest: int, device: torch.device, name: str) -> Tensor:
    """Return `lengths` as int64 `(batch,)` on `device`; `None` means that nothing is padded.

    Raises `ValueError` on a wrong shape, and on values outside 1..longest unless reading them is a host sync.
    """
    if lengths is None:
        return torch.full((batch,), longest, dtype=torch.int64, device=device)
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"{name} must have shape ({batch},), got {tuple(lengths.shape)}")
    # A compiled graph cannot branch on values; the backend checks them then.
    seen = lengths.device.type == "cpu" and batch and not torch.compiler.is_compiling()
    if seen and (lengths.min() < 1 or lengths.max() > longest):
        raise ValueError(f"{name} must lie between 1 and {longest}, got {lengths.tolist()}")
    return to_device(lengths.to(torch.int64), device)


def frames_in_use(lengths: Tensor, longest: int) -> Tensor:
    """Mask `(batch, longest)`: true for the first `lengths` frames of each row."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def soft_dtw(
    cost: Tensor, lengths_x: Counts = None, lengths_y: Counts = None, gamma: float = 0.1, backend: str = "auto"
) -> Tensor:
    """Soft-DTW value of each cost matrix of a ragged batch (Cuturi & Blondel 2017, Eq. 1).

    Args:
        cost: local costs, `(batch, m, n)`, float32 or float64 (float32 for "triton"). Entries beyond the lengths are
            ignored (they may even be NaN) and receive a gradient of exactly zero.
        lengths_x, lengths_y: rows and columns in use of each matrix, `(batch,)`; `None` for all of them.
        gamma: smoothing; the softmin goes to the minimum as gamma goes to 0.
        backend: "auto" or one of `BACKENDS`.

    Returns:
        `(batch,)` in the dtype of `cost`. Differentiable once with respect to `cost`.

    Raises:
        ValueError: wrong shapes, an integer or half-precision cost, lengths out of range, gamma <= 0.
        SoftDTWBackendError: unknown backend.
    """
    check_tensor("cost", cost, "(batch, m, n)", 3)
    batch, m, n = cost.shape
    if m == 0 or n == 0:
        raise ValueError(f"cost must have at least one row and one column, got {tuple(cost.shape)}")
    gamma = _GAMMA.check(gamma)
    lengths_x = check_lengths(lengths_x, batch, m, cost.device, "lengths_x")
    lengths_y = check_lengths(lengths_y, batch, n, cost.device, "lengths_y")
    backend = pick_backend(backend, cost)
    if batch == 0:
        return cost.sum(dim=(1, 2))
    if backend != "reference":
        return operators.soft_dtw(cost, lengths_x, lengths_y, gamma, backend, _wants_gradient(cost))[0]
    valid = frames_in_use(lengths_x, m).unsqueeze(2) & frames_in_use(lengths_y, n).unsqueeze(1)
    cost = cost.masked_fill(~valid, 0.0)
    return ReferenceSoftDTW.apply(cost, lengths_x, lengths_y, gamma)


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances `(batch, m, n)` between frames `(batch, m, d)` and `(batch, n, d)`.

    By one matrix product; the `m x n x d` expansion of the released code needs gigabytes.
    """
    return x.square().sum(-1).unsqueeze(2) + y.square().sum(-1).unsqueeze(1) - 2.0 * torch.bmm(x, y.transpose(1, 2))


def check_frames(x: Tensor, y: Tensor) -> None:
    """Raise `ValueError` unless `x` is `(batch, m, d)` and `y` `(batch, n, d)`."""
    if x.dim() != 3 or y.dim() != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must have shapes (batch, m, d) and (batch, n, d), equal batch and d; got {shapes}")


def soft_dtw_divergence(
    x: Tensor, y: Tensor, lengths_x: Counts = None, lengths_y: Counts = None, gamma: float = 0.1, backend: str = "auto"
) -> Tensor:
    """Normalised soft-DTW, `xy - (xx + yy) / 2`, with squared Euclidean cost (LASER, Eq. 3).

    Zero for `x == y`, and positive otherwise up to the bias of soft-DTW (Blondel et al., AISTATS 2021).

    Args:
        x, y: frames `(batch, m, d)` and `(batch, n, d)`. Padded frames never change a value or a gradient.
        lengths_x, lengths_y: frames in use, `(batch,)`.
        gamma, backend: as in `soft_dtw`; so are the result and the errors.
    """
    check_frames(x, y)
    (batch, m, _), n = x.shape, y.shape[1]
    if batch and pick_backend(backend, x) != "reference":
        return pair_terms(x, y, lengths_x, lengths_y, gamma, backend=backend)[0]
    lengths_x = check_lengths(lengths_x, batch, m, x.device, "lengths_x")
    lengths_y = check_lengths(lengths_y, batch, n, y.device, "lengths_y")
    # Zeroed padding, so that NaN or inf there cannot reach a valid gradient through the matrix products.
    x = x.masked_fill(~frames_in_use(lengths_x, m).unsqueeze(2), 0.0)
    y = y.masked_fill(~frames_in_use(lengths_y, n).unsqueeze(2), 0.0)
    # The three problems of every pair share one recursion: its time is in the loop over diagonals, not in the batch.
    size = max(m, n)
    x = torch.nn.functional.pad(x, (0, 0, 0, size - m))
    y = torch.nn.functional.pad(y, (0, 0, 0, size - n))
    cost = squared_euclidean(torch.cat((x, x, y)), torch.cat((y, x, y)))
    lengths = torch.cat((lengths_x, lengths_x, lengths_y)), torch.cat((lengths_y, lengths_x, lengths_y))
    xy, xx, yy = soft_dtw(cost, *lengths, gamma, backend).reshape(3, batch).unbind(0)
    return xy - 0.5 * (xx + yy)


def pair_terms(
    x: Tensor,
    y: Tensor,
    lengths_x: Counts = None,
    lengths_y: Counts = None,
    gamma: float = 0.1,
    alpha: float = 0.0,
    idm: IDM | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`soft_dtw + alpha idm`, the normalised soft-DTW, and the IDM terms of both views, added (0 without `idm`).

    Three tensors `(batch,)` from one computation of the distances. The first is the cheapest to differentiate; training
    needs no other gradient. Arguments and errors are otherwise as for `soft_dtw_divergence`.

    Raises:
        SoftDTWBackendError: backend "reference".
    """
    check_frames(x, y)
    if x.dtype not in (torch.float32, torch.float64) or x.dtype != y.dtype:
        raise ValueError(f"frames must be float32 or float64, both alike; got {x.dtype} and {y.dtype}")
    backend = pick_backend(backend, x)
    if backend == "reference":
        raise SoftDTWBackendError("pair_terms needs a compiled backend: 'cpu' or 'triton'")
    lengths_x = check_lengths(lengths_x, len(x), x.shape[1], x.device, "lengths_x")
    lengths_y = check_lengths(lengths_y, len(y), y.shape[1], y.device, "lengths_y")
    weights = torch.stack((x.new_ones(len(x)), x.new_full((len(x),), alpha))) if _wants_gradient(x, y) else None
    settings = (_GAMMA.check(gamma), *(idm or operators.NO_IDM), backend)
    return operators.pair_terms(x, y, lengths_x, lengths_y, weights, float(alpha), *settings)[:3]


def soft_dtw_alignment(
    x: Tensor, y: Tensor, lengths_x: Counts = None, lengths_y: Counts = None, gamma: float = 0.1, backend: str = "auto"
) -> Tensor:
    """Expected alignment matrix `(batch, m, n)`: the gradient of soft-DTW by its cost (Cuturi & Blondel 2017).

    Entry (i, j) is the probability that the alignment passes through the frames i and j. The result has no graph.
    """
    check_frames(x, y)
    with torch.enable_grad():
        cost = squared_euclidean(x.detach(), y.detach()).requires_grad_()
        value = soft_dtw(cost, lengths_x, lengths_y, gamma, backend).sum()
        (alignment,) = torch.autograd.grad(value, cost)
    return alignment
