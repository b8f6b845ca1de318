"""Scores as files: a plain table, and the `stdlist.xml` that the official scorer of QUESST reads."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .scoring import DECISION_THRESHOLD

STDLIST = "benchmark.stdlist.xml"
DIGITS = 4
"""Decimals of a written score. The official scorer sees no others, so term-weighted values are taken from these."""


def as_written(scores: np.ndarray) -> np.ndarray:
    """Scores as the files hold them: through the same formatting, which differs from `np.round` in some halves."""
    return np.array([float(f"{score:.{DIGITS}f}") for score in np.ravel(scores)]).reshape(np.shape(scores))


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
    root = ElementTree.Element(
        "stdlist",
        termlist_filename=STDLIST,
        indexing_time="1.00",
        language="english",
        index_size="1",
        system_id="benchmark",
    )
    for row, query in enumerate(queries):
        used = np.flatnonzero(~np.isnan(scores[row]))
        if len(used) == 0:
            continue
        terms = ElementTree.SubElement(
            root, "detected_termlist", termid=query, term_search_time="1.0", oov_term_count="1"
        )
        for column in used:
            score = scores[row, column]
            ElementTree.SubElement(
                terms,
                "term",
                file=documents[column],
                channel="1",
                tbeg="0.000",
                dur="0.00",
                score=f"{score:.{DIGITS}f}",
                decision="YES" if score > DECISION_THRESHOLD else "NO",
            )
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)
