"""Soft-DTW and the terms of LASER as PyTorch operators, for compiled and distributed training.

`torch.compile` sees an operator with a known result shape and a registered derivative, so the kernels cause no graph
break. The forward pass computes the gradient together with the value, because both need the same matrices.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from . import IDM, PairTerms


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


def _pair_terms(x, y, lengths_x, lengths_y, gamma, with_idm, sigma, margin, squared, backend, weights) -> PairTerms:
    idm = IDM(sigma, margin, squared) if with_idm else None
    with torch.cuda.device_of(x):
        return _module(backend).pair_terms(x, y, lengths_x, lengths_y, gamma, idm, weights)


@torch.library.custom_op("laser_hf::pair_terms", mutates_args=())
def pair_terms(
    x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, gamma: float, alpha: float,
    with_idm: bool, sigma: int, margin: float, squared: bool, backend: str, with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`soft_dtw + alpha idm`, `soft_dtw` and `idm` of each pair, and the gradients of the first by x and y."""
    weights = (x.new_ones(len(x)), x.new_full((len(x),), alpha)) if with_gradient else None
    settings = (gamma, with_idm, sigma, margin, squared, backend)
    terms = _pair_terms(x, y, lengths_x, lengths_y, *settings, weights)
    total = terms.soft_dtw + alpha * terms.idm
    gradients = (terms.gradient_x, terms.gradient_y) if with_gradient else (x.new_empty(0), y.new_empty(0))
    return total.to(x.dtype), terms.soft_dtw.to(x.dtype), terms.idm.to(x.dtype), *gradients


@pair_terms.register_fake
def _(x, y, lengths_x, lengths_y, gamma, alpha, with_idm, sigma, margin, squared, backend, with_gradient):
    values = [x.new_empty(x.shape[0]) for _ in range(3)]
    gradients = [x.new_empty(x.shape), y.new_empty(y.shape)] if with_gradient else [x.new_empty(0), y.new_empty(0)]
    return *values, *gradients


@torch.library.custom_op("laser_hf::pair_gradients", mutates_args=())
def pair_gradients(
    x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, of_dtw: Tensor, of_idm: Tensor, gamma: float,
    with_idm: bool, sigma: int, margin: float, squared: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of `sum(of_dtw soft_dtw + of_idm idm)` by x and y, computed anew."""
    settings = (gamma, with_idm, sigma, margin, squared, backend)
    terms = _pair_terms(x, y, lengths_x, lengths_y, *settings, (of_dtw, of_idm))
    return terms.gradient_x, terms.gradient_y


@pair_gradients.register_fake
def _(x, y, lengths_x, lengths_y, of_dtw, of_idm, gamma, with_idm, sigma, margin, squared, backend):
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _keep_gradients(ctx, inputs, output):
    x, y, lengths_x, lengths_y, gamma, _, *settings = inputs[:-1]
    *_, gradient_x, gradient_y = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gradient_x, gradient_y)
    ctx.settings = (gamma, *settings)
    # Without the regulariser the first two results are equal.
    ctx.with_idm = settings[0]
    ctx.save_for_backward(gradient_x, gradient_y, *((x, y, lengths_x, lengths_y) if ctx.with_idm else ()))


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
        of_dtw, of_idm = (zeros if grad is None else grad for grad in (grad_dtw, grad_idm))
        own_x, own_y = pair_gradients(*inputs, of_dtw, of_idm, *ctx.settings)
        result_x = own_x if result_x is None else result_x + own_x
        result_y = own_y if result_y is None else result_y + own_y
    return result_x, result_y, *(None,) * 10


pair_terms.register_autograd(_pair_terms_backward, setup_context=_keep_gradients)
