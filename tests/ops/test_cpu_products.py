"""The CPU backend's matrix products against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from laser_hf.ops.soft_dtw import cpu_products as products

# Below, at and beyond the sizes of a tile, of a part of a sum and of the blocks that are looked at for being zero.
SHAPES = [(1, 1, 1), (13, 5, 7), (24, 64, 32), (100, 33, 300), (70, 180, 40)]


def draw(rows, columns, dim, dtype):
    """Frames of both views and unwritten scratch."""
    generator = np.random.default_rng(rows)
    scratch = [np.full(size, np.nan, dtype) for size in products.sizes(max(rows, columns), dim, dtype)]
    return *(generator.standard_normal((count, dim)).astype(dtype) for count in (rows, columns)), scratch


def exact_pull(matrix, x, y):
    matrix, x, y = (array.astype(np.float64) for array in (matrix, x, y))
    return 2 * (matrix.sum(1)[:, None] * x - matrix @ y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "columns", "dim"), SHAPES)
def test_scalar_products(rows, columns, dim, dtype):
    x, y, scratch = draw(rows, columns, dim, dtype)
    close = {"rtol": 0, "atol": 2000 * np.finfo(dtype).eps}
    out, u, v = np.full((rows, columns), np.nan, dtype), np.empty(rows), np.empty(columns)
    products.scalar_products(x.ravel(), y.ravel(), rows, columns, dim, False, out.reshape(-1), u, v, *scratch)
    np.testing.assert_allclose(out, x.astype(np.float64) @ y.T.astype(np.float64), **close)
    np.testing.assert_allclose(u, (x.astype(np.float64) ** 2).sum(1), rtol=1e-14)
    np.testing.assert_allclose(v, (y.astype(np.float64) ** 2).sum(1), rtol=1e-14)
    own = np.full((rows, rows), np.nan, dtype)
    products.scalar_products(x.ravel(), x.ravel(), rows, rows, dim, True, own.reshape(-1), u, u.copy(), *scratch)
    np.testing.assert_allclose(np.tril(own), np.tril(x.astype(np.float64) @ x.T.astype(np.float64)), **close)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("band", [0, 3, 1000])
@pytest.mark.parametrize(("rows", "columns", "dim"), SHAPES)
def test_pull_of_dense_and_banded_matrices(rows, columns, dim, band, dtype):
    """Both sides, and a symmetric matrix of which the upper triangle holds NaN; `out` holds NaN before."""
    x, y, scratch = draw(rows, columns, dim, dtype)
    close = {"rtol": 0, "atol": 2000 * np.finfo(dtype).eps}
    generator, work = np.random.default_rng(band), np.empty(products.ROWS)
    places = np.abs(np.arange(rows)[:, None] * (columns / rows) - np.arange(columns))
    matrix = np.where(places < band, generator.standard_normal((rows, columns)), 0.0).astype(dtype)
    out_x, out_y = np.full(x.shape, np.nan, dtype), np.full(y.shape, np.nan, dtype)
    sides = ((out_x, columns, 1, rows, columns, x, y), (out_y, 1, columns, columns, rows, y, x))
    for out, row_step, column_step, m, n, own, other in sides:
        where = (matrix.ravel(), row_step, column_step, m, n, own.ravel(), other.ravel(), dim, False)
        products.pull(*where, out.reshape(-1), *scratch, work)
    np.testing.assert_allclose(out_x, exact_pull(matrix, x, y), **close)
    np.testing.assert_allclose(out_y, exact_pull(matrix.T, y, x), **close)
    square = np.where(np.abs(np.subtract.outer(range(rows), range(rows))) < band, 1.0, 0.0)
    square = np.tril(square * generator.standard_normal((rows, rows))).astype(dtype)
    lower = square + np.triu(np.full((rows, rows), np.nan, dtype), 1)
    where = (lower.ravel(), rows, 1, rows, rows, x.ravel(), x.ravel(), dim, True)
    products.pull(*where, out_x.reshape(-1), *scratch, work)
    np.testing.assert_allclose(out_x, exact_pull(square + np.tril(square, -1).T, x, x), **close)


def test_not_a_number_is_not_left_out():
    x, y, scratch = draw(40, 100, 8, np.float32)
    matrix, out = np.zeros((40, 100), np.float32), np.zeros_like(x)
    matrix[20, 90] = np.nan
    products.pull(
        matrix.ravel(), 100, 1, 40, 100, x.ravel(), y.ravel(), 8, False, out.reshape(-1), *scratch,
        np.empty(products.ROWS),
    )  # fmt: skip
    assert np.isnan(out[20]).all()
