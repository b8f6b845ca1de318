"""The CPU backend's matrix products against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from laser_hf.ops.soft_dtw import cpu_products as products

# Below, at and beyond the sizes of a tile, of a part of a sum and of the blocks that are looked at for being zero.
SHAPES = [(1, 1, 1), (13, 5, 7), (24, 64, 32), (100, 33, 300), (70, 180, 40)]


def draw(rows, columns, dim, dtype):
    """Frames of both views, and what is written to, all NaN: whole tiles of a result, scratch."""
    generator, longest = np.random.default_rng(rows), max(rows, columns)
    scratch = [np.full(size, np.nan, dtype) for size in products.packed_sizes(longest, dim, dtype)]
    wide, tall = products.width(dtype), products.padded(longest, products.ROWS)
    matrix, out = (np.full((tall, products.padded(size, wide)), np.nan, dtype) for size in (longest, dim))
    return *(generator.standard_normal((count, dim)).astype(dtype) for count in (rows, columns)), matrix, out, scratch


def exact_pull(matrix, x, y):
    matrix, x, y = (array.astype(np.float64) for array in (matrix, x, y))
    return 2 * (matrix.sum(1)[:, None] * x - matrix @ y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "columns", "dim"), SHAPES)
def test_scalar_products(rows, columns, dim, dtype):
    x, y, matrix, _, scratch = draw(rows, columns, dim, dtype)
    close = {"rtol": 0, "atol": 2000 * np.finfo(dtype).eps}
    flat, stride, u, v = matrix.reshape(-1), matrix.shape[1], np.empty(rows), np.empty(columns)
    products.scalar_products(x.ravel(), y.ravel(), rows, columns, dim, False, flat, stride, u, v, *scratch)
    np.testing.assert_allclose(matrix[:rows, :columns], x.astype(np.float64) @ y.T.astype(np.float64), **close)
    np.testing.assert_allclose(u, (x.astype(np.float64) ** 2).sum(1), rtol=1e-14)
    np.testing.assert_allclose(v, (y.astype(np.float64) ** 2).sum(1), rtol=1e-14)
    matrix[:] = np.nan
    products.scalar_products(x.ravel(), x.ravel(), rows, rows, dim, True, flat, stride, u, u.copy(), *scratch)
    lower = np.tril(matrix[:rows, :rows])
    np.testing.assert_allclose(lower, np.tril(x.astype(np.float64) @ x.T.astype(np.float64)), **close)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("band", [0, 3, 1000])
@pytest.mark.parametrize(("rows", "columns", "dim"), SHAPES)
def test_pull_of_dense_and_banded_matrices(rows, columns, dim, band, dtype):
    """Both sides, and a symmetric matrix of which the upper triangle holds NaN; `out` holds NaN before."""
    x, y, _, out, scratch = draw(rows, columns, dim, dtype)
    close = {"rtol": 0, "atol": 2000 * np.finfo(dtype).eps}
    generator, work, flat = np.random.default_rng(band), np.empty(products.ROWS), out.reshape(-1)
    places = np.abs(np.arange(rows)[:, None] * (columns / rows) - np.arange(columns))
    matrix = np.where(places < band, generator.standard_normal((rows, columns)), 0.0).astype(dtype)
    sides = ((columns, 1, rows, columns, x, y), (1, columns, columns, rows, y, x))
    for (*steps, own, other), of_own in zip(sides, (matrix, matrix.T), strict=True):
        products.pull(matrix.ravel(), *steps, own.ravel(), other.ravel(), dim, False, flat, *scratch, work)
        np.testing.assert_allclose(out[: len(own), :dim], exact_pull(of_own, own, other), **close)
    square = np.where(np.abs(np.subtract.outer(range(rows), range(rows))) < band, 1.0, 0.0)
    square = np.tril(square * generator.standard_normal((rows, rows))).astype(dtype)
    lower = square + np.triu(np.full((rows, rows), np.nan, dtype), 1)
    products.pull(lower.ravel(), rows, 1, rows, rows, x.ravel(), x.ravel(), dim, True, flat, *scratch, work)
    np.testing.assert_allclose(out[:rows, :dim], exact_pull(square + np.tril(square, -1).T, x, x), **close)


def test_not_a_number_is_not_left_out():
    x, y, _, out, scratch = draw(40, 100, 8, np.float32)
    matrix, work = np.zeros((40, 100), np.float32), np.empty(products.ROWS)
    matrix[20, 90] = np.nan
    frames = x.ravel(), y.ravel()
    products.pull(matrix.ravel(), 100, 1, 40, 100, *frames, 8, False, out.reshape(-1), *scratch, work)
    assert np.isnan(out[20, :8]).all()
