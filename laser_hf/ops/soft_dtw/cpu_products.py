"""Matrix products of the CPU backend, in numba: each thread multiplies on its own and leaves products with zeros out.

A tile of the result, `ROWS` by two vectors of LLVM, stays in registers while the sum runs. Both factors are first
copied in the order in which the tile reads them.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16  # of a vector register
ROWS = 6 if _BYTES == 32 else 12  # accumulators are 2 * ROWS of 16 registers, or of 32 with AVX-512 or on ARM
_DEPTH = 32  # so many products are summed, and the sums added: less rounding than in one long sum
_BLOCK = 32  # columns that are looked at together for being zero

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
_summing = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


@intrinsic
def _tile(typing_context, a, b, from_a, from_b, depth, out, start, stride, more):
    """`a b`, packed `(depth, ROWS)` and `(depth, width)`, to rows of `out` `stride` apart; added if `more`."""
    element = ir.DoubleType() if a.dtype == types.float64 else ir.FloatType()
    lanes = _BYTES // (8 if a.dtype == types.float64 else 4)
    vector, integer = ir.VectorType(element, lanes), ir.IntType(64)

    def generate(context, builder, signature, arguments):
        at_a, at_b, at_out = (
            context.make_array(signature.args[place])(context, builder, arguments[place]).data for place in (0, 1, 5)
        )

        def vector_at(pointer, place):
            return builder.bitcast(builder.gep(pointer, [place]), vector.as_pointer())

        name = f"llvm.fmuladd.v{lanes}f{8 * _BYTES // lanes}"
        multiply = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * lanes)
        nowhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(integer)
        step.add_incoming(integer(0), before)
        sums = [builder.phi(vector) for _ in range(2 * ROWS)]
        row_a = builder.add(arguments[2], builder.mul(step, integer(ROWS)))
        row_b = builder.add(arguments[3], builder.mul(step, integer(2 * lanes)))
        places = [vector_at(at_b, builder.add(row_b, integer(half * lanes))) for half in range(2)]
        halves = [builder.load(place, align=_BYTES // lanes) for place in places]
        for index, total in enumerate(sums):
            scalar = builder.load(builder.gep(at_a, [builder.add(row_a, integer(index // 2))]))
            spread = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
            spread = builder.shuffle_vector(spread, undefined, nowhere)
            total.add_incoming(zero, before)
            total.add_incoming(builder.call(multiply, [spread, halves[index % 2], total]), loop)
        following = builder.add(step, integer(1))
        step.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[4]), loop, after)
        builder.position_at_end(after)
        for index, total in enumerate(sums):
            row = builder.add(arguments[6], builder.mul(arguments[7], integer(index // 2)))
            place = vector_at(at_out, builder.add(row, integer(index % 2 * lanes)))
            present = builder.load(place, align=_BYTES // lanes)
            present = builder.select(arguments[8], present, zero)
            builder.store(builder.fadd(present, total.incomings[1][0]), place, align=_BYTES // lanes)
        return context.get_dummy_value()

    return types.void(a, b, from_a, from_b, depth, out, start, stride, more), generate


def width(dtype: np.dtype) -> int:
    """Columns of a tile."""
    return 2 * _BYTES // np.dtype(dtype).itemsize


def padded(count: int, step: int) -> int:
    """The next multiple of `step`: results of products have whole tiles."""
    return -(-count // step) * step


def packed_sizes(longest: int, dim: int, dtype: np.dtype) -> tuple[int, int]:
    """Entries of the packed rows and columns, for problems of at most `longest` frames."""
    wide = width(dtype)
    return ROWS * max(longest, dim), max(padded(longest, wide) * dim, longest * padded(dim, wide))


@_compiled
def _pack_columns(b, row_step, column_step, depth, columns, wide, packed):
    for start in range(0, columns, wide):
        inside = min(wide, columns - start)
        at = start * depth
        if column_step == 1:
            for k in range(depth):
                for j in range(inside):
                    packed[at + k * wide + j] = b[k * row_step + start + j]
        else:
            for j in range(inside):
                for k in range(depth):
                    packed[at + k * wide + j] = b[k * row_step + (start + j) * column_step]
        for k in range(depth):
            for j in range(inside, wide):
                packed[at + k * wide + j] = 0.0


@_compiled
def _pack_rows(a, row_step, column_step, first, rows, low, high, symmetric, packed):
    """Columns `low ... high` of the rows `first ...`; of a symmetric matrix only the lower triangle is read."""
    for r in range(ROWS):
        i = first + r
        stop = (min(high, i + 1) if symmetric else high) if i < rows else 0
        for k in range(low, stop):
            packed[k * ROWS + r] = a[i * row_step + k * column_step]
        for k in range(max(low, stop), high):
            packed[k * ROWS + r] = a[k * row_step + i * column_step] if i < rows else 0.0


@_summing
def _block_is_zero(a, row_step, column_step, first, last, low, symmetric):
    """Whether the rows `first ... last` are zero in the `_BLOCK` columns from `low`; one of the steps is 1."""
    if symmetric and low >= last:
        row_step, column_step = column_step, row_step
    elif symmetric and low + _BLOCK > first:
        return False
    total = 0.0
    if column_step == 1:
        for i in range(first, last):
            for k in range(i * row_step + low, i * row_step + low + _BLOCK):
                total += abs(a[k])
    else:
        for k in range(low, low + _BLOCK):
            for i in range(k * column_step + first, k * column_step + last):
                total += abs(a[i])
    return total == 0.0


@_compiled
def _row_of_tiles(first, columns, depth, low, high, out, stride, packed_rows, packed_columns):
    """`ROWS` rows of a product from packed factors, from `low` to `high` in the sum."""
    wide = 2 * _BYTES // out.itemsize
    for start in range(0, columns, wide):
        for part in range(low, high, _DEPTH):
            where = (part * ROWS, start * depth + part * wide, min(_DEPTH, high - part))
            _tile(packed_rows, packed_columns, *where, out, first * stride + start, stride, part > low)


@_summing
def _squares(frames, count, dim, out):
    for i in range(count):
        total = 0.0
        for k in range(i * dim, (i + 1) * dim):
            total += np.float64(frames[k]) ** 2
        out[i] = total


@_compiled
def scalar_products(x, y, rows, columns, dim, symmetric, out, stride, u, v, packed_rows, packed_columns):
    """`out[i, j] = x_i . y_j` of flat frames, `u[i] = |x_i|^2` and `v[j] = |y_j|^2`.

    `out` has room for whole tiles. For a symmetric problem only its lower triangle is meant.
    """
    _squares(x, rows, dim, u)
    _squares(y, columns, dim, v)
    _pack_columns(y, 1, dim, dim, columns, 2 * _BYTES // out.itemsize, packed_columns)
    for first in range(0, rows, ROWS):
        _pack_rows(x, dim, 1, first, rows, 0, dim, False, packed_rows)
        needed = min(columns, first + ROWS) if symmetric else columns
        _row_of_tiles(first, needed, dim, 0, dim, out, stride, packed_rows, packed_columns)


@_compiled
def pull(matrix, row_step, column_step, rows, columns, x, y, dim, symmetric, out, packed_rows, packed_columns, work):
    """`out_i = 2 sum_j A_ij (x_i - y_j)` for flat frames, the gradient of `sum_ij A_ij |x_i - y_j|^2` by x.

    `out` has room for whole tiles; `work` is scratch of `ROWS` float64.
    """
    wide = 2 * _BYTES // out.itemsize
    stride = -(-dim // wide) * wide
    _pack_columns(y, dim, 1, columns, dim, wide, packed_columns)
    for first in range(0, rows, ROWS):
        low, high, last = 0, columns, min(first + ROWS, rows)
        while low + _BLOCK < high and _block_is_zero(matrix, row_step, column_step, first, last, low, symmetric):
            low += _BLOCK
        end = high - _BLOCK
        while low < end and _block_is_zero(matrix, row_step, column_step, first, last, end, symmetric):
            high, end = end, end - _BLOCK
        _pack_rows(matrix, row_step, column_step, first, rows, low, high, symmetric, packed_rows)
        work[:ROWS] = 0.0
        for k in range(low, high):
            for r in range(ROWS):
                work[r] += packed_rows[k * ROWS + r]
        _row_of_tiles(first, dim, columns, low, high, out, stride, packed_rows, packed_columns)
        for i in range(first, last):
            for k in range(dim):
                out[i * stride + k] = 2.0 * (work[i - first] * x[i * dim + k] - out[i * stride + k])
