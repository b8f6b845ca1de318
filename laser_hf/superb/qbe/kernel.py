"""The compiled alignment kernel: one pass over the distances; threads share the documents."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numba
import numpy as np
import torch

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _extremes(row):
    """Least and greatest entry, without NaN. Four quarters side by side: one alone is a chain of comparisons."""
    quarter = len(row) // 4
    a = b = c = d = low = row[0]
    e = f = g = h = high = row[0]
    for j in range(quarter):
        w, x, y, z = row[j], row[quarter + j], row[2 * quarter + j], row[3 * quarter + j]
        a, b, c, d = min(a, w), min(b, x), min(c, y), min(d, z)
        e, f, g, h = max(e, w), max(f, x), max(g, y), max(h, z)
    for j in range(4 * quarter, len(row)):
        low, high = min(low, row[j]), max(high, row[j])
    return min(a, b, c, d, low), max(e, f, g, h, high)


@_compiled
def _advance(row, low, factor, old, new):
    """One query frame: `new` from `old`, both with two infinite entries in front of the document's first frame."""
    for j in range(len(row)):
        stay, one, two = old[j + 2], old[j + 1], old[j]
        best = stay if stay < one else one
        best = best if best < two else two
        new[j + 2] = (row[j] - low) * factor + best


@_compiled
def _costs(distance, query_ends, document_ends, first, last, scale, out):
    """Fill `out[:, first:last]`: the costs of all queries in those documents."""
    longest = 0
    for column in range(first, last):
        begin = document_ends[column - 1] if column else 0
        longest = max(longest, document_ends[column] - begin)
    old, new = np.empty(longest + 2), np.empty(longest + 2)
    for query in range(len(query_ends)):
        top = query_ends[query - 1] if query else 0
        for column in range(first, last):
            begin = document_ends[column - 1] if column else 0
            end = document_ends[column]
            old[0] = old[1] = new[0] = new[1] = np.inf
            for i in range(top, query_ends[query]):
                row = distance[i, begin:end]
                low, factor = 0.0, 1.0
                if scale:
                    least, most = _extremes(row)
                    low = np.float64(least)
                    factor = 1.0 / max(np.float64(most) - low, 1e-9)
                if i == top:
                    # The first query frame has no predecessor.
                    for j in range(len(row)):
                        new[j + 2] = (row[j] - low) * factor
                else:
                    _advance(row, low, factor, old, new)
                old, new = new, old
            best, _ = _extremes(old[2 : 2 + end - begin])
            out[query, column] = best / (query_ends[query] - top)


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="qbe")


def costs(
    distance: np.ndarray, query_lengths: Sequence[int], document_lengths: Sequence[int], scale: bool
) -> np.ndarray:
    """`matching.alignment_costs` on arrays, in as many threads as PyTorch uses (`OMP_NUM_THREADS`)."""
    distance = np.ascontiguousarray(distance)
    ends = np.cumsum(np.asarray(document_lengths, dtype=np.int64))
    rows = np.cumsum(np.asarray(query_lengths, dtype=np.int64))
    out = np.empty((len(rows), len(ends)))
    threads = max(1, min(torch.get_num_threads(), len(ends)))
    if threads == 1:
        _costs(distance, rows, ends, 0, len(ends), scale, out)
        return out
    # Each thread gets an equal share of frames.
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], threads + 1)[1:-1]).tolist()
    bounds = [0, *bounds, len(ends)]
    jobs = [
        _pool(threads).submit(_costs, distance, rows, ends, first, last, scale, out)
        for first, last in pairwise(bounds)
        if first < last
    ]
    for job in jobs:
        job.result()
    return out
