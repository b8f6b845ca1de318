"""What is searched for and in what: queries, documents, and which pairs are trials and targets.

Two layouts are read. QUESST 2014's own is described in `quesst`. The other is a folder with three tab-separated
tables, each with a header line:

* `queries.tsv`: query, audio, start_seconds, duration_seconds, speaker (and any other column, such as word)
* `documents.tsv`: document, audio, speaker
* `targets.tsv`: query, document (the document holds the word)

Audio paths are relative to the folder. Documents of the query's own speaker are no trials, so that only matches across
speakers count.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TABLES = ("queries.tsv", "documents.tsv", "targets.tsv")
LAYOUTS = ("tsv", "quesst2014")


class QbeDataError(ValueError):
    """Data that cannot be read as a query-by-example task; the message says what is missing and where."""


@dataclass(frozen=True)
class Utterance:
    """A query or a document: `duration` seconds from `start` of the file `audio`, the whole file without them."""

    name: str
    audio: Path
    start: float = 0.0
    duration: float | None = None
    speaker: str = ""


@dataclass(frozen=True)
class Collection:
    """The full term list and collection of an evaluation, of which only a part may be searched.

    `targets` is bool (queries, documents).
    """

    queries: list[str]
    documents: list[str]
    targets: np.ndarray


@dataclass(frozen=True)
class QbeData:
    """One evaluation set.

    Attributes:
        split: what records call it.
        queries, documents: what is searched for and in what.
        targets, trials: bool (queries, documents): which pairs match, which pairs count.
        layout: one of `LAYOUTS`.
        collection: the full evaluation that this is a part of, if it is one.
        gain: factor on the samples.
    """

    split: str
    queries: list[Utterance]
    documents: list[Utterance]
    targets: np.ndarray
    trials: np.ndarray
    layout: str = "tsv"
    collection: Collection | None = None
    gain: float = 1.0

    def revision(self) -> str:
        """SHA-256 over the names, times and targets: two runs with the same one were given the same task."""
        digest = hashlib.sha256()
        for utterance in (*self.queries, *self.documents):
            fields = (utterance.name, utterance.audio.name, utterance.start, utterance.duration, utterance.speaker)
            digest.update("\t".join(map(str, fields)).encode() + b"\n")
        digest.update(np.packbits(self.targets).tobytes() + np.packbits(self.trials).tobytes())
        return digest.hexdigest()


def read_tables(folder: Path, split: str = "test") -> QbeData:
    """Read the three tables of `folder`.

    Raises:
        QbeDataError: a table or a column is missing, a time is no number, a name comes twice, or `targets.tsv` names
            an unknown query or document.
    """
    folder = Path(folder)
    missing = [name for name in TABLES if not (folder / name).is_file()]
    if missing:
        raise QbeDataError(f"{folder} lacks {', '.join(missing)}")
    queries = []
    for row in _read_table(folder / "queries.tsv", ("query", "audio", "start_seconds", "duration_seconds", "speaker")):
        try:
            start, duration = float(row["start_seconds"]), float(row["duration_seconds"])
        except ValueError as error:
            raise QbeDataError(f"{folder / 'queries.tsv'}, query {row['query']}: {error}") from error
        queries.append(Utterance(row["query"], folder / row["audio"], start, duration, row["speaker"]))
    documents = [
        Utterance(row["document"], folder / row["audio"], speaker=row["speaker"])
        for row in _read_table(folder / "documents.tsv", ("document", "audio", "speaker"))
    ]
    rows, columns = index_names(queries, folder / "queries.tsv"), index_names(documents, folder / "documents.tsv")
    targets = np.zeros((len(queries), len(documents)), dtype=bool)
    for entry in _read_table(folder / "targets.tsv", ("query", "document")):
        if entry["query"] not in rows or entry["document"] not in columns:
            raise QbeDataError(
                f"{folder / 'targets.tsv'} names an unknown query or document: {entry['query']}, {entry['document']}"
            )
        targets[rows[entry["query"]], columns[entry["document"]]] = True
    speakers = np.array([query.speaker for query in queries])[:, None]
    trials = speakers != np.array([document.speaker for document in documents])[None, :]
    return QbeData(split, queries, documents, targets, trials)


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise QbeDataError(f"{path} lacks the columns {', '.join(missing)}; its first line must name them")
        table = list(reader)
    for number, row in enumerate(table, start=2):
        if any(row[column] is None for column in columns):
            raise QbeDataError(f"{path}, line {number}: expected the columns {', '.join(columns)}")
    if not table:
        raise QbeDataError(f"{path} has no line below its header")
    return table


def index_names(utterances: list[Utterance], where: Path) -> dict[str, int]:
    """Position of each name.

    Raises:
        QbeDataError: a name comes twice.
    """
    index: dict[str, int] = {}
    for position, utterance in enumerate(utterances):
        if utterance.name in index:
            raise QbeDataError(f"{where} names {utterance.name} twice")
        index[utterance.name] = position
    return index


def read_data(folder: str | Path, split: str = "eval") -> QbeData:
    """Read a folder of either layout, told apart by what lies in it.

    Args:
        folder: three tables, or QUESST 2014 (`quesst14Database` or the folder around it).
        split: "eval" or "dev" of QUESST 2014; without meaning for tables.

    Raises:
        QbeDataError: neither layout, or something in it is missing.
    """
    from .quesst import find_root, read_quesst

    folder = Path(folder)
    if not folder.is_dir():
        raise QbeDataError(f"there is no folder {folder}")
    if any((folder / name).is_file() for name in TABLES):
        return read_tables(folder)
    root = find_root(folder)
    if root is None:
        raise QbeDataError(
            f"{folder} is no query-by-example task: expected {', '.join(TABLES)}, or QUESST 2014 with its folders "
            "Audio, dev_queries, eval_queries and scoring"
        )
    return read_quesst(root, split)
