"""Distances between stretches of frames: the dynamic time warping that word discrimination and ABX share.

It is the symmetric one of Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition"
(IEEE Trans. ASSP 26(1), 1978): a diagonal step counts its cell twice, so every path has total weight `n + m`, and the
cost divided by `n + m` is an average frame distance. The dtw packages call it `symmetric2`, but count the first cell
once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numba
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import LaserError
from .alignments import Token


def token_frames(
    frames: Mapping[str, Tensor],
    tokens: Sequence[Token],
    frame_rate: float = 50.0,
    first_seconds: float | None = None,
) -> list[Tensor]:
    """The frames of every token, `(frames of the token, dim)`, in float32 on the CPU, scaled to unit length.

    A token has the frames whose time lies within it; a very short one has the frame nearest its middle. A zero frame
    keeps length zero, so its distance to everything is 1.

    Args:
        frames: for every utterance, its frames, `(frames, dim)`; any floating type, on any device.
        tokens: words or phones; every utterance must be in `frames`.
        frame_rate: frames per second (50 for HuBERT and WavLM).
        first_seconds: time of frame 0; by default the middle of its period.

    Raises:
        LaserError: frames that are not finite, or a token beyond their end.
        ValueError: no frames for an utterance, or frames of a wrong shape.
    """
    if not frame_rate > 0:
        raise ValueError(f"frame_rate must be positive, got {frame_rate}")
    offset = 0.5 if first_seconds is None else first_seconds * frame_rate
    utterances: dict[str, Tensor] = {}
    segments = []
    for token in tokens:
        if token.utterance not in frames:
            raise ValueError(f"there are no frames for the utterance {token.utterance!r}")
        if token.utterance not in utterances:
            matrix = torch.as_tensor(frames[token.utterance]).detach().to("cpu", torch.float32)
            if matrix.ndim != 2:
                raise ValueError(f"the frames of {token.utterance!r} must be (frames, dim), got {tuple(matrix.shape)}")
            if not torch.isfinite(matrix).all():
                raise LaserError(f"the frames of {token.utterance!r} are not all finite")
            utterances[token.utterance] = torch.nn.functional.normalize(matrix, dim=1)
        matrix = utterances[token.utterance]
        begin = max(0, math.ceil(token.start * frame_rate - offset))
        end = math.ceil(token.end * frame_rate - offset)
        if end <= begin:
            begin = max(0, math.floor((token.start + token.duration / 2) * frame_rate - offset + 0.5))
            end = begin + 1
        # Encoders drop a frame or so at the end, but the rest of the token must be there.
        if end > len(matrix) + 2 or begin >= len(matrix):
            raise LaserError(
                f"{token.utterance!r} has {len(matrix)} frames, but its {token.label!r} ends at frame {end} for a "
                f"frame rate of {frame_rate:g} Hz: the frames and the times do not fit"
            )
        segments.append(matrix[begin:end])
    dims = {segment.shape[1] for segment in segments}
    if len(dims) > 1:
        raise ValueError(f"the frames of all utterances must have one dimension, got {sorted(dims)}")
    return segments


def mean_pooled(segments: Sequence[Tensor]) -> list[Tensor]:
    """Each stretch as the one unit-length frame `(1, dim)` in the direction of its mean."""
    return [torch.nn.functional.normalize(segment.mean(0, keepdim=True), dim=1) for segment in segments]


def dtw_distances(
    segments: Sequence[Tensor],
    first: Sequence[int] | np.ndarray,
    second: Sequence[int] | np.ndarray,
    progress: str = "",
) -> np.ndarray:
    """Normalised symmetric DTW distances of many pairs, each over cosine distances of frames.

    Args:
        segments: stretches of frames `(frames, dim)` whose rows have length one (or zero).
        first, second: indices into `segments`; pair `p` compares `first[p]` with `second[p]`.
        progress: label of a progress bar; none if empty.

    Returns:
        `(pairs,)` float64: the smallest path cost of each pair, divided by `n + m` frames; 0 to 2.

    Raises:
        ValueError: a stretch without frames.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError("every stretch needs at least one frame")
    segments = [segment.float() for segment in segments]
    distances = np.empty(len(first), dtype=np.float64)
    order = np.argsort(first, kind="stable")
    rows, heads = np.unique(first[order], return_index=True)
    groups = zip(rows, np.split(order, heads[1:]), strict=False)
    # One matrix product serves all pairs with the same first stretch.
    for row, pairs in tqdm(groups, total=len(rows), desc=progress, disable=not progress, mininterval=2):
        partners, place = np.unique(second[pairs], return_inverse=True)
        columns = torch.cat([segments[partner] for partner in partners])
        similarity = (segments[row] @ columns.T).numpy()
        distances[pairs] = _symmetric_dtw(similarity, lengths[partners])[place]
    return distances


@numba.njit(cache=True, nogil=True)
def _symmetric_dtw(similarity, sizes):
    """Normalised costs `(partners,)` for cosine similarities `(n, sum(sizes))`, the partners side by side."""
    n = similarity.shape[0]
    costs = np.empty(len(sizes))
    last = np.empty(sizes.max())
    begin = 0
    for partner in range(len(sizes)):
        m = sizes[partner]
        for i in range(n):
            diagonal = 0.0  # total of the cell up and to the left
            for j in range(m):
                local = max(1.0 - similarity[i, begin + j], 0.0)
                if i == 0:
                    best = 2 * local if j == 0 else last[j - 1] + local
                elif j == 0:
                    best = last[0] + local
                else:
                    best = min(diagonal + 2 * local, last[j] + local, last[j - 1] + local)
                if i > 0:
                    diagonal = last[j]
                last[j] = best
        costs[partner] = last[m - 1] / (n + m)
        begin += m
    return costs
