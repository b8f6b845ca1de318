"""The Triton kernels of the CUDA backend: one launch each for a ragged batch of any lengths.

The arithmetic is that of `cpu_kernels` with a float32 mantissa in [1, 2) and an int32 binary exponent for each cell.

Each anti-diagonal depends on the two before: m + n - 1 dependent steps. A program of `sweep` takes a problem in strips
of `BLOCK` rows, one lane for each row, and goes through the anti-diagonals k = lane + j. The left neighbour of a cell
is what the lane computed one step before; the upper one is what the lane above computed then (`tl.gather`); the
diagonal one is the upper one of the step before. Up to 1024 rows are a single strip. With more, a strip passes its last
row to the next one through `border` in global memory, of which two halves alternate, behind a barrier.

The sweep reads and writes whole anti-diagonals, which `skew` makes contiguous: it moves cell (i, j) to
[(i + j) mod N, i] of an N x M array. `collect` moves the result back. Both do the element-wise work too. Sizes change
with every micro-batch, so they are not specialised: Triton would compile anew for multiples of 16 and 1.

No GPU has run these kernels yet; `benchmarks.kernel_model` models their time from what the compiler says of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

_EMPTY = tl.constexpr(-(2**30))  # exponent of P = 0
_NOTHING = tl.constexpr(-(2**62))  # the same with mantissa 0, packed
_LOWEST = tl.constexpr(-(2**29))  # exponents stop here; `triton_backend` turns such a value into inf
_LARGEST_COST = tl.constexpr(-(2.0**28))


@triton.jit
def _length(lengths, problem, longest):
    """A length, clamped to 1 ... longest: checking it is a host sync, and a wrong one must not leave the matrix."""
    return tl.minimum(tl.maximum(tl.load(lengths + problem).to(tl.int32), 1), longest)


@triton.jit
def _cost(gram, squares_x, squares_y, problem, i, j, inside, M, N, a, first_symmetric, NORMS: tl.constexpr):
    """C[i, j] = |x_i|^2 + |y_j|^2 + a G[i, j] of a tile; without NORMS, a G[i, j]."""
    base = problem.to(tl.int64) * M * N
    cost = a * tl.load(gram + base + i * N + j, mask=inside, other=0.0)
    if NORMS:
        u = tl.load(squares_x + problem * M + i, mask=inside, other=0.0)
        v = tl.load(squares_y + problem * N + j, mask=inside, other=0.0)
        # A frame has distance 0 to itself; the product leaves rounding noise there.
        cost = tl.where((i == j) & (problem >= first_symmetric), 0.0, (u + v) + cost)
    return cost


@triton.jit(do_not_specialize=["M", "N", "first_symmetric"])
def skew(
    gram, squares_x, squares_y, lengths_x, lengths_y, powers, M, N, a, scale, first_symmetric,
    NORMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`powers[b, (i + j) mod N, i] = -scale C[b, i, j]`; grid (problems, row tiles, tiles of anti-diagonals)."""
    problem = tl.program_id(0)
    m = _length(lengths_x, problem, M)
    n = _length(lengths_y, problem, N)
    # The tile starts at the anti-diagonal of its own first row: half of all anti-diagonals miss a row.
    first = tl.program_id(1) * TILE
    i = first + tl.arange(0, TILE)[:, None]
    k = first + tl.program_id(2) * TILE + tl.arange(0, TILE)[None, :]
    j = k - i
    inside = (i < m) & (j >= 0) & (j < n)
    cost = _cost(gram, squares_x, squares_y, problem, i, j, inside, M, N, a, first_symmetric, NORMS)
    place = powers + problem.to(tl.int64) * M * N + (k % N) * M + i
    tl.store(place, -scale * cost, mask=inside)


@triton.jit(do_not_specialize=["M", "N"])
def sweep(
    powers, share_diagonal, share_up, border, border_back, lengths_x, lengths_y, result_mantissa, result_exponent,
    M, N, BLOCK: tl.constexpr, STRIPS: tl.constexpr, BACKWARD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """P of the last cell of each problem and, with BACKWARD, E written over `powers`; grid (problems,).

    `border` (int64) and `border_back` (float32) have 2 N entries for each problem. STRIPS: whether any problem has
    several strips.
    """
    problem = tl.program_id(0)
    m = _length(lengths_x, problem, M)
    n = _length(lengths_y, problem, N)
    base = problem.to(tl.int64) * M * N
    borders = problem.to(tl.int64) * 2 * N
    lane = tl.arange(0, BLOCK)
    above = tl.maximum(lane - 1, 0)
    below = tl.minimum(lane + 1, BLOCK - 1)
    strips = tl.cdiv(m, BLOCK)

    for strip in range(0, strips):
        first = strip * BLOCK
        rows = tl.minimum(BLOCK, m - first)
        read = border + borders + ((strip + 1) % 2) * N
        write = border + borders + (strip % 2) * N
        left_m = tl.zeros((BLOCK,), tl.float32)
        left_e = tl.full((BLOCK,), _EMPTY, tl.int32)
        # Every path begins at P[-1, -1] = 1.
        diagonal_e = tl.where((lane == 0) & (strip == 0), 0, _EMPTY)
        diagonal_m = tl.where((lane == 0) & (strip == 0), 1.0, 0.0)
        for k in tl.range(0, n + rows - 1, num_stages=STAGES):
            j = k - lane
            valid = (j >= 0) & (j < n) & (lane < rows)
            place = base + ((first + k) % N) * M + first + lane
            power = tl.load(powers + place, mask=valid, other=0.0)
            # Mantissa and exponent as one int64, so that one exchange moves both.
            own = (left_e.to(tl.int64) << 32) | (left_m.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
            up = tl.gather(own, above, 0)
            if STRIPS:
                tl.store(write + j - 1, own, mask=(lane == BLOCK - 1) & (j >= 1) & (j <= n))
                edge = tl.load(read + k, mask=(strip > 0) & (k < n), other=_NOTHING)
                up = tl.where(lane == 0, edge, up)
            else:
                up = tl.where(lane == 0, _NOTHING, up)
            up_m = (up & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
            up_e = (up >> 32).to(tl.int32)
            top = tl.maximum(tl.maximum(diagonal_e, up_e), left_e)
            # 2^(e - top) from its bit pattern; summands below 2^-126 are lost.
            from_diagonal = diagonal_m * ((tl.maximum(diagonal_e - top, -126) + 127) << 23).to(tl.float32, bitcast=True)
            from_up = up_m * ((tl.maximum(up_e - top, -126) + 127) << 23).to(tl.float32, bitcast=True)
            from_left = left_m * ((tl.maximum(left_e - top, -126) + 127) << 23).to(tl.float32, bitcast=True)
            total = from_diagonal + from_up + from_left
            if BACKWARD:
                inverse = 1.0 / total
                tl.store(share_diagonal + place, from_diagonal * inverse, mask=valid)
                tl.store(share_up + place, from_up * inverse, mask=valid)
            # Unlike tl.maximum, this keeps NaN.
            power = tl.where(power < _LARGEST_COST, _LARGEST_COST, power)
            whole = tl.floor(power)
            value = total * tl.exp2(power - whole)
            shift = ((value.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
            mantissa = value * ((127 - shift) << 23).to(tl.float32, bitcast=True)
            exponent = tl.maximum(top + whole.to(tl.int32) + shift, _LOWEST)
            left_m = tl.where(valid, mantissa, 0.0)
            left_e = tl.where(valid, exponent, _EMPTY)
            diagonal_m, diagonal_e = up_m, up_e
        if STRIPS:
            # The lane of the strip's last row ends the last step at its last column.
            own = (left_e.to(tl.int64) << 32) | (left_m.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
            tl.store(write + n - 1 + lane * 0, own, mask=(lane == BLOCK - 1) & (rows == BLOCK))
        if strip == strips - 1:
            # In the last step of the last strip the lane of the last row is at the last column.
            last = lane == rows - 1
            tl.store(result_mantissa + problem + lane * 0, left_m, mask=last)
            tl.store(result_exponent + problem + lane * 0, left_e, mask=last)
        tl.debug_barrier()

    if BACKWARD:
        for done in range(0, strips):
            strip = strips - 1 - done
            first = strip * BLOCK
            rows = tl.minimum(BLOCK, m - first)
            read = border_back + borders + ((strip + 1) % 2) * N
            write = border_back + borders + (strip % 2) * N
            # What a lane passes to the left, up, and diagonally up (a step later).
            to_left = tl.zeros((BLOCK,), tl.float32)
            to_up = tl.zeros((BLOCK,), tl.float32)
            to_diagonal = tl.zeros((BLOCK,), tl.float32)
            steps = n + rows - 1
            for t in tl.range(0, steps, num_stages=STAGES):
                k = steps - 1 - t
                j = k - lane
                valid = (j >= 0) & (j < n) & (lane < rows)
                place = base + ((first + k) % N) * M + first + lane
                diagonal = tl.load(share_diagonal + place, mask=valid, other=0.0)
                up = tl.load(share_up + place, mask=valid, other=0.0)
                received = tl.gather(to_up, below, 0)
                if STRIPS:
                    inside = (strip < strips - 1) & (k >= BLOCK - 1)
                    edge = tl.load(read + k - (BLOCK - 1), mask=inside, other=0.0)
                    received = tl.where(lane == BLOCK - 1, edge, received)
                else:
                    received = tl.where(lane == BLOCK - 1, 0.0, received)
                cell = to_left + received
                cell = tl.where((first + lane == m - 1) & (j == n - 1), 1.0, cell)
                cell = tl.where(valid, cell, 0.0)
                tl.store(powers + place, cell, mask=valid)
                # Shares of cells outside are loaded as 0, and those cells hold 0.
                to_left = cell * (1.0 - diagonal - up)
                to_up = cell * up + to_diagonal
                to_diagonal = cell * diagonal
                if STRIPS:
                    tl.store(write + k + lane * 0, to_up, mask=(lane == 0) & (k < n))
            tl.debug_barrier()


@triton.jit(do_not_specialize=["M", "N", "first_symmetric", "sigma"])
def collect(
    aligned, gram, squares_x, squares_y, lengths_x, lengths_y, weights, idm_weights, out, idm_sums, M, N, a,
    first_symmetric, sigma, margin,
    IDM: tl.constexpr, SQUARED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`out[b, i, j] = weights[b] E[b, i, j] + idm_weights[b] df / dC[b, i, j]`, zero in the padding.

    The second summand exists with IDM, for symmetric problems; `idm_sums[b, tile]` is then the tile's part of `f` of
    LASER's Eq. 1. Grid as for `skew`; problems before `first_symmetric` have an IDM part of 0.
    """
    problem = tl.program_id(0)
    m = _length(lengths_x, problem, M)
    n = _length(lengths_y, problem, N)
    first = tl.program_id(1) * TILE
    i = first + tl.arange(0, TILE)[:, None]
    k = first + tl.program_id(2) * TILE + tl.arange(0, TILE)[None, :]
    j = k - i
    inside = (i < m) & (j >= 0) & (j < n)
    base = problem.to(tl.int64) * M * N
    result = tl.load(weights + problem) * tl.load(aligned + base + (k % N) * M + i, mask=inside, other=0.0)
    if IDM:
        own = inside & (problem >= first_symmetric)
        cost = _cost(gram, squares_x, squares_y, problem, i, j, own, M, N, a, first_symmetric, True)
        cost = tl.maximum(cost, 0.0)
        offset = tl.abs(i - j)
        w = offset.to(tl.float32) * offset.to(tl.float32) + 1.0
        # The root's derivative at 0 is infinite; equal frames get the subgradient 0.
        if SQUARED:
            d = cost
            slope = tl.where(i == j, 0.0, 1.0)
        else:
            d = tl.sqrt(cost)
            slope = tl.where(cost > 0.0, 0.5 / tl.where(cost > 0.0, d, 1.0), 0.0)
        reach = margin - d
        far = offset >= sigma
        value = tl.where(far, w * tl.maximum(reach, 0.0), d / w)
        slope = slope * tl.where(far, tl.where(reach > 0.0, -w, 0.0), 1.0 / w)
        result += tl.load(idm_weights + problem) * tl.where(own, slope, 0.0)
        tiles = tl.num_programs(1) * tl.num_programs(2)
        tile = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
        tl.store(idm_sums + problem * tiles + tile, tl.sum(tl.where(own, value, 0.0)))
    tl.store(out + base + i * N + j, result, mask=(i < M) & (j >= 0) & (j < N))
