"""Soft-DTW and the terms of LASER as PyTorch operators, which cause no graph break in `torch.compile`.

The forward pass computes the gradient together with the value, because both need the same matrices.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from . import IDM

NO_IDM = IDM(0, 1.0, False)


def _module(backend: str):
    """The backend's module, imported on first use: numba and Triton take a second to load."""
    return importlib.import_module(f"{__package__}.{'triton_backend' if backend == 'triton' else 'cpu'}")


def _check_once_differentiable() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("soft-DTW is differentiable once: there is no gradient of its gradient")


@torch.library.custom_op("laser_hf::soft_dtw", mutates_args=())
def soft_dtw(
    cost: Tensor, lengths_x: Tensor, lengths_y: Tensor, gamma: float, backend: str, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Values `(batch,)`, and expected alignments like `cost` (empty without `with_gradient`)."""
    with torch.cuda.device_of(cost):  # Triton launches on the current device
        return _module(backend).soft_dtw(cost, lengths_x, lengths_y, gamma, with_gradient)


@soft_dtw.register_fake
def _(cost, lengths_x, lengths_y, gamma, backend, with_gradient):
    alignment = torch.empty_like(cost, memory_format=torch.contiguous_format) if with_gradient else cost.new_empty(0)
    return cost.new_empty(cost.shape[0]), alignment


def _keep_alignment(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _soft_dtw_backward(ctx, grad_value, _):
    _check_once_differentiable()
    (alignment,) = ctx.saved_tensors
    gradient = None if grad_value is None else alignment * grad_value.reshape(-1, 1, 1)
    return gradient, None, None, None, None, None


soft_dtw.register_autograd(_soft_dtw_backward, setup_context=_keep_alignment)


@torch.library.custom_op("laser_hf::pair_terms", mutates_args=())
def pair_terms(
    x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, weights: Tensor | None, alpha: float,
    gamma: float, sigma: int, margin: float, squared: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`soft_dtw + alpha idm`, `soft_dtw` and `idm` of each pair, and gradients by x and y.

    The gradients are of the two terms' sum with `weights` `(2, batch)`; empty without. `sigma` is 0 without IDM.
    """
    with torch.cuda.device_of(x):
        idm = IDM(sigma, margin, squared) if sigma else None
        terms = _module(backend).pair_terms(x, y, lengths_x, lengths_y, gamma, idm, weights)
    total = terms.soft_dtw + alpha * terms.idm
    gradients = (x.new_empty(0), y.new_empty(0)) if weights is None else (terms.gradient_x, terms.gradient_y)
    return total.to(x.dtype), terms.soft_dtw.to(x.dtype), terms.idm.to(x.dtype), *gradients


@pair_terms.register_fake
def _(x, y, lengths_x, lengths_y, weights, *_):
    values = [x.new_empty(x.shape[0]) for _ in range(3)]
    return *values, *(view.new_empty(0 if weights is None else view.shape) for view in (x, y))


def _keep_gradients(ctx, inputs, output):
    *_, gradient_x, gradient_y = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gradient_x, gradient_y)
    ctx.settings = inputs[6:]
    ctx.with_idm = inputs[7] > 0  # without, the first two results are equal
    ctx.save_for_backward(gradient_x, gradient_y, *(inputs[:4] if ctx.with_idm else ()))


def _pair_terms_backward(ctx, grad_total, grad_dtw, grad_idm, *_):
    _check_once_differentiable()
    gradient_x, gradient_y, *inputs = ctx.saved_tensors
    result_x = result_y = None
    if not ctx.with_idm and grad_dtw is not None:
        grad_total, grad_dtw = grad_dtw if grad_total is None else grad_total + grad_dtw, None
    if grad_total is not None:
        scale = grad_total.reshape(-1, 1, 1)
        result_x, result_y = gradient_x * scale, gradient_y * scale
    if ctx.with_idm and not (grad_dtw is None and grad_idm is None):
        # Rare: training differentiates the total alone. Keeping the matrices of each term would cost much memory.
        zeros = inputs[0].new_zeros(len(inputs[0]))
        weights = torch.stack([zeros if grad is None else grad for grad in (grad_dtw, grad_idm)])
        with torch.no_grad():
            own_x, own_y = pair_terms(*inputs, weights, 0.0, *ctx.settings)[3:]
        result_x = own_x if result_x is None else result_x + own_x
        result_y = own_y if result_y is None else result_y + own_y
    return result_x, result_y, *(None,) * 9


pair_terms.register_autograd(_pair_terms_backward, setup_context=_keep_gradients)
