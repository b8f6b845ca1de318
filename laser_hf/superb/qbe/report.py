"""What a run leaves beside its record: the table on the screen, files of scores, skipped recordings, pictures."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ..features import Features, Utterance, plot_by_layer, read_waveform
from .data import QbeData
from .matching import best_path, frame_distances, scale_rows, unit_frames
from .scoring import BETA, DECISION_THRESHOLD, DIGITS, DetectionCurve, Evaluation, detection_curve
from .search import Search

logger = logging.getLogger(__name__)

SCORES, STDLIST, SKIPPED = "scores.tsv", "benchmark.stdlist.xml", "skipped.tsv"
DETECTION, ALIGNMENT, LAYERS = "det.png", "alignment.png", "layers.png"
FILES = (SCORES, STDLIST, SKIPPED, DETECTION, ALIGNMENT, LAYERS)
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


def describe(data: QbeData, usable: np.ndarray, skipped: Skipped) -> dict[str, Any]:
    """An evaluation set for the record: sizes, and recordings skipped by kind; `usable` is false for skipped audio."""
    trials = data.trials & usable
    targets = data.targets & trials
    sought = targets.any(1)
    counts: dict[str, Any] = {
        "split": data.split,
        "queries": int(sought.sum()),
        "queries_without_target": int((~sought).sum()),
        "documents": len(data.documents),
        "trials": int(trials[sought].sum()),
        "targets": int(targets.sum()),
        "revision": data.revision(),
    }
    if (full := data.collection) is not None:
        has = dict(zip(full.queries, full.targets.any(1).tolist(), strict=True))
        every = sum(has.values()) * len(full.documents)
        given = int(trials[[has[query.name] for query in data.queries]].sum())
        counts["collection"] = {
            "queries": len(full.queries),
            "queries_with_target": sum(has.values()),
            "documents": len(full.documents),
            "trials": every,
            "given": given,
            "default": every - given,
        }
    counts["skipped"] = {
        role: dict(Counter(skipped[one][0] for one in part if one in skipped))
        for role, part in (("queries", data.queries), ("documents", data.documents))
    }
    return counts


def write_scores(path: Path, scores: np.ndarray, queries: Sequence[str], documents: Sequence[str], targets) -> None:
    """One line a trial: query, document, score, target (0 or 1); `scores` (queries, documents), NaN for no trial."""
    lines = ["query\tdocument\tscore\ttarget"]
    for row, column in np.argwhere(~np.isnan(scores)):
        score, target = f"{scores[row, column]:.{DIGITS}f}", int(targets[row][column])
        lines.append(f"{queries[row]}\t{documents[column]}\t{score}\t{target}")
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
            decision = "YES" if row[column] > DECISION_THRESHOLD else "NO"
            entry |= {"score": f"{row[column]:.{DIGITS}f}", "decision": decision}
            ElementTree.SubElement(terms, "term", entry)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)


def write_skipped(path: Path, sets: Sequence[QbeData], skipped: Skipped) -> None:
    """One line for each recording that was left out, and for each query that has no target; no file without any."""
    lines = []
    for data in sets:
        for role, part in (("query", data.queries), ("document", data.documents)):
            left = {one: " ".join(skipped[one][1].split()) for one in part if one in skipped}  # reasons have line ends
            lines += ["\t".join((data.split, role, one.name, skipped[one][0], why)) for one, why in left.items()]
        for query, has in zip(data.queries, (data.targets & data.trials).any(1), strict=True):
            if not has:
                lines.append(f"{data.split}\tquery\t{query.name}\tno_target\tno document among its trials holds it")
    if lines:
        path.write_text("\n".join(["split\trole\tname\tkind\treason", *lines]) + "\n", encoding="utf-8")
        logger.warning("%d entries in %s", len(lines), path)


def plot_detection(curve: DetectionCurve, path: Path, title: str = "") -> None:
    """Miss rate against false-alarm rate on normal deviate scales (after Martin et al., 1997), means over queries.

    The best term-weighted value is marked. Unlike in a DET curve of pooled trials every query weighs the same.
    """
    from ... import figures

    figure, axis = figures.new_figure(size=(5.6, 5.2))
    points = len(curve.miss)  # one for every distinct score: few of them are drawn where they crowd
    keep = np.unique(np.concatenate([np.geomspace(1, points, 1500), np.linspace(1, points, 500)]).astype(int)) - 1
    line, mark = figures.LINE_COLOURS[:2]
    axis.plot(_deviate(curve.false_alarm[keep]), _deviate(curve.miss[keep]), color=line, drawstyle="steps-post")
    values = 1 - curve.miss - BETA * curve.false_alarm
    best = [int(values.argmax())]
    label = f"MTWV {values[best[0]]:.4f}"
    axis.plot(_deviate(curve.false_alarm[best]), _deviate(curve.miss[best]), "o", color=mark, label=label)
    ticks = np.array([0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99])
    limits = _deviate(np.array([5e-5, 0.995]))
    axis.set(xlim=limits, ylim=limits, xlabel="false alarms, % of non-targets", ylabel="misses, % of targets")
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(_deviate(ticks), [f"{100 * tick:g}" for tick in ticks])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figures.save(figure, path, title)


def _deviate(rates: np.ndarray) -> np.ndarray:
    """Normal deviates of rates, kept off 0 and 1 where they are infinite."""
    return np.array([NormalDist().inv_cdf(float(rate)) for rate in np.clip(rates, 5e-5, 1 - 5e-5)])


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


def draw_layers(folder: Path, evaluations: Mapping[int, Evaluation], title: str) -> None:
    """`layers.png`: mean average precision by layer, also with perturbed queries if they were searched."""
    lines: dict[str, dict[int, float]] = {"queries as they are": {}}
    for layer, evaluation in evaluations.items():
        lines["queries as they are"][layer] = evaluation.find("mean_average_precision", "subset")["value"]
        for metric in evaluation.metrics:
            for view, value in metric.get("views", {}).items():
                lines.setdefault(view, {})[layer] = value
    plot_by_layer({"mean average precision (higher is better)": lines}, folder / LAYERS, title)


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
