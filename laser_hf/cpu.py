"""Training a speech encoder on a CPU: cheap dropout, attention with dropout, and memory that is kept.

PyTorch's CPU dropout draws a random number of its own for every element, one after the other; attention with
dropout has no fused kernel and falls back to one with several passes over the weights. `CheapDropout` catches those
calls and leaves the model as it is: no module is exchanged, no config changed, and evaluation takes the stock kernels.
Dropout keeps its distribution and comes from PyTorch's own generator, so that seeds and saved generator states work as
ever; a seed gives other masks than PyTorch's.

The other cost is the kernel's: glibc hands large blocks back at once and every tensor is paged in anew.
`keep_freed_memory` stops that.
"""

from __future__ import annotations

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

LEVELS = 2**16
"""Dropout rates are multiples of `1 / LEVELS`: 0.1 becomes 6554 / 65536 = 0.100006."""
# Below this many elements another call costs more than the random numbers.
_SMALLEST = 4096
# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def draw_keep(shape: torch.Size, p: float) -> tuple[torch.Tensor, float]:
    """Which elements a dropout of rate `p` keeps: bool of `shape`, and the factor that keeps the expectation.

    One 64-bit draw of PyTorch's default CPU generator decides four elements by 16 bits each.
    """
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = round(p * LEVELS)
    return (bits[:count] >= dropped - LEVELS // 2).view(shape), LEVELS / (LEVELS - dropped)


class CheapDropout(TorchFunctionMode):
    """Context in which dropout of large float32 CPU tensors is drawn by `draw_keep`.

    It covers `dropout`, `scaled_dot_product_attention` and `multi_head_attention_forward` of
    `torch.nn.functional`, for this thread. Calls without dropout, on another device, under autocast or in
    `torch.compile` are passed on untouched.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Called by PyTorch for every function in the context."""
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None and _is_plain(args):
            result = replacement(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _is_plain(args: tuple) -> bool:
    first = args[0] if args else None
    return (
        isinstance(first, torch.Tensor)
        and first.device.type == "cpu"
        and first.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _draws(p: float) -> bool:
    """Whether a rate leaves anything to draw at this resolution."""
    return 0 < round(p * LEVELS) < LEVELS


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor | None:
    if not training or not _draws(p) or inplace or x.numel() < _SMALLEST:
        return None
    keep, factor = draw_keep(x.shape, p)
    kept = x * keep
    return kept * factor if kept.requires_grad else kept.mul_(factor)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    if not _draws(dropout_p) or is_causal or enable_gqa:
        return None
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill_(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores.add_(attn_mask)
    return _weigh(scores, value, dropout_p)


def _weigh(scores: torch.Tensor, value: torch.Tensor, p: float) -> torch.Tensor:
    """Dropped-out softmax of the scores, times the values."""
    weights = torch.softmax(scores, -1)
    keep, factor = draw_keep(weights.shape, p)
    # In place where no graph needs the weights, as in frozen layers.
    weights = weights * keep if weights.requires_grad else weights.mul_(keep)
    return weights @ (value * factor)


def _multi_head_attention(
    query,
    key,
    value,
    embed_dim,
    num_heads,
    in_proj_weight,
    in_proj_bias,
    bias_k,
    bias_v,
    add_zero_attn,
    dropout_p,
    out_proj_weight,
    out_proj_bias,
    training=True,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    use_separate_proj_weight=False,
    q_proj_weight=None,
    k_proj_weight=None,
    v_proj_weight=None,
    static_k=None,
    static_v=None,
    average_attn_weights=True,
    is_causal=False,
) -> tuple[torch.Tensor, None] | None:
    """WavLM's self-attention `(frames, batch, dim)` with a bias for every head; the weights are not returned."""
    bias_of_all = (query.shape[1] * num_heads, query.shape[0], query.shape[0])
    if (
        not training
        or not _draws(dropout_p)
        or not (query is key and key is value)
        or not use_separate_proj_weight
        or bias_k is not None
        or static_k is not None
        or static_v is not None
        or add_zero_attn
        or is_causal
        or attn_mask is None
        or not attn_mask.is_floating_point()
        or attn_mask.shape != bias_of_all
        or (key_padding_mask is not None and key_padding_mask.dtype != torch.bool)
    ):
        return None
    frames, batch, _ = query.shape
    dim = embed_dim // num_heads
    hidden = query.transpose(0, 1)
    projections = (q_proj_weight, k_proj_weight, v_proj_weight)
    q, k, v = (
        F.linear(hidden, weight, bias).view(batch, frames, num_heads, dim).transpose(1, 2).flatten(0, 1)
        for weight, bias in zip(projections, in_proj_bias.chunk(3), strict=True)
    )
    scores = torch.baddbmm(attn_mask, q * dim**-0.5, k.transpose(1, 2))
    if key_padding_mask is not None:
        by_head = scores.view(batch, num_heads, frames, frames)
        scores = by_head.masked_fill_(key_padding_mask[:, None, None], torch.finfo(scores.dtype).min).flatten(0, 1)
    out = _weigh(scores, v, dropout_p).view(batch, num_heads, frames, dim).permute(2, 0, 1, 3)
    return F.linear(out.reshape(frames, batch, embed_dim), out_proj_weight, out_proj_bias), None


_REPLACEMENTS = {
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
}


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for its next tensors; `False` where it is not glibc's allocator.

    For the whole process and its children by fork; for a program that trains on the CPU, not for a library call.
    The peak of the resident memory stays, what is shown as in use falls no more.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
