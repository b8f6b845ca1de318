"""Normalised soft-DTW, forward and backward, by this project, by peers that pip installs, and the released way.

A contestant is a function `(pairs, gamma) -> run`; `pairs` is a list of unit-norm frames `(m, dim)`, `(n, dim)`, and
`run()` returns the gradients of the summed divergence, x and y of each pair in turn. What can be prepared once for
given lengths (padding, compiling) is prepared outside of `run`; what a training step would repeat is inside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]
Run = Callable[[], list[torch.Tensor]]


class Unavailable(RuntimeError):
    """A peer that cannot run here, with the reason."""


def make_pairs(lengths: Sequence[tuple[int, int]], dim: int = 256, seed: int = 0, device: str = "cpu") -> Pairs:
    """Unit-norm frames whose second view is the first, stretched in time and noisy: alignments off the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for m, n in lengths:
        x = torch.randn(m, dim, generator=generator)
        places = (torch.linspace(0, 1, n).pow(1.1) * (m - 1)).long()
        y = x[places] + 0.7 * torch.randn(n, dim, generator=generator)
        pairs.append(tuple(torch.nn.functional.normalize(view, dim=-1).to(device) for view in (x, y)))
    return pairs


def _padded(pairs: Pairs) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Both views as padded batches that want gradients, and their lengths."""
    views = [list(view) for view in zip(*pairs, strict=True)]
    lengths = [torch.tensor([len(frames) for frames in view], device=view[0].device) for view in views]
    batches = [torch.nn.utils.rnn.pad_sequence(view, batch_first=True).requires_grad_() for view in views]
    return batches, lengths


def _unpadded(gradients: Sequence[torch.Tensor], pairs: Pairs) -> list[torch.Tensor]:
    return [
        gradient[index, : len(frames)]
        for index, pair in enumerate(pairs)
        for gradient, frames in zip(gradients, pair, strict=True)
    ]


def ours(pairs: Pairs, gamma: float, backend: str = "auto") -> Run:
    """`laser_hf.ops.soft_dtw_divergence` on the padded batch."""
    from laser_hf.ops import soft_dtw_divergence

    batches, lengths = _padded(pairs)

    def run() -> list[torch.Tensor]:
        value = soft_dtw_divergence(*batches, *lengths, gamma, backend).sum()
        return _unpadded(torch.autograd.grad(value, batches), pairs)

    return run


def ours_reference(pairs: Pairs, gamma: float) -> Run:
    """The plain PyTorch backend."""
    return ours(pairs, gamma, "reference")


def _one_by_one(pairs: Pairs, divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Run:
    """For peers that know no lengths: pair after pair, `divergence` of `(1, m, dim)` and `(1, n, dim)`."""
    leaves = [tuple(frames.clone().unsqueeze(0).requires_grad_() for frames in pair) for pair in pairs]

    def run() -> list[torch.Tensor]:
        gradients = []
        for pair in leaves:
            gradients += [g[0] for g in torch.autograd.grad(divergence(*pair).sum(), pair)]
        return gradients

    return run


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed (benchmarks/requirements.txt)")


def pysdtw_pairs(pairs: Pairs, gamma: float) -> Run:
    """pysdtw, pair by pair."""
    _need("pysdtw")
    import pysdtw

    dtw = pysdtw.SoftDTW(gamma=gamma, use_cuda=pairs[0][0].is_cuda)
    return _one_by_one(pairs, lambda x, y: dtw(x, y) - 0.5 * (dtw(x, x) + dtw(y, y)))


def pysdtw_batch(pairs: Pairs, gamma: float) -> Run:
    """pysdtw on packed sequences: its way of taking a ragged batch."""
    _need("pysdtw")
    import pysdtw

    dtw = pysdtw.SoftDTW(gamma=gamma, use_cuda=pairs[0][0].is_cuda)
    batches, lengths = _padded(pairs)
    counts = [length.cpu() for length in lengths]

    def run() -> list[torch.Tensor]:
        x, y = (
            torch.nn.utils.rnn.pack_padded_sequence(batch, count, batch_first=True, enforce_sorted=False)
            for batch, count in zip(batches, counts, strict=True)
        )
        value = (dtw(x, y) - 0.5 * (dtw(x, x) + dtw(y, y))).sum()
        return _unpadded(torch.autograd.grad(value, batches), pairs)

    return run


def ddtw(pairs: Pairs, gamma: float) -> Run:
    """ddtw with its numba backend, on CUDA its C++ one (`ddtw setup-cuda` builds it; not run by us yet).

    The three problems of all pairs are one batch, so that its threads are busy with a single pair too; the distance is
    a matrix product, since its own is the `m x n x dim` expansion.
    """
    _need("ddtw")
    from ddtw import SDTW

    from laser_hf.ops.soft_dtw.api import squared_euclidean

    dtw = SDTW(gamma=gamma, normalization="none", backend="cuda_cpp" if pairs[0][0].is_cuda else "cpu_numba")
    batches, (m, n) = _padded(pairs)
    size = max(batch.shape[1] for batch in batches)
    rows, columns = torch.cat((m, m, n)), torch.cat((n, m, n))
    signs = torch.tensor([1.0, -0.5, -0.5], device=m.device).repeat_interleave(len(pairs)).view(-1, 1, 1)

    def run() -> list[torch.Tensor]:
        x, y = (torch.nn.functional.pad(batch, (0, 0, 0, size - batch.shape[1])) for batch in batches)
        costs = squared_euclidean(torch.cat((x, x, y)), torch.cat((y, x, y)))
        # It returns the mean over a batch, which carries no signs: they belong to the gradient by the costs.
        leaf = costs.detach().requires_grad_()
        (alignments,) = torch.autograd.grad(len(costs) * dtw(C=leaf, list_N=rows, list_M=columns), leaf)
        return _unpadded(torch.autograd.grad(costs, batches, alignments * signs), pairs)

    return run


def sdtw_cuda_torch(pairs: Pairs, gamma: float) -> Run:
    """sdtw-cuda-torch (arXiv 2602.17206) as `dtw-loss-functions` ships it, pair by pair: it takes no lengths.

    Not its fused distance, which saves memory and takes many times as long.
    """
    _need("dtw_loss_functions")
    from dtw_loss_functions.soft_dtw_implementations.soft_dtw_cuda_ron.module import SoftDTW

    # It normalises, in one batch, only where both views have the same length.
    whole, part = (SoftDTW(gamma=gamma, normalize=normalize, fused=False) for normalize in (True, False))

    def divergence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.shape == y.shape:
            return whole(x, y)
        return part(x, y) - 0.5 * (part(x, x) + part(y, y))

    return _one_by_one(pairs, divergence)


def flash_softdtw(pairs: Pairs, gamma: float) -> Run:
    """Listed for completeness."""
    raise Unavailable("other work: 1-D signals, |x - y|, one reference, CUDA only (0.2.0)")


def tslearn_pairs(pairs: Pairs, gamma: float) -> Run:
    """tslearn as shipped, pair by pair: it takes no lengths."""
    _need("tslearn")
    from tslearn.metrics import SoftDTWLossPyTorch

    loss = SoftDTWLossPyTorch(gamma=gamma, normalize=True)
    return _one_by_one(pairs, loss)


def tslearn_matmul(pairs: Pairs, gamma: float) -> Run:
    """tslearn with the distance by matrix product, which it lets its user set."""
    _need("tslearn")
    from tslearn.metrics import SoftDTWLossPyTorch

    from laser_hf.ops.soft_dtw.api import squared_euclidean

    loss = SoftDTWLossPyTorch(gamma=gamma, normalize=True, dist_func=squared_euclidean)
    return _one_by_one(pairs, loss)


def ott_jax(pairs: Pairs, gamma: float) -> Run:
    """ott-jax's debiased soft-DTW, compiled for each pair of lengths; arrays stay in JAX."""
    _need("ott")
    import jax
    from ott.geometry import costs

    if pairs[0][0].is_cuda and jax.default_backend() != "gpu":
        raise Unavailable("the installed JAX has no CUDA")
    cost = costs.SoftDTW(gamma=gamma, debiased=True)
    gradient = jax.jit(jax.value_and_grad(lambda x, y: cost(x, y), argnums=(0, 1)))
    arrays = [tuple(jax.numpy.asarray(frames.cpu().numpy()) for frames in pair) for pair in pairs]

    def run() -> list[torch.Tensor]:
        results = [gradient(*pair)[1] for pair in arrays]
        jax.block_until_ready(results)
        return [torch.tensor(jax.device_get(entry)) for pair in results for entry in pair]

    return run


def released(pairs: Pairs, gamma: float) -> Run:
    """The released method: `m x n x dim` expansion and a serial recursion, pair by pair (own code)."""
    from benchmarks.released import _soft_dtw as dtw

    return _one_by_one(
        pairs, lambda x, y: dtw(x[0], y[0], gamma) - 0.5 * (dtw(x[0], x[0], gamma) + dtw(y[0], y[0], gamma))
    )


DIVERGENCE: dict[str, Callable[[Pairs, float], Run]] = {
    "laser_hf": ours,
    "laser_hf, plain PyTorch": ours_reference,
    "ddtw": ddtw,
    "sdtw-cuda-torch": sdtw_cuda_torch,
    "pysdtw, batch": pysdtw_batch,
    "pysdtw, pair by pair": pysdtw_pairs,
    "tslearn, matmul distance": tslearn_matmul,
    "ott-jax": ott_jax,
    "tslearn": tslearn_pairs,
    "flash-softdtw": flash_softdtw,
    "released method": released,
}


def loss_ours(pairs: Pairs, gamma: float, backend: str = "auto") -> Run:
    """`LaserLoss` on the padded batch."""
    from laser_hf import LaserLoss

    batches, lengths = _padded(pairs)
    loss = LaserLoss(gamma=gamma, backend=backend)

    def run() -> list[torch.Tensor]:
        value = loss(batches[0], lengths[0], batches[1], lengths[1])["total"].sum()
        return _unpadded(torch.autograd.grad(value, batches), pairs)

    return run


def loss_eager(pairs: Pairs, gamma: float) -> Run:
    """The compiled soft-DTW with the regulariser in eager PyTorch beside it."""
    from laser_hf.objectives import contrastive_idm
    from laser_hf.ops import soft_dtw_divergence

    batches, lengths = _padded(pairs)

    def run() -> list[torch.Tensor]:
        idm = sum(contrastive_idm(batch, length) for batch, length in zip(batches, lengths, strict=True))
        value = (soft_dtw_divergence(*batches, *lengths, gamma) + 0.4 * idm).sum()
        return _unpadded(torch.autograd.grad(value, batches), pairs)

    return run


def loss_released(pairs: Pairs, gamma: float) -> Run:
    """The released loss, pair by pair (own code)."""
    from benchmarks.released import released_loss

    return _one_by_one(pairs, lambda x, y: released_loss(x[0], y[0], gamma))


LOSS: dict[str, Callable[[Pairs, float], Run]] = {
    "laser_hf": loss_ours,
    "laser_hf, IDM eager": loss_eager,
    "released method": loss_released,
}
