"""What a run leaves beside its record: the table on the screen, skipped recordings, pictures, a summary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...records import read_json, write_json
from . import figures, scoring
from .data import QbeData, Utterance
from .evaluate import Evaluation
from .frontends import Frontend
from .matching import frame_distances, scale_rows, unit_frames
from .search import Search
from .store import read_waveform

logger = logging.getLogger(__name__)

Skipped = Mapping[Utterance, tuple[str, str]]
"""Kind and reason of each recording that could not be used."""


def print_table(
    evaluations: Mapping[tuple[str, int], Evaluation], layers: Sequence[int], chosen: int, trials: str
) -> None:
    """Measures of every set ("main", "dev") and layer."""
    print(f"{'set':>5} {'layer':>5} {'MAP':>7} {'P@N':>7} {'MTWV':>8}")
    for (which, layer), evaluation in sorted(evaluations.items(), key=lambda item: (item[0][0], item[0][1])):
        values = (
            evaluation.value("mean_average_precision", "subset"),
            evaluation.value("precision_at_n", "subset"),
            evaluation.value("mtwv", trials),
        )
        mark = " <- reported" if which == "main" and layer == chosen and len(layers) > 1 else ""
        print(f"{which:>5} {layer:>5} {values[0]:7.4f} {values[1]:7.4f} {values[2]:8.4f}{mark}")


def count_skipped(data: QbeData, skipped: Skipped) -> dict[str, dict[str, int]]:
    """Recordings of each kind of trouble, among queries and among documents."""
    return {
        kind: dict(Counter(skipped[utterance][0] for utterance in utterances if utterance in skipped))
        for kind, utterances in (("queries", data.queries), ("documents", data.documents))
    }


def write_skipped(path: Path, sets: Sequence[QbeData], skipped: Skipped) -> None:
    """One line for each recording that was left out, and for each query that has no target."""
    lines = []
    for data in sets:
        for role, utterances in (("query", data.queries), ("document", data.documents)):
            for utterance in utterances:
                if utterance in skipped:
                    lines.append("\t".join((data.split, role, utterance.name, *skipped[utterance])))
        for query, has in zip(data.queries, (data.targets & data.trials).any(1), strict=True):
            if not has:
                lines.append(f"{data.split}\tquery\t{query.name}\tno_target\tno document among its trials holds it")
    if lines:
        path.write_text("\n".join(["split\trole\tname\tkind\treason", *lines]) + "\n", encoding="utf-8")
        logger.warning("%d entries in %s", len(lines), path)
    else:
        path.unlink(missing_ok=True)


def draw(
    output_dir: Path,
    data: QbeData,
    evaluation: Evaluation,
    found: Search,
    layer: int,
    frontend: Frontend,
    distance: str,
    trials: str,
) -> None:
    """`det.png`, and `alignment.png` with the best and the worst aligned target."""
    curve = scoring.detection_curve(*evaluation.measured[trials])
    figures.plot_detection({f"{data.split}, layer {layer}": curve}, output_dir / "det.png", title=f"{trials} trials")
    # Queries that are too short to be aligned score 0 everywhere.
    aligned = (np.nan_to_num(evaluation.raw) != 0).any(1, keepdims=True)
    hits = np.where(data.targets & aligned, evaluation.normalised, np.nan)
    if np.isnan(hits).all():
        return
    matches = []
    for name, position in (("best", np.nanargmax(hits)), ("worst", np.nanargmin(hits))):
        row, column = np.unravel_index(position, hits.shape)
        pair = data.queries[row], data.documents[column]
        waveforms = [read_waveform(utterance, frontend.shortest, data.gain) for utterance in pair]
        query, document = (unit_frames(f, found.mean, found.deviation) for f in frontend(waveforms, [layer])[0])
        scaled = scale_rows(frame_distances(query, document, distance)).numpy()
        title = f"{name} target: query {pair[0].name} in {pair[1].name}, score {hits[row, column]:.2f}"
        matches.append(figures.Match(title, scaled))
    figures.plot_matches(matches, output_dir / "alignment.png", frontend.frame_seconds)


def enter(summary: Path, name: str, record: dict[str, Any]) -> None:
    """Add `record` to the `systems` of a JSON file, in place of an earlier one of the same name."""
    systems = read_json(summary)["systems"] if summary.exists() else []
    systems = [system for system in systems if system["name"] != name]
    write_json(summary, {"systems": [*systems, {"name": name} | record]})
