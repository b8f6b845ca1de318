"""What a run leaves beside its record: files of scores, skipped recordings, pictures."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..features import Features, Utterance, read_waveform
from .data import QbeData
from .matching import best_path, frame_distances, scale_rows, unit_frames
from .scoring import DECISION_THRESHOLD, DIGITS, as_written, mtwv, on_collection, twv_curve
from .search import Search

logger = logging.getLogger(__name__)

SCORES, STDLIST, SKIPPED = "scores.tsv", "benchmark.stdlist.xml", "skipped.tsv"
DETECTION, ALIGNMENT, LAYERS = "det.png", "alignment.png", "layers.png"
PANELS = {"mean average precision (higher is better)": ("mean_average_precision", "perturbed_mean_average_precision")}
FILES = (SCORES, STDLIST, SKIPPED, DETECTION, ALIGNMENT, LAYERS)
Skipped = Mapping[Utterance, tuple[str, str]]  # kind and reason of each recording that could not be used


def describe(data: QbeData, usable: np.ndarray, skipped: Skipped) -> dict[str, Any]:
    """An evaluation set for the record: sizes, and recordings skipped by kind; `usable` is false for skipped audio."""
    trials = data.trials & usable
    targets = data.targets & trials
    sought = targets.any(1)
    about: dict[str, Any] = {"split": data.split, "queries": int(sought.sum())}
    about |= {"queries_without_target": int((~sought).sum()), "documents": len(data.documents)}
    about |= {"trials": int(trials[sought].sum()), "targets": int(targets.sum()), "revision": data.revision()}
    if (full := data.collection) is not None:
        has, (queries, documents) = full.targets.any(1), full.targets.shape
        every, given = int(has.sum()) * documents, int(trials[has[full.part[0].ravel()]].sum())
        about["collection"] = {"queries": queries, "queries_with_target": int(has.sum()), "documents": documents}
        about["collection"] |= {"trials": every, "given": given, "default": every - given}
    about["skipped"] = {
        role: dict(Counter(skipped[one][0] for one in part if one in skipped))
        for role, part in (("queries", data.queries), ("documents", data.documents))
    }
    return about


def write_scores(path: Path, scores: np.ndarray, queries: Sequence[str], documents: Sequence[str], targets) -> None:
    """One line a trial: query, document, score, target (0 or 1); `scores` (queries, documents), NaN for no trial."""
    lines = ["query\tdocument\tscore\ttarget"]
    for row, column in np.argwhere(~np.isnan(scores)):
        score = f"{scores[row, column]:.{DIGITS}f}"
        lines.append(f"{queries[row]}\t{documents[column]}\t{score}\t{int(targets[row][column])}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_stdlist(path: Path, scores: np.ndarray, queries: Sequence[str], documents: Sequence[str]) -> None:
    """The terms detected as QUESST's official scorer reads them: normalised scores (NaN: no trial), YES above 2."""
    head = {"termlist_filename": STDLIST, "indexing_time": "1.00", "language": "english", "index_size": "1"}
    root = ElementTree.Element("stdlist", head, system_id="benchmark")
    for query, row in zip(queries, scores, strict=True):
        if np.isnan(row).all():
            continue
        about = {"termid": query, "term_search_time": "1.0", "oov_term_count": "1"}
        terms = ElementTree.SubElement(root, "detected_termlist", about)
        for column in np.flatnonzero(~np.isnan(row)):
            entry = {"file": documents[column], "channel": "1", "tbeg": "0.000", "dur": "0.00"}
            entry["score"] = f"{row[column]:.{DIGITS}f}"
            entry["decision"] = "YES" if row[column] > DECISION_THRESHOLD else "NO"
            ElementTree.SubElement(terms, "term", entry)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)


def write_skipped(path: Path, sets: Sequence[QbeData], skipped: Skipped) -> None:
    """One line for each recording that was left out, and for each query that has no target; no file without any."""
    lines = ["split\trole\tname\tkind\treason"]
    for data in sets:
        for role, part in (("query", data.queries), ("document", data.documents)):
            for one in (one for one in part if one in skipped):
                kind, reason = skipped[one]
                lines.append("\t".join((data.split, role, one.name, kind, " ".join(reason.split()))))
        for query, has in zip(data.queries, (data.targets & data.trials).any(1), strict=True):
            if not has:
                lines.append(f"{data.split}\tquery\t{query.name}\tno_target\tno document among its trials holds it")
    if len(lines) > 1:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        logger.warning("%d entries in %s", len(lines) - 1, path)


def plot_detection(scores, targets, path: Path, title: str = "") -> None:
    """Miss rate against false-alarm rate, means over queries, on logit scales; (queries, documents) as for `mtwv`."""
    from ... import figures

    (thresholds, hits), (_, gains) = (twv_curve(scores, targets, beta) for beta in (0.0, 1.0))
    rates = (hits - gains).clip(5e-5, 1 - 5e-5), (1 - hits).clip(5e-5, 1 - 5e-5)  # off 0 and 1, which have no logit
    figure, axis = figures.new_figure(size=(5.6, 5.2))
    axis.plot(*rates, drawstyle="steps-post")
    best = mtwv(scores, targets)
    axis.plot(*(rate[thresholds == best.threshold] for rate in rates), "o", label=f"MTWV {best.value:.4f}")
    axis.set(xscale="logit", yscale="logit", xlabel="false alarms, share of non-targets", ylabel="misses, of targets")
    axis.legend(fontsize=8)
    figures.save(figure, path, title)


def plot_matches(matches: Mapping[str, np.ndarray], path: Path, frame_seconds: float) -> None:
    """Scaled distances (query frames, document frames) by title below each other, with the best alignment drawn in."""
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


def draw(folder: Path, data: QbeData, scores: np.ndarray, found: Search, layer: int, features: Features) -> None:
    """`det.png` of normalised scores, and `alignment.png` with the best and the worst aligned target, if any."""
    written, targets = as_written(scores), data.targets
    if data.collection is not None:
        written, targets = on_collection(written, data.collection), data.collection.targets
    plot_detection(written, targets, folder / DETECTION, f"{data.split}, layer {layer}")
    aligned = np.nan_to_num(found.scores).any(1, keepdims=True)
    hits = np.where(data.targets & aligned, scores, np.nan)
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
