"""The compiled alignment kernel: one pass over the distances, documents shared among threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numba
import numpy as np
import torch

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def _extremes(row):
    """Least and greatest entry; eight running pairs, as a single one is a chain of dependent comparisons."""
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = row[0]
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = row[0]
    whole = len(row) // 8 * 8
    for j in range(0, whole, 8):
        x = row[j]
        a0, b0 = (x if x < a0 else a0), (x if x > b0 else b0)
        x = row[j + 1]
        a1, b1 = (x if x < a1 else a1), (x if x > b1 else b1)
        x = row[j + 2]
        a2, b2 = (x if x < a2 else a2), (x if x > b2 else b2)
        x = row[j + 3]
        a3, b3 = (x if x < a3 else a3), (x if x > b3 else b3)
        x = row[j + 4]
        a4, b4 = (x if x < a4 else a4), (x if x > b4 else b4)
        x = row[j + 5]
        a5, b5 = (x if x < a5 else a5), (x if x > b5 else b5)
        x = row[j + 6]
        a6, b6 = (x if x < a6 else a6), (x if x > b6 else b6)
        x = row[j + 7]
        a7, b7 = (x if x < a7 else a7), (x if x > b7 else b7)
    for j in range(whole, len(row)):
        x = row[j]
        a0, b0 = (x if x < a0 else a0), (x if x > b0 else b0)
    return min(a0, a1, a2, a3, a4, a5, a6, a7), max(b0, b1, b2, b3, b4, b5, b6, b7)


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
                    # Nothing comes before the first query frame: its own distances alone.
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
    # Equal shares of frames, not of documents.
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
