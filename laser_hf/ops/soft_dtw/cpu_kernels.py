"""The numba kernels of the CPU backend: soft-DTW along the anti-diagonals of strips of rows, in SIMD.

With P = exp(-R / gamma) the recursion of soft-DTW is linear,

    P[i, j] = exp(-C[i, j] / gamma) (P[i-1, j-1] + P[i-1, j] + P[i, j-1]),

so a cell costs one exponential (of a cost, outside the serial chain) and no logarithm. P leaves the range of any float
after a few dozen frames; every cell therefore has its own mantissa and binary exponent. The backward sweep is the
transposed recursion of the shares of two of the three predecessors, without exponentials.

Step k of a strip of `LANES` rows computes the cells (first row + lane, k - lane), which do not depend on each other.
LLVM turns the loops over lanes into vector code because of one work array with constant offsets (a second one would
need a run-time overlap check), no branch in them (cells outside of the grid are computed and then emptied), unsigned
offsets, and bit patterns instead of `frexp` and `ldexp`.

Costs are given as a matrix product G with squared norms u and v, `C[i, j] = u[i] + v[j] + a G[i, j]`; a plain cost
matrix has a = 1, u = v = 0. Matrices are flat with a row stride.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba.extending import register_jitable

LANES = 32
_TILE = 16  # columns that are skewed together, so that a cache line serves all lanes

# Offsets into the work array: mantissas and exponents of three steps (an entry for the row above, then the lanes).
_PITCH = LANES + 8
_NEW_M, _NEW_E = 0, _PITCH
_PREVIOUS_M, _PREVIOUS_E = 2 * _PITCH, 3 * _PITCH
_OLD_M, _OLD_E = 4 * _PITCH, 5 * _PITCH
_LEFT, _UP, _DIAGONAL = 0, _PITCH, 2 * _PITCH
WORK = 6 * _PITCH

_EMPTY = -1e15  # exponent of P = 0
_FLOOR = -1000.0  # summands 2^-1000 below the largest are lost
_NEVER = 1e-5  # an alignment that passes a cell with a probability below 1e-5 of the rounding error never passes it
# 2^f for |f| <= 1/2 by its Taylor series: the first term left out is below 2^-52.
_EXP2 = tuple(math.log(2) ** k / math.factorial(k) for k in range(13))
_ROUND = 1.5 * 2.0**52  # adding and subtracting it rounds to the nearest integer
_BIAS = 2.0**52 + 1023.0  # puts an integer's float64 exponent field into the low bits


_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
_inlined = numba.njit(inline="always", error_model="numpy", fastmath={"contract", "nsz"})


@_inlined
def _power_of_two(exponent):
    """2^exponent for a whole float64 exponent in -1022 ... 1023."""
    return np.int64(np.float64(exponent + _BIAS).view(np.int64) << 52).view(np.float64)


@_inlined
def _exponent_of(value):
    """Floor of log2 of a positive, normal float64, as a float64."""
    return np.int64((np.float64(value).view(np.int64) >> 52) | 0x4330000000000000).view(np.float64) - _BIAS


@_inlined
def _at_least(value, floor):
    return value if value > floor else floor


@register_jitable
def shares_size(rows: int, columns: int, symmetric: bool) -> int:
    """Number of shares, of the diagonal and of the upper predecessor, that one problem keeps."""
    size = 0
    for first in range(0, rows, LANES):  # the strips of a symmetric problem stop at its diagonal
        size += 2 * LANES * ((min(columns, first + LANES) if symmetric else columns) + LANES - 1)
    return size


def strip_size(columns: int) -> int:
    """Number of cells of the longest strip, those outside of the grid included."""
    return LANES * (columns + LANES - 1)


@_compiled
def _powers(gram, stride, first, lanes, width, u, v, slope, scale, symmetric, powers):
    """-C / (gamma ln 2) of one strip, skewed: that of (first + lane, j) goes to [j + lane, lane]."""
    for start in range(0, width, _TILE):
        for lane in range(lanes):
            stop = min(start + _TILE, min(width, first + lane) if symmetric else width)
            shift = u[first + lane] * scale
            row = (first + lane) * stride
            at = lane * (LANES + 1)
            for j in range(start, stop):
                powers[at + j * LANES] = (gram[row + j] * slope + shift) + v[j] * scale
    if symmetric:
        for lane in range(lanes):
            powers[(first + lane) * LANES + lane * (LANES + 1)] = 0.0  # a frame has distance 0 to itself


@_compiled
def forward(gram, stride, rows, columns, u, v, a, symmetric, gamma, shares, powers, work, border):
    """Soft-DTW value of one problem; fills `shares`. Of a symmetric problem only cells with column < row are read.

    Scratch: `powers` of `strip_size`, `work` of `WORK`, `border` of 2 (columns + 1) entries.
    """
    scale = -1.0 / (gamma * math.log(2.0))
    slope = a * scale
    for j in range(columns):
        border[j] = 0.0
        border[columns + 1 + j] = _EMPTY
    at = np.uint64(0)
    result_m, result_e = 0.0, 0.0
    for first in range(0, rows, LANES):
        lanes = min(LANES, rows - first)
        width = min(columns, first + LANES) if symmetric else columns
        for index in range(LANES + 1):
            work[_PREVIOUS_M + index] = 0.0
            work[_PREVIOUS_E + index] = _EMPTY
            work[_OLD_M + index] = 0.0
            work[_OLD_E + index] = _EMPTY
        if first == 0:
            work[_OLD_M], work[_OLD_E] = 1.0, 0.0
        _powers(gram, stride, first, lanes, width, u, v, slope, scale, symmetric, powers)
        cell = np.uint64(0)
        for k in range(width + LANES - 1):
            # Lanes in `low ... high` have a cell of the grid in this step.
            low = max(0, k - width + 1)
            high = min(lanes - 1, k)
            if symmetric and k > first:
                low = max(low, (k - first + 1) // 2)
            if symmetric and k >= first and (k - first) % 2 == 0:
                lane = (k - first) // 2
                if low <= lane <= high:
                    # By symmetry, the cell above a diagonal cell equals the cell to its left.
                    work[_PREVIOUS_M + lane] = work[_PREVIOUS_M + lane + 1]
                    work[_PREVIOUS_E + lane] = work[_PREVIOUS_E + lane + 1]
            if k < width and not (symmetric and k == first):
                work[_PREVIOUS_M] = border[k]
                work[_PREVIOUS_E] = border[columns + 1 + k]
            for lane in range(LANES):
                e_diagonal = work[_OLD_E + lane]
                e_up = work[_PREVIOUS_E + lane]
                e_left = work[_PREVIOUS_E + 1 + lane]
                top = _at_least(_at_least(e_diagonal, e_up), e_left)
                diagonal = work[_OLD_M + lane] * _power_of_two(_at_least(e_diagonal - top, _FLOOR))
                up = work[_PREVIOUS_M + lane] * _power_of_two(_at_least(e_up - top, _FLOOR))
                left = work[_PREVIOUS_M + 1 + lane] * _power_of_two(_at_least(e_left - top, _FLOOR))
                total = diagonal + up + left
                inverse = 1.0 / total
                shares[at + np.uint64(lane)] = diagonal * inverse
                shares[at + np.uint64(LANES) + np.uint64(lane)] = up * inverse
                power = powers[cell + np.uint64(lane)]
                whole = (power + _ROUND) - _ROUND
                f = power - whole
                value = _EXP2[12] * f + _EXP2[11]
                value = value * f + _EXP2[10]
                value = value * f + _EXP2[9]
                value = value * f + _EXP2[8]
                value = value * f + _EXP2[7]
                value = value * f + _EXP2[6]
                value = value * f + _EXP2[5]
                value = value * f + _EXP2[4]
                value = value * f + _EXP2[3]
                value = value * f + _EXP2[2]
                value = value * f + _EXP2[1]
                value = (value * f + _EXP2[0]) * total
                exponent = _exponent_of(value)
                work[_NEW_M + 1 + lane] = value * _power_of_two(-exponent)
                work[_NEW_E + 1 + lane] = (top + whole) + exponent
            for lane in range(low):
                work[_NEW_M + 1 + lane] = 0.0
                work[_NEW_E + 1 + lane] = _EMPTY
                shares[at + np.uint64(lane)] = 0.0
                shares[at + np.uint64(LANES + lane)] = 0.0
            for lane in range(high + 1, LANES):
                work[_NEW_M + 1 + lane] = 0.0
                work[_NEW_E + 1 + lane] = _EMPTY
                shares[at + np.uint64(lane)] = 0.0
                shares[at + np.uint64(LANES + lane)] = 0.0
            at += np.uint64(2 * LANES)
            cell += np.uint64(LANES)
            if k == lanes - 1 + columns - 1 and first + lanes == rows:
                result_m, result_e = work[_NEW_M + lanes], work[_NEW_E + lanes]
            if k >= LANES - 1:
                border[k - LANES + 1] = work[_NEW_M + LANES]
                border[columns + 1 + k - LANES + 1] = work[_NEW_E + LANES]
            for index in range(LANES + 1):
                work[_OLD_M + index] = work[_PREVIOUS_M + index]
                work[_OLD_E + index] = work[_PREVIOUS_E + index]
                work[_PREVIOUS_M + index] = work[_NEW_M + index]
                work[_PREVIOUS_E + index] = work[_NEW_E + index]
            work[_PREVIOUS_M] = 0.0
            work[_PREVIOUS_E] = _EMPTY
    return -gamma * (math.log(result_m) + result_e * math.log(2.0))


@_compiled
def _collect(shares, at, first, lanes, width, symmetric, keep, weight, out, stride):
    """Bring the cells of one strip from their skewed place in `shares` to `out`."""
    eps = np.finfo(shares.dtype).eps
    for start in range(0, width, _TILE):
        for lane in range(lanes):
            stop = min(start + _TILE, min(width, first + lane + 1) if symmetric else width)
            row = (first + lane) * stride
            source = np.int64(at) + lane * (2 * LANES + 1)
            if keep == 0.0:
                for j in range(start, stop):
                    cell = shares[source + j * (2 * LANES)]
                    out[row + j] = 0.0 if cell <= _NEVER * eps else weight * cell
            else:
                for j in range(start, stop):
                    cell = shares[source + j * (2 * LANES)]
                    out[row + j] = keep * out[row + j] + (0.0 if cell <= _NEVER * eps else weight * cell)


@_compiled
def backward(shares, rows, columns, symmetric, keep, weight, out, stride, work, border):
    """`out = keep * out + weight * E`, with E the expected alignment of one problem: dR / dC.

    Of a symmetric problem only the cells with column <= row are written; E is that of the whole problem. `shares` is
    overwritten: E replaces the shares of the diagonal.
    """
    border[: columns + 1] = 0.0
    at = np.uint64(shares_size(rows, columns, symmetric))
    for first in range((rows - 1) // LANES * LANES, -1, -LANES):
        lanes = min(LANES, rows - first)
        width = min(columns, first + LANES) if symmetric else columns
        work[: _DIAGONAL + _PITCH] = 0.0
        for k in range(width + LANES - 2, -1, -1):
            at -= np.uint64(2 * LANES)
            low = max(0, k - width + 1)
            high = min(lanes - 1, k)
            if symmetric and k > first:
                low = max(low, (k - first + 1) // 2)
            # What the strip below sends up to its column k - LANES + 1.
            work[_UP + LANES] = border[k - LANES + 1] if k >= LANES - 1 else 0.0
            if k == lanes - 1 + columns - 1 and first + lanes == rows:
                work[_LEFT + lanes - 1] = 1.0
            for lane in range(LANES):
                cell = work[_LEFT + lane] + work[_UP + 1 + lane]
                diagonal = np.float64(shares[at + np.uint64(lane)])
                up = np.float64(shares[at + np.uint64(LANES) + np.uint64(lane)])
                shares[at + np.uint64(lane)] = cell
                work[_LEFT + lane] = cell * (1.0 - diagonal - up)
                work[_UP + lane] = cell * up + work[_DIAGONAL + lane]
                work[_DIAGONAL + lane] = cell * diagonal
            for lane in range(low):
                work[_LEFT + lane] = 0.0
                work[_UP + lane] = 0.0
                work[_DIAGONAL + lane] = 0.0
            if symmetric and k >= first - 1:
                lane = (k - first + 1) // 2
                if low <= lane <= high:
                    sent_up = np.float64(shares[at + np.uint64(lane)]) * np.float64(
                        shares[at + np.uint64(LANES + lane)]
                    )
                    if (k - first) % 2 == 0:
                        # On the diagonal: what goes up belongs to the other triangle.
                        work[_UP + lane] -= sent_up
                    else:
                        # Below it: the step up to the diagonal has a mirror image, a step left to it.
                        work[_UP + lane] += sent_up
            if k < width:
                border[k] = work[_UP]
        _collect(shares, at, first, lanes, width, symmetric, keep, weight, out, stride)


@_compiled
def idm(gram, stride, rows, u, sigma, margin, squared, weight, sums):
    """Sum of LASER's Eq. 1 over both triangles (`f`, not divided); the lower triangle becomes `weight * df / dC`.

    One pass over `C[i, j] = u[i] + u[j] - 2 gram[i, j]`, which soft-DTW of the frames with themselves needs as well.
    `sums` is scratch of `rows` entries for partial sums by column; they let LLVM vectorise the additions.
    """
    sums[:rows] = 0.0
    for i in range(rows):
        row = i * stride
        # Columns before `near` are at least `sigma` frames away and repel; from there to the diagonal frames attract.
        near = max(0, i - sigma + 1)
        for j in range(near):
            offset = np.float64(i - j)
            w = offset * offset + 1.0
            c = u[i] + u[j] - 2.0 * gram[row + j]
            d = _at_least(c, 0.0) if squared else math.sqrt(_at_least(c, 0.0))
            reach = margin - d
            sums[j] += w * _at_least(reach, 0.0)
            slope = -weight * w if squared else -0.5 * weight * w / d
            # The root's derivative at 0 is infinite; equal frames get the subgradient 0.
            gram[row + j] = slope if reach > 0.0 and (c > 0.0 or (squared and c == 0.0)) else 0.0
        for j in range(near, i):
            offset = np.float64(i - j)
            w = offset * offset + 1.0
            c = _at_least(u[i] + u[j] - 2.0 * gram[row + j], 0.0)
            d = c if squared else math.sqrt(c)
            sums[j] += d / w
            slope = weight / w if squared else 0.5 * weight / (w * d)
            gram[row + j] = slope if squared or d > 0.0 else 0.0
        gram[row + i] = 0.0
    return 2.0 * sums[:rows].sum()
