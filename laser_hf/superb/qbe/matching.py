"""Subsequence alignment of many queries with many documents at once, equal to dtw-python's pair by pair.

Asymmetric dynamic time warping with open begin and open end (Tormene et al., 2009): every step takes one query frame
and zero, one or two document frames,

    g(0, j) = d(0, j),   g(i, j) = d(i, j) + min(g(i-1, j), g(i-1, j-1), g(i-1, j-2)),

and the cost is the least g(n-1, j) divided by n, the frames of the query. It equals `normalizedDistance` of dtw-python
with `step_pattern="asymmetric", open_begin=True, open_end=True`. A document frame may be used any number of times, so a
query longer than the document still has an alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..frame_store import length_batches

SHORTEST_QUERY = 5  # frames; shorter queries score 0 everywhere, as in SUPERB
_CELLS = {"cpu": 2**22, "cuda": 2**26}  # entries of a distance matrix held at a time


def unit_frames(frames: np.ndarray | torch.Tensor, mean: np.ndarray, deviation: np.ndarray) -> torch.Tensor:
    """Frames (n, dim) normalised by `mean` and `deviation` (dim,), then scaled to unit norm; float32."""
    centred = (torch.as_tensor(frames) - torch.as_tensor(mean).float()) / torch.as_tensor(deviation).float()
    return F.normalize(centred.float(), dim=1)


def frame_distances(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Distances exp(1 - cosine), (n, m), of unit-norm frames (n, dim) and (m, dim).

    SUPERB subtracts 1 from the exponential; `scale_rows` undoes that, so it is left out.
    """
    return (queries @ documents.T).neg_().add_(1).exp_()


def scale_rows(distance: torch.Tensor) -> torch.Tensor:
    """Each row of (n, m), the distances of a query frame to one document, mapped to [0, 1].

    The denominator is at least 1e-9, as in SUPERB: a row of equal distances becomes 0, the best value. Every row of a
    document of one frame is such a row.
    """
    low, high = distance.amin(-1, keepdim=True), distance.amax(-1, keepdim=True)
    return (distance - low) / (high - low).clamp_min(1e-9)


def alignment_costs(
    distance: torch.Tensor, query_lengths: Sequence[int], document_lengths: Sequence[int], scale: bool = True
) -> torch.Tensor:
    """Costs (queries, documents), float64 on the CPU, of the best alignment of each query in each document.

    Args:
        distance: (sum(query_lengths), sum(document_lengths)), float32 or float64, queries below each other and
            documents side by side. On the CPU a compiled kernel runs, on any other device batched tensor operations.
        query_lengths, document_lengths: frames of each, at least 1.
        scale: map each row of each document to [0, 1] first (`scale_rows`).

    Raises:
        ValueError: lengths that are not positive or do not add up to the shape.
    """
    if tuple(distance.shape) != (sum(query_lengths), sum(document_lengths)):
        raise ValueError(
            f"distance is {tuple(distance.shape)}, lengths ask for {sum(query_lengths), sum(document_lengths)}"
        )
    if min([*query_lengths, *document_lengths], default=0) < 1:
        raise ValueError("every query and document needs at least one frame")
    if distance.device.type == "cpu":
        # Imported where it is needed: numba takes a second to load.
        from .kernel import costs

        return torch.from_numpy(costs(distance.numpy(), query_lengths, document_lengths, scale))
    return batched_costs(distance, query_lengths, document_lengths, scale).double().cpu()


def batched_costs(
    distance: torch.Tensor, query_lengths: Sequence[int], document_lengths: Sequence[int], scale: bool = True
) -> torch.Tensor:
    """`alignment_costs` as tensor operations over all pairs at once, in the dtype and on the device of `distance`."""
    device = distance.device
    columns = torch.tensor(document_lengths, device=device)
    position = torch.arange(max(document_lengths), device=device)
    inside = position < columns[:, None]  # (documents, longest)
    index = (columns.cumsum(0) - columns)[:, None] + torch.minimum(position, columns[:, None] - 1)
    padded = distance[:, index]  # (frames, documents, longest), the last frame repeated: it changes no extreme
    if scale:
        padded = scale_rows(padded)
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
    """Scores (queries, documents), float64: minus the alignment cost, 0 for queries of fewer than five frames.

    Args:
        queries, documents: unit-norm frames, each (frames, dim).
        device: where to compute.
    """
    scores = torch.zeros(len(queries), len(documents), dtype=torch.float64)
    if not documents:
        return scores
    lengths = [len(document) for document in documents]
    frames = torch.cat(list(documents)).to(device)
    width = max(lengths) * len(lengths) if frames.device.type != "cpu" else len(frames)
    most = _CELLS.get(frames.device.type, _CELLS["cuda"]) // width
    usable = [index for index, query in enumerate(queries) if len(query) >= SHORTEST_QUERY]
    for batch in length_batches([len(queries[index]) for index in usable], most):
        group = [usable[index] for index in batch]
        found = frame_distances(torch.cat([queries[index] for index in group]).to(device), frames)
        scores[group] = -alignment_costs(found, [len(queries[index]) for index in group], lengths)
    return scores


def best_path(distance: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """Cost and alignment of one pair from its distance matrix (n, m): for each query frame (i, j), in order.

    Of equally good predecessors the latest document frame is taken.
    """
    rows, columns = distance.shape
    total = np.array(distance, dtype=np.float64)
    back = np.zeros((rows, columns), dtype=np.int64)
    for i in range(1, rows):
        steps = np.full((3, columns), np.inf)
        for step in range(min(3, columns)):
            steps[step, step:] = total[i - 1, : columns - step]
        back[i] = steps.argmin(0)
        total[i] += steps.min(0)
    j = int(total[-1].argmin())
    cost, path = float(total[-1, j] / rows), []
    for i in range(rows - 1, -1, -1):
        path.append((i, j))
        j -= int(back[i, j])
    return cost, path[::-1]
