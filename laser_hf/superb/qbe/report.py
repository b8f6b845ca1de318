"""What a run leaves beside its record: the table on the screen, files of scores, skipped recordings, pictures.

`benchmark.stdlist.xml` is the file that the official scorer of QUESST reads.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

from ..features import Features, Utterance, read_waveform
from .data import QbeData
from .evaluation import DIGITS, Evaluation
from .matching import best_path, frame_distances, scale_rows, unit_frames
from .scoring import BETA, DECISION_THRESHOLD, DetectionCurve, detection_curve
from .search import Search

logger = logging.getLogger(__name__)

SCORES = "scores.tsv"
STDLIST = "benchmark.stdlist.xml"
SKIPPED = "skipped.tsv"
DETECTION = "det.png"
ALIGNMENT = "alignment.png"
_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)

Skipped = Mapping[Utterance, tuple[str, str]]
"""Kind and reason of each recording that could not be used."""


def print_table(evaluations: Mapping[tuple[str, int], Evaluation], chosen: tuple[str, int], trials: str) -> None:
    """Measures of every split and layer; `chosen` is the reported one."""
    print(f"{'split':>5} {'layer':>5} {'MAP':>7} {'P@N':>7} {'MTWV':>8}")
    for (split, layer), evaluation in sorted(evaluations.items()):
        found = (("mean_average_precision", "subset"), ("precision_at_n", "subset"), ("mtwv", trials))
        average, precision, weighted = (evaluation.find(*which)["value"] for which in found)
        mark = " <- reported" if (split, layer) == chosen and len(evaluations) > 1 else ""
        print(f"{split:>5} {layer:>5} {average:7.4f} {precision:7.4f} {weighted:8.4f}{mark}")


def write_scores(path: Path, scores: np.ndarray, queries: Sequence[str], documents: Sequence[str], targets) -> None:
    """One line a trial: query, document, score, target (0 or 1); `scores` (queries, documents), NaN for no trial."""
    lines = ["query\tdocument\tscore\ttarget"]
    for row, query in enumerate(queries):
        for column in np.flatnonzero(~np.isnan(scores[row])):
            target = int(targets[row][column])
            lines.append(f"{query}\t{documents[column]}\t{scores[row, column]:.{DIGITS}f}\t{target}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_stdlist(path: Path, scores: np.ndarray, queries: Sequence[str], documents: Sequence[str]) -> None:
    """The list of detected terms as SUPERB writes it: every trial, YES for scores above two standard deviations.

    Args:
        path: `benchmark.stdlist.xml` in the folder given to the scorer.
        scores: (queries, documents), normalised, NaN for no trial.
        queries, documents: names as in the term list and the experiment control file, without extension.
    """
    head = {"termlist_filename": STDLIST, "indexing_time": "1.00", "language": "english", "index_size": "1"}
    root = ElementTree.Element("stdlist", head, system_id="benchmark")
    for row, query in enumerate(queries):
        used = np.flatnonzero(~np.isnan(scores[row]))
        if len(used) == 0:
            continue
        about = {"termid": query, "term_search_time": "1.0", "oov_term_count": "1"}
        terms = ElementTree.SubElement(root, "detected_termlist", about)
        for column in used:
            score = scores[row, column]
            entry = {"file": documents[column], "channel": "1", "tbeg": "0.000", "dur": "0.00"}
            entry |= {"score": f"{score:.{DIGITS}f}", "decision": "YES" if score > DECISION_THRESHOLD else "NO"}
            ElementTree.SubElement(terms, "term", entry)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)


def count_skipped(data: QbeData, skipped: Skipped) -> dict[str, dict[str, int]]:
    """How many recordings were skipped, by kind of reason, among queries and among documents."""
    return {
        role: dict(Counter(skipped[utterance][0] for utterance in utterances if utterance in skipped))
        for role, utterances in (("queries", data.queries), ("documents", data.documents))
    }


def write_skipped(path: Path, sets: Sequence[QbeData], skipped: Skipped) -> None:
    """One line for each recording that was left out, and for each query that has no target; no file without any."""
    lines = []
    for data in sets:
        for role, utterances in (("query", data.queries), ("document", data.documents)):
            lines += ["\t".join((data.split, role, u.name, *skipped[u])) for u in utterances if u in skipped]
        for query, has in zip(data.queries, (data.targets & data.trials).any(1), strict=True):
            if not has:
                lines.append(f"{data.split}\tquery\t{query.name}\tno_target\tno document among its trials holds it")
    if lines:
        path.write_text("\n".join(["split\trole\tname\tkind\treason", *lines]) + "\n", encoding="utf-8")
        logger.warning("%d entries in %s", len(lines), path)


# ----------------------------------------------------------------------------------------------------------- pictures


def plot_detection(curve: DetectionCurve, path: Path, title: str = "", beta: float = BETA) -> None:
    """Miss rate against false-alarm rate on normal deviate scales (after Martin et al., 1997), means over queries.

    The best term-weighted value is marked. Unlike in a DET curve of pooled trials every query weighs the same.

    Args:
        curve: operating points.
        path: of the PNG.
        title: above the picture.
        beta: of the term-weighted value.
    """
    from ... import figures

    figure, axis = figures.new_figure(size=(5.6, 5.2))
    points = len(curve.miss)  # one for every distinct score: few of them are drawn where they crowd
    keep = np.unique(np.concatenate([np.geomspace(1, points, 1500), np.linspace(1, points, 500)]).astype(int)) - 1
    line, mark = figures.LINE_COLOURS[:2]
    axis.plot(_deviate(curve.false_alarm[keep]), _deviate(curve.miss[keep]), color=line, drawstyle="steps-post")
    values = 1 - curve.miss - beta * curve.false_alarm
    best = [int(values.argmax())]
    label = f"MTWV {values[best[0]]:.4f}"
    axis.plot(_deviate(curve.false_alarm[best]), _deviate(curve.miss[best]), "o", color=mark, label=label)
    ticks, labels = _deviate(np.array(_TICKS)), [f"{100 * tick:g}" for tick in _TICKS]
    limits = _deviate(np.array([5e-5, 0.995]))
    axis.set(xlim=limits, ylim=limits, xlabel="false alarms, % of non-targets", ylabel="misses, % of targets")
    axis.set_xticks(ticks, labels)
    axis.set_yticks(ticks, labels)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figures.save(figure, path, title)


def _deviate(rates: np.ndarray) -> np.ndarray:
    """Normal deviates of rates, kept off 0 and 1 where they are infinite."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(float(rate)) for rate in np.clip(rates, 5e-5, 1 - 5e-5)])


def plot_matches(matches: Mapping[str, np.ndarray], path: Path, frame_seconds: float) -> None:
    """Distance matrices below each other, dark where frames are alike, with the best alignment drawn in.

    Args:
        matches: scaled distances (query frames, document frames) by title, at least one.
        path: of the PNG.
        frame_seconds: time from one frame to the next.
    """
    from ... import figures

    figure, axes = figures.new_figure(len(matches), 1, (9, 2.9 * len(matches)), squeeze=False)
    for axis, (title, distance) in zip(axes.flat, matches.items(), strict=True):
        n, m = distance.shape
        extent = (0, m * frame_seconds, 0, n * frame_seconds)
        image = axis.imshow(distance, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1, extent=extent)
        cost, alignment = best_path(distance)
        points = (np.array(alignment, dtype=float) + 0.5) * frame_seconds
        axis.plot(points[:, 1], points[:, 0], color="white", linewidth=2.5)
        axis.plot(points[:, 1], points[:, 0], color=figures.LINE_COLOURS[1], linewidth=1.2)
        axis.set_title(f"{title}; alignment cost {cost:.3f}", fontsize=9)
        axis.set(xlabel="document, seconds", ylabel="query, seconds")
    figure.colorbar(image, ax=axes, label="distance, scaled to [0, 1] in each row")
    figures.save(figure, path)


def draw(
    folder: Path, data: QbeData, evaluation: Evaluation, found: Search, layer: int, features: Features, trials: str
) -> None:
    """`det.png`, and `alignment.png` with the best and the worst aligned target."""
    curve = detection_curve(*evaluation.measured[trials])
    plot_detection(curve, folder / DETECTION, f"{data.split}, layer {layer}, {trials} trials")
    # Queries that are too short to be aligned score 0 everywhere.
    aligned = (np.nan_to_num(evaluation.raw) != 0).any(1, keepdims=True)
    hits = np.where(data.targets & aligned, evaluation.normalised, np.nan)
    if np.isnan(hits).all():
        return
    matches = {}
    for name, position in (("best", np.nanargmax(hits)), ("worst", np.nanargmin(hits))):
        row, column = np.unravel_index(position, hits.shape)
        pair = data.queries[row], data.documents[column]
        waveforms = [read_waveform(utterance, features.shortest, data.gain) for utterance in pair]
        query, document = (unit_frames(f, found.mean, found.deviation) for f in features(waveforms, [layer])[0])
        title = f"{name} target: query {pair[0].name} in {pair[1].name}, score {hits[row, column]:.2f}"
        matches[title] = scale_rows(frame_distances(query, document)).numpy()
    plot_matches(matches, folder / ALIGNMENT, features.frame_seconds)
