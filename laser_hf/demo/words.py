"""Word discrimination: are two spoken copies of a word closer than two different words?

The measure is the same-different task of Carlin, Thomas, Jansen and Hermansky, "Rapid evaluation of
speech representations for spoken term discovery" (Interspeech 2011). Every pair of word tokens gets a
DTW distance between their frame sequences; a good representation gives small distances to pairs of the
same word and large ones to pairs of different words. All pairs are of two different speakers, so that a
representation cannot score by telling speakers apart. Nothing is trained.

The DTW is the classical symmetric one of Sakoe and Chiba, "Dynamic programming algorithm optimization
for spoken word recognition" (IEEE Trans. ASSP 26(1), 1978): a diagonal step counts the cell twice, so
every path has total weight ``n + m`` and the cost divided by ``n + m`` is an average frame distance. It
is the step pattern ``symmetric2`` of the dtw packages, except that these count the first cell once.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Word",
    "WordReport",
    "average_precision",
    "dtw_distances",
    "format_before_after",
    "read_words",
    "word_discrimination",
]

_COLUMNS = ("utterance", "word", "start_seconds", "duration_seconds")
# Bound on the numbers held at once for a batch of pairs (its frames and its cost matrices): 32 MB each.
_BATCH_ELEMENTS = 8_000_000


@dataclass(frozen=True, order=True)
class Word:
    """One spoken word: where it is (seconds from the start of its utterance) and who said it."""

    utterance: str
    start: float
    duration: float
    word: str
    speaker: str


@dataclass(frozen=True)
class WordReport:
    """Result of :func:`word_discrimination`.

    Distances are DTW averages of cosine distances, from 0 (same direction) to 2 (opposite).
    """

    same_distance: float
    """Mean distance over pairs of the same word. Lower is better, relative to ``different_distance``."""
    different_distance: float
    """Mean distance over pairs of different words."""
    ratio: float
    """``same_distance / different_distance``. Lower is better; 1 means that words are not told apart."""
    average_precision: float
    """Area under the precision-recall curve of ranking pairs by distance. Higher is better, 1 is perfect."""
    chance: float
    """Expected average precision of a random ranking: the share of same-word pairs."""
    same_pairs: int
    different_pairs: int
    words: int
    """Word tokens compared."""
    vocabulary: int
    """Different words among them."""
    speakers: int

    def to_dict(self) -> dict[str, float | int]:
        """The report as a plain dictionary, ready for JSON."""
        return asdict(self)


def read_words(
    path: str | PathLike[str],
    *,
    split: str | None = None,
    utterances: Collection[str] | None = None,
    min_letters: int = 4,
) -> list[Word]:
    """Read the words of at least ``min_letters`` letters from a tab-separated alignment file.

    Two layouts are read, told apart by the header: the demo's ``words.tsv`` (``utterance``, ``split``,
    ``speaker``, ``word``, ``start_seconds``, ``duration_seconds``), and alignments of LibriSpeech with
    ``utterance``, ``word``, ``start_seconds``, ``duration_seconds`` and possibly more columns, where the
    speaker is what precedes the first hyphen of the utterance. Silences and other markers in angle
    brackets (``<sil>``, ``<unk>``) are left out. Words are lower-cased.

    Args:
        path: the file.
        split: keep only this value of the ``split`` column (an error when the file has no such column).
        utterances: keep only these utterances.
        min_letters: shortest word kept. Short words are mostly function words, whose spoken forms vary.

    Returns:
        The words, sorted by utterance and start.
    """
    wanted = None if utterances is None else set(utterances)
    words = []
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = reader.fieldnames or []
        missing = [column for column in _COLUMNS if column not in columns]
        if missing:
            raise ValueError(f"{path} is no alignment file: its header lacks {', '.join(missing)}.")
        if split is not None and "split" not in columns:
            raise ValueError(f"{path} has no split column, so split={split!r} cannot be selected.")
        for row in reader:
            utterance, word = row["utterance"], row["word"].lower()
            if word.startswith("<") or sum(map(str.isalpha, word)) < min_letters:
                continue
            if split is not None and row["split"] != split:
                continue
            if wanted is not None and utterance not in wanted:
                continue
            start, duration = float(row["start_seconds"]), float(row["duration_seconds"])
            if not (math.isfinite(start) and math.isfinite(duration) and start >= 0 and duration > 0):
                raise ValueError(f"{path}, line {reader.line_num}: no valid start and duration.")
            speaker = row.get("speaker") or utterance.split("-")[0]
            words.append(Word(utterance, start, duration, word, speaker))
    return sorted(words)


def word_discrimination(
    frames: Mapping[str, Tensor],
    words: Iterable[Word],
    frame_rate: float = 50.0,
    max_pairs: int = 50_000,
    seed: int = 0,
) -> WordReport:
    """Compare same-word and different-word pairs of different speakers by DTW.

    Args:
        frames: for every utterance, its frames, ``(frames, dim)``; any floating type, on any device.
            Frame ``i`` is taken to describe the time ``(i + 0.5) / frame_rate`` seconds.
        words: the words to compare, as from :func:`read_words`; every utterance must be in ``frames``.
        frame_rate: frames per second (50 for HuBERT and WavLM).
        max_pairs: when there are more pairs than this, a sample of this size is drawn that keeps the
            share of same-word pairs, so that average precision estimates the one of all pairs.
        seed: seed of that sample. The order of ``words`` does not matter.

    Returns:
        The mean distances, their ratio and the same-different average precision.

    Raises:
        ValueError: if the words allow no comparison (no word said by two speakers, or only one word), or
            if the frames do not fit the words.
    """
    if max_pairs < 2:
        raise ValueError(f"max_pairs must be at least 2, got {max_pairs}.")
    if not frame_rate > 0:
        raise ValueError(f"frame_rate must be positive, got {frame_rate}.")
    tokens = sorted(words)
    if not tokens:
        raise ValueError("There are no words to compare.")
    segments = _segments(frames, tokens, frame_rate)

    first, second, same = _speaker_crossing_pairs(tokens, max_pairs, seed)
    distances = dtw_distances(segments, first, second)
    same_distance = float(distances[same].mean())
    different_distance = float(distances[~same].mean())
    if different_distance == 0:
        raise ValueError("All frames point the same way: different words have distance zero.")
    used = [tokens[index] for index in np.union1d(first, second)]
    return WordReport(
        same_distance=same_distance,
        different_distance=different_distance,
        ratio=same_distance / different_distance,
        average_precision=average_precision(distances, same),
        chance=float(same.mean()),
        same_pairs=int(same.sum()),
        different_pairs=int((~same).sum()),
        words=len(used),
        vocabulary=len({token.word for token in used}),
        speakers=len({token.speaker for token in used}),
    )


def _segments(frames: Mapping[str, Tensor], tokens: Sequence[Word], frame_rate: float) -> list[Tensor]:
    """The frames of every token, ``(frames of the word, dim)``, in float32 on the CPU, at unit length."""
    utterances: dict[str, Tensor] = {}
    segments = []
    for token in tokens:
        if token.utterance not in frames:
            raise ValueError(f"There are no frames for the utterance {token.utterance!r}.")
        if token.utterance not in utterances:
            matrix = torch.as_tensor(frames[token.utterance]).detach().to("cpu", torch.float32)
            if matrix.ndim != 2:
                raise ValueError(f"The frames of {token.utterance!r} must be (frames, dim), got {tuple(matrix.shape)}.")
            if not torch.isfinite(matrix).all():
                raise ValueError(f"The frames of {token.utterance!r} are not all finite.")
            # A zero frame keeps length zero, and so has distance 1 (no similarity) to everything.
            utterances[token.utterance] = torch.nn.functional.normalize(matrix, dim=1)
        matrix = utterances[token.utterance]
        # Frames whose time lies within the word; a very short word keeps the frame nearest its middle.
        begin = math.ceil(token.start * frame_rate - 0.5)
        end = math.ceil((token.start + token.duration) * frame_rate - 0.5)
        if end <= begin:
            begin = math.floor((token.start + token.duration / 2) * frame_rate)
            end = begin + 1
        # Encoders drop a frame or so at the end, but the rest of the word must be there.
        if end > len(matrix) + 2 or begin >= len(matrix):
            raise ValueError(
                f"{token.utterance!r} has {len(matrix)} frames, but its word {token.word!r} ends at frame "
                f"{end} for a frame rate of {frame_rate:g} Hz: the frames and the words do not fit."
            )
        segments.append(matrix[begin:end])
    dims = {segment.shape[1] for segment in segments}
    if len(dims) > 1:
        raise ValueError(f"The frames of all utterances must have one dimension, got {sorted(dims)}.")
    return segments


def _speaker_crossing_pairs(
    tokens: Sequence[Word], max_pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of tokens of different speakers, all or ``max_pairs`` of them.

    Returns:
        Indices ``first < second``, and whether the word is the same; each ``(pairs,)``.
    """
    _, word = np.unique([token.word for token in tokens], return_inverse=True)
    _, speaker = np.unique([token.speaker for token in tokens], return_inverse=True)
    both = word * (speaker.max() + 1) + speaker
    crossing = _equal_pairs(np.zeros_like(word)) - _equal_pairs(speaker)
    totals = {True: _equal_pairs(word) - _equal_pairs(both)}
    totals[False] = crossing - totals[True]
    if totals[True] == 0:
        raise ValueError(
            "No word is said by two different speakers, so there is no same-word pair to compare "
            f"({len(tokens)} word tokens of {speaker.max() + 1} speaker(s))."
        )
    if totals[False] == 0:
        raise ValueError("No two speakers say different words, so there is no different-word pair to compare.")
    # Which pairs to keep, as sorted ranks in the order in which the loop below meets them.
    if crossing <= max_pairs:
        ranks = {kind: np.arange(total) for kind, total in totals.items()}
    else:
        generator = np.random.default_rng(seed)
        wanted = {True: min(max(round(max_pairs * totals[True] / crossing), 1), max_pairs - 1)}
        wanted[False] = max_pairs - wanted[True]
        ranks = {
            kind: np.sort(generator.choice(total, min(wanted[kind], total), replace=False))
            for kind, total in totals.items()
        }
    # Token by token, because the full list of pairs of a large corpus would not fit into memory.
    met = {True: 0, False: 0}
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index in range(len(tokens) - 1):
        other_speaker = speaker[index + 1 :] != speaker[index]
        same_word = word[index + 1 :] == word[index]
        for kind in (True, False):
            partners = np.flatnonzero(other_speaker & (same_word if kind else ~same_word)) + index + 1
            low, high = np.searchsorted(ranks[kind], (met[kind], met[kind] + len(partners)))
            partners_kept = partners[ranks[kind][low:high] - met[kind]]
            met[kind] += len(partners)
            count = len(partners_kept)
            parts.append((np.full(count, index), partners_kept, np.full(count, kind)))
    first, second, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, same


def _equal_pairs(labels: np.ndarray) -> int:
    """How many unordered pairs of entries are equal."""
    counts = np.unique(labels, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def dtw_distances(
    segments: Sequence[Tensor], first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Normalised symmetric DTW distances of many pairs of frame sequences, in batches.

    Args:
        segments: frame sequences ``(frames, dim)`` whose rows have length one (or zero).
        first, second: indices into ``segments``; pair ``p`` compares ``first[p]`` with ``second[p]``.

    Returns:
        ``(pairs,)`` float64: for each pair the smallest path cost, divided by ``n + m`` frames.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError("Every sequence needs at least one frame.")
    # The longer sequence is the column; pairs with columns of like lengths, and of those the ones with the
    # same column, are next to each other. So little is padded and one matrix product serves many pairs.
    swap = lengths[first] > lengths[second]
    rows, columns = np.where(swap, second, first), np.where(swap, first, second)
    order = np.lexsort((lengths[rows], columns, lengths[columns]))
    dim = segments[0].shape[1]

    def elements(pair: int, count: int) -> int:
        length = int(lengths[columns[pair]])
        return count * length * max(length, dim)

    distances = np.empty(len(first), dtype=np.float64)
    begin = 0
    while begin < len(order):
        # Lengths grow along the order, so that the last pair of a batch bounds its size.
        end = min(len(order), begin + max(1, _BATCH_ELEMENTS // elements(order[begin], 1)))
        while end - begin > 1 and elements(order[end - 1], end - begin) > _BATCH_ELEMENTS:
            end = begin + (end - begin) // 2
        pairs = order[begin:end]
        n, m = lengths[rows[pairs]], lengths[columns[pairs]]
        distances[pairs] = _symmetric_dtw(_costs(segments, rows[pairs], columns[pairs]), n, m) / (n + m)
        begin = end
    return distances


def _costs(segments: Sequence[Tensor], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosine distances ``(pairs, longest row, longest column)`` of all frames of every pair, padded."""
    used, place = np.unique(rows, return_inverse=True)
    padded = torch.nn.utils.rnn.pad_sequence([segments[i].float() for i in used], batch_first=True)
    gathered = padded[torch.from_numpy(place)]
    pairs, height, dim = gathered.shape
    width = max(len(segments[i]) for i in np.unique(columns))
    cost = torch.zeros(pairs, height, width)
    # Pairs with the same column sequence follow each other: one matrix product for each such run.
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], pairs], strict=True):
        column = segments[columns[begin]].float()
        product = gathered[begin:end].reshape(-1, dim) @ column.T
        cost[begin:end, :, : len(column)] = (1 - product).view(end - begin, height, -1)
    return cost.clamp_(min=0).numpy()


def _symmetric_dtw(cost: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Smallest path costs for padded cost matrices ``(pairs, rows, columns)`` of true sizes ``n`` x ``m``.

    All pairs and all cells of one anti-diagonal are computed together. Padding needs no masking: a cell
    only depends on cells above and to the left of it, so cell ``(n - 1, m - 1)`` never sees any.
    """
    pairs, height, width = cost.shape
    # Anti-diagonal k of all pairs as one array over the rows: skewed[k, i] = cost[i, k - i], pairs last so
    # that every step works on whole memory rows.
    skewed = np.full((height + width - 1, height, pairs), np.inf, dtype=cost.dtype)
    by_cell = np.ascontiguousarray(cost.transpose(1, 2, 0))
    for row in range(height):
        skewed[row : row + width, row] = by_cell[row]
    # Row i of the totals is stored at i + 1; row 0 stays infinite (there is nothing above the first row).
    before = np.full((height + 1, pairs), np.inf, dtype=cost.dtype)  # anti-diagonal k - 2
    last = before.copy()  # anti-diagonal k - 1
    last[1] = 2 * skewed[0, 0]
    result = np.empty(pairs, dtype=np.float64)
    final = n + m - 2
    done = np.flatnonzero(final == 0)
    result[done] = last[n[done], done]
    for diagonal in range(1, height + width - 1):
        local = skewed[diagonal]
        current = np.full_like(before, np.inf)
        straight = np.minimum(last[:-1], last[1:]) + local
        np.minimum(straight, before[:-1] + 2 * local, out=current[1:])
        before, last = last, current
        done = np.flatnonzero(final == diagonal)
        result[done] = last[n[done], done]
    return result


def average_precision(distances: np.ndarray, same: np.ndarray) -> float:
    """Average precision of finding the ``same`` pairs by small distance.

    It is the sum over the distinct distances, in rising order, of the rise in recall times the precision
    reached there; pairs at an equal distance are accepted together, so their order does not matter.

    Args:
        distances: ``(pairs,)``.
        same: ``(pairs,)`` booleans, at least one of them true.
    """
    distances, same = np.asarray(distances), np.asarray(same, dtype=bool)
    if distances.shape != same.shape or distances.ndim != 1:
        raise ValueError(f"Shapes do not match: {distances.shape} and {same.shape}.")
    if not same.any():
        raise ValueError("Average precision needs at least one same-word pair.")
    order = np.argsort(distances, kind="stable")
    ranked = distances[order]
    found = np.cumsum(same[order])
    last_of_tie = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    found = found[last_of_tie]
    precision = found / (last_of_tie + 1)
    recall_rise = np.diff(found, prepend=0) / found[-1]
    return float(np.sum(precision * recall_rise))


def format_before_after(before: WordReport, after: WordReport) -> str:
    """The table that the demo prints: both reports side by side, and which way is better."""
    counts = (before.same_pairs, before.different_pairs, before.words, before.vocabulary, before.speakers)
    if counts != (after.same_pairs, after.different_pairs, after.words, after.vocabulary, after.speakers):
        raise ValueError("The two reports are not of the same pairs, so they cannot be compared.")
    rows = (
        ("same-word distance", before.same_distance, after.same_distance, ""),
        ("different-word distance", before.different_distance, after.different_distance, ""),
        ("same / different", before.ratio, after.ratio, "lower is better"),
        ("average precision", before.average_precision, after.average_precision, "higher is better"),
    )
    lines = [f"{'':<24}{'before':>8}{'after':>8}{'change':>9}"]
    for name, old, new, note in rows:
        lines.append(f"{name:<24}{old:>8.3f}{new:>8.3f}{new - old:>+9.3f}  {note}".rstrip())
    lines.append(
        f"{before.same_pairs} same-word and {before.different_pairs} different-word pairs of different "
        f"speakers ({before.words} tokens of {before.vocabulary} words, {before.speakers} speakers; "
        f"average precision by chance {before.chance:.3f})"
    )
    return "\n".join(lines)
