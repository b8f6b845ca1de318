"""Subsequence alignment of many queries with many documents at once, equal to dtw-python's pair by pair.

Asymmetric dynamic time warping with open begin and open end (Tormene et al., 2009): every step takes one query frame
and zero, one or two document frames,

    g(0, j) = d(0, j),   g(i, j) = d(i, j) + min(g(i-1, j), g(i-1, j-1), g(i-1, j-2)),

and the cost is the least g(n-1, j) divided by n, the frames of the query: `normalizedDistance` of dtw-python with
`step_pattern="asymmetric", open_begin=True, open_end=True`. A query longer than the document has an alignment too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import torch
from torch.nn import functional as F

from ..frame_store import length_batches

SHORTEST_QUERY = 5  # frames; shorter queries score 0 everywhere, as in SUPERB
_CELLS = {"cpu": 2**22, "cuda": 2**26}  # entries of a distance matrix held at a time
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
def _costs(distance, query_ends, document_ends, first, last, out):
    """Fill `out[:, first:last]`: the costs of all queries in those documents."""
    old, new = np.empty(distance.shape[1] + 2), np.empty(distance.shape[1] + 2)
    for query in range(len(query_ends)):
        top = query_ends[query - 1] if query else 0
        for column in range(first, last):
            begin = document_ends[column - 1] if column else 0
            end = document_ends[column]
            old[: 2 + end - begin] = 0.0  # the begin is open
            for i in range(top, query_ends[query]):
                row = distance[i, begin:end]
                least, most = _extremes(row)
                low = np.float64(least)
                new[0] = new[1] = np.inf
                _advance(row, low, 1.0 / max(np.float64(most) - low, 1e-9), old, new)
                old, new = new, old
            best, _ = _extremes(old[2 : 2 + end - begin])
            out[query, column] = best / (query_ends[query] - top)


def unit_frames(frames: np.ndarray | torch.Tensor, mean: np.ndarray, deviation: np.ndarray) -> torch.Tensor:
    """Frames (n, dim) normalised by `mean` and `deviation` (dim,), then scaled to unit norm; float32."""
    centred = (torch.as_tensor(frames) - torch.as_tensor(mean).float()) / torch.as_tensor(deviation).float()
    return F.normalize(centred.float(), dim=1)


def frame_distances(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """exp(1 - cosine), (n, m), of unit-norm frames (n, dim) and (m, dim). `scale_rows` would undo SUPERB's - 1."""
    return (queries @ documents.T).neg_().add_(1).exp_()


def scale_rows(distance: torch.Tensor) -> torch.Tensor:
    """Each row of (n, m), the distances of a query frame to one document, mapped to [0, 1].

    The denominator is at least 1e-9, as in SUPERB: equal distances, as to a document of one frame, become 0, the best.
    """
    low, high = distance.amin(-1, keepdim=True), distance.amax(-1, keepdim=True)
    return (distance - low) / (high - low).clamp_min(1e-9)


def alignment_costs(
    distance: torch.Tensor, query_lengths: Sequence[int], document_lengths: Sequence[int]
) -> torch.Tensor:
    """Costs (queries, documents), float64 on the CPU, of the best alignment of each query in each document.

    `distance` is (sum(query_lengths), sum(document_lengths)), float32 or float64, queries below each other and
    documents side by side; its rows are scaled first (`scale_rows`). `ValueError` for lengths, in frames, below 1 or
    that do not add up to its shape. On the CPU a compiled kernel runs, in as many threads as PyTorch uses; on any other
    device batched operations.
    """
    wanted = sum(query_lengths), sum(document_lengths)
    if tuple(distance.shape) != wanted:
        raise ValueError(f"distance is {tuple(distance.shape)}, lengths ask for {wanted}")
    if min([*query_lengths, *document_lengths], default=0) < 1:
        raise ValueError("every query and document needs at least one frame")
    if distance.device.type != "cpu":
        return batched_costs(distance, query_lengths, document_lengths).double().cpu()
    matrix = np.ascontiguousarray(distance.numpy())
    rows, ends = (np.cumsum(np.asarray(lengths, dtype=np.int64)) for lengths in (query_lengths, document_lengths))
    out = np.empty((len(rows), len(ends)))
    threads = max(1, min(torch.get_num_threads(), len(ends)))
    # Each thread gets an equal share of frames.
    bounds = [0, *np.searchsorted(ends, np.linspace(0, ends[-1], threads + 1)[1:-1]).tolist(), len(ends)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _costs(matrix, rows, ends, *part, out), pairwise(bounds)))
    return torch.from_numpy(out)


def batched_costs(
    distance: torch.Tensor, query_lengths: Sequence[int], document_lengths: Sequence[int]
) -> torch.Tensor:
    """`alignment_costs` as tensor operations over all pairs at once, in the dtype and on the device of `distance`."""
    device = distance.device
    columns = torch.tensor(document_lengths, device=device)
    position = torch.arange(max(document_lengths), device=device)
    inside = position < columns[:, None]  # (documents, longest)
    index = (columns.cumsum(0) - columns)[:, None] + torch.minimum(position, columns[:, None] - 1)
    padded = scale_rows(distance[:, index])  # (frames, documents, longest); the last frame, repeated, is no new extreme
    rows = torch.nn.utils.rnn.pad_sequence(padded.split(list(query_lengths)), batch_first=True)
    lengths = torch.tensor(query_lengths, device=device)[:, None, None]
    # Paths only move forward, so the padding behind a document's end does not reach its frames.
    cost = rows[:, 0]
    for i in range(1, rows.shape[1]):
        shifted = F.pad(cost, (2, 0), value=math.inf)
        best = torch.minimum(torch.minimum(cost, shifted[..., 1:-1]), shifted[..., :-2])
        cost = torch.where(i < lengths, rows[:, i] + best, cost)
    return cost.masked_fill(~inside, math.inf).amin(-1) / lengths[..., 0]


def match(
    queries: Sequence[torch.Tensor], documents: Sequence[torch.Tensor], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Scores (queries, documents), float64, of unit-norm frames (frames, dim): minus the cost, 0 for short queries."""
    scores = torch.zeros(len(queries), len(documents), dtype=torch.float64)
    lengths = [len(document) for document in documents]
    frames = torch.cat(list(documents)).to(device)
    on_cpu = frames.device.type == "cpu"
    most = _CELLS["cpu"] // len(frames) if on_cpu else _CELLS["cuda"] // (max(lengths) * len(lengths))
    usable = [index for index, query in enumerate(queries) if len(query) >= SHORTEST_QUERY]
    for batch in length_batches([len(queries[index]) for index in usable], most):
        group = [usable[index] for index in batch]
        found = frame_distances(torch.cat([queries[index] for index in group]).to(device), frames)
        scores[group] = -alignment_costs(found, [len(queries[index]) for index in group], lengths)
    return scores


def best_path(distance: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """Cost and alignment of a distance matrix (n, m): for each query frame (i, j), in order; of ties the latest j."""
    rows, columns = distance.shape
    total, back = distance.astype(np.float64), np.zeros((rows, columns), dtype=np.int64)
    for i in range(1, rows):
        steps = np.full((3, columns), np.inf)
        for step in range(min(3, columns)):
            steps[step, step:] = total[i - 1, : columns - step]
        back[i] = steps.argmin(0)
        total[i] += steps.min(0)
    path = [(rows - 1, int(total[-1].argmin()))]
    while (at := path[-1])[0]:
        path.append((at[0] - 1, at[1] - int(back[at])))
    return float(total[path[0]] / rows), path[::-1]
