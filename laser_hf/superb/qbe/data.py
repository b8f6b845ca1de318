"""What is searched for and in what: queries, documents, and which pairs are trials and targets.

Two layouts are read. One is a folder with three tab-separated tables, each with a header line:

* `queries.tsv`: query, audio (relative to the folder), start_seconds, duration_seconds, speaker, perhaps more
* `documents.tsv`: document, audio, speaker (documents of the query's own speaker are no trials)
* `targets.tsv`: query, document (the document holds the word)

The other is QUESST 2014 as it is distributed (Anguera et al., MediaEval 2014); SUPERB searches its English part:

* `Audio`, `dev_queries`, `eval_queries`
* `scoring/language_key_{utterances,dev,eval}.lst`: `PATH LANGUAGE` lines, PATH beginning with the database's own folder
* `scoring/groundtruth_quesst14_{dev,eval}`: the term list (`*.tlist.xml`) names all queries, the control file
  (`*.ecf.xml`) all documents, and `*.rttm` which document holds which query
"""

from __future__ import annotations

import hashlib
import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ...data import read_lines, read_table
from ...errors import LaserError
from ..features import Utterance, read_times
from .scoring import Collection

logger = logging.getLogger(__name__)

TABLES = ("queries.tsv", "documents.tsv", "targets.tsv")
LANGUAGE = "nnenglish"  # as the lists of QUESST write non-native English
GAIN_DB = -3.0  # SUPERB's sox chain ends with `gain -3`
SPLITS = ("dev", "eval")  # of QUESST


@dataclass(frozen=True)
class QbeData:
    """One evaluation set."""

    split: str  # what records call it
    queries: list[Utterance]  # what is searched for
    documents: list[Utterance]  # in what
    targets: np.ndarray  # bool (queries, documents): which pairs match
    trials: np.ndarray  # likewise: which pairs count
    layout: str = "tsv"  # or "quesst2014"
    collection: Collection | None = None  # the full evaluation that this is a part of
    gain: float = 1.0  # factor on the samples

    def revision(self) -> str:
        """SHA-256 over the names, times and targets: two runs with the same one were given the same task."""
        digest = hashlib.sha256()
        for utterance in (*self.queries, *self.documents):
            fields = (utterance.name, utterance.audio.name, utterance.start, utterance.duration, utterance.speaker)
            digest.update("\t".join(map(str, fields)).encode() + b"\n")
        digest.update(np.packbits(self.targets).tobytes() + np.packbits(self.trials).tobytes())
        return digest.hexdigest()


def read_data(folder: str | Path, split: str = "eval") -> QbeData:
    """Read a folder of either layout: three tables, or QUESST 2014 (`quesst14Database` or the folder around it).

    `split`, "eval" or "dev", is of QUESST 2014 alone. `LaserError` for neither layout, or one that lacks something.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LaserError(f"there is no folder {folder}")
    if any((folder / name).is_file() for name in TABLES):
        return read_tables(folder)
    for root in (folder, folder / "quesst14Database"):
        if (root / "scoring").is_dir():
            return read_quesst(root, split)
    expected = f"{', '.join(TABLES)}, or QUESST 2014 with its folders Audio, dev_queries, eval_queries and scoring"
    raise LaserError(f"{folder} is no query-by-example task: expected {expected}")


def read_tables(folder: Path) -> QbeData:
    """Read the three tables of `folder`, as the split "test".

    `LaserError` for a missing table or column, an invalid time, a name that comes twice or `targets.tsv` alone has.
    """
    if missing := [name for name in TABLES if not (folder / name).is_file()]:
        raise LaserError(f"{folder} lacks {', '.join(missing)}")
    listed, held, matches = (folder / name for name in TABLES)
    queries = _read_recordings(listed, "query", "start_seconds", "duration_seconds")
    documents = _read_recordings(held, "document")
    rows, columns = ({one.name: place for place, one in enumerate(part)} for part in (queries, documents))
    targets = np.zeros((len(queries), len(documents)), dtype=bool)
    for place, row in _rows(matches, "query", "document"):
        if row["query"] not in rows or row["document"] not in columns:
            raise LaserError(f"{place}: unknown query or document: {row['query']}, {row['document']}")
        targets[rows[row["query"]], columns[row["document"]]] = True
    speakers, others = (np.array([one.speaker for one in part]) for part in (queries, documents))
    return QbeData("test", queries, documents, targets, speakers[:, None] != others)


def _rows(path: Path, *columns: str) -> list[tuple[str, dict[str, str]]]:
    if table := read_table(path, columns):
        return table
    raise LaserError(f"{path} has no line below its header")


def _read_recordings(path: Path, kind: str, *times: str) -> list[Utterance]:
    """Recordings by name: whole files, or the parts of them that the columns `times` tell."""
    found = []
    for place, row in _rows(path, kind, "audio", *times, "speaker"):
        given = [row[name] for name in times]
        if not (part := read_times(*given) if times else (0.0, None)):
            raise LaserError(f"{place}: expected a start from 0 on and a positive duration, got {' and '.join(given)}")
        found.append((place, Utterance(row[kind], path.parent / row["audio"], *part, row["speaker"])))
    return _once(found)


def _once(placed: Iterable[tuple[str, Utterance]]) -> list[Utterance]:
    found: dict[str, Utterance] = {}
    for place, utterance in placed:
        if not utterance.name:
            raise LaserError(f"{place}: the name is empty")
        if found.setdefault(utterance.name, utterance) is not utterance:
            raise LaserError(f"{place}: the file names {utterance.name} twice")
    return list(found.values())


def read_quesst(root: Path, split: str = "eval") -> QbeData:
    """Read the English queries of `split` and documents in `quesst14Database` and the truth; every pair is a trial.

    Audio files are not looked at. `LaserError` for a file that is missing or unreadable, or if nothing English is left.
    """
    queries, documents = (_read_list(root, f"language_key_{part}.lst") for part in (split, "utterances"))
    truth = root / "scoring" / f"groundtruth_quesst14_{split}"
    terms = _names(_only(truth, "*.tlist.xml"), "term", "termid")
    files = _names(_only(truth, "*.ecf.xml"), "excerpt", "audio_filename")
    rttm = _only(truth, "*.rttm")
    part = np.ix_(_find(queries, terms, "term list"), _find(documents, files, "control file"))
    collection = Collection(_read_rttm(rttm, terms, files), part)
    targets = collection.targets[part]
    if not targets.any():
        raise LaserError(f"{rttm} holds no target among the {LANGUAGE} queries and documents")
    gain = 10 ** (GAIN_DB / 20)
    return QbeData(split, queries, documents, targets, np.ones_like(targets), "quesst2014", collection, gain)


def _stem(name: str) -> str:
    """A recording's name; the files write it with and without folder and extension."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in (".wav", ".sph", ".flac") else path.name


def _read_list(root: Path, name: str) -> list[Utterance]:
    """English recordings of a `.lst` file; `root` replaces the first component of each path."""
    path, found, languages = root / "scoring" / name, [], set()
    for place, line in read_lines(path):
        fields = line.split()
        if len(fields) != 2:
            raise LaserError(f"{place}: expected a path and a language, got {line!r}")
        languages.add(fields[1])
        if fields[1] == LANGUAGE:
            found.append((place, Utterance(_stem(fields[0]), root.joinpath(*PurePosixPath(fields[0]).parts[1:]))))
    if not found:
        raise LaserError(f"{path} lists nothing in {LANGUAGE!r}; it has {', '.join(sorted(languages)) or 'no line'}")
    return _once(found)


def _only(folder: Path, pattern: str) -> Path:
    if len(files := list(folder.glob(pattern))) != 1:
        raise LaserError(f"expected one {pattern} in {folder}, found {len(files)}")
    return files[0]


def _names(path: Path, element: str, attribute: str) -> dict[str, int]:
    """Stems of an attribute of all elements of a kind, with their positions."""
    try:
        tree = ElementTree.parse(path)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two are of encodings
        raise LaserError(f"{path} is no well-formed XML: {error}") from error
    names = dict.fromkeys(_stem(entry.attrib[attribute]) for entry in tree.iter(element) if attribute in entry.attrib)
    if not names:
        raise LaserError(f"{path} has no <{element} {attribute}=...>")
    return {name: position for position, name in enumerate(names)}


def _read_rttm(path: Path, rows: Mapping[str, int], columns: Mapping[str, int]) -> np.ndarray:
    """Targets, bool (queries, documents), from lines `LEXEME DOCUMENT 1 BEGIN DURATION QUERY ...`."""
    targets, unknown = np.zeros((len(rows), len(columns)), dtype=bool), 0
    for place, line in read_lines(path):
        fields = line.split()
        if fields[0] != "LEXEME":
            continue
        if len(fields) < 6:
            raise LaserError(f"{place}: expected LEXEME DOCUMENT 1 BEGIN DURATION QUERY, got {line!r}")
        document, query = _stem(fields[1]), _stem(fields[5])
        if query in rows and document in columns:
            targets[rows[query], columns[document]] = True
        else:
            unknown += query != "NO_KEYWORD"  # of a document that holds none
    if unknown:
        logger.warning("%s: %d lines name a query or document of neither list; they are left out", path, unknown)
    return targets


def _find(utterances: Sequence[Utterance], among: Mapping[str, int], where: str) -> list[int]:
    """Positions of `utterances` in a list of the ground truth."""
    if unknown := [utterance.name for utterance in utterances if utterance.name not in among]:
        raise LaserError(f"{len(unknown)} recordings of the language lists are not in the {where}, as {unknown[0]}")
    return [among[utterance.name] for utterance in utterances]
