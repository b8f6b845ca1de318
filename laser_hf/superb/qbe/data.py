"""What is searched for and in what: queries, documents, and which pairs are trials and targets.

Two layouts are read. One is a folder with three tab-separated tables, each with a header line:

* `queries.tsv`: query, audio, start_seconds, duration_seconds, speaker (and any other column, such as word)
* `documents.tsv`: document, audio, speaker
* `targets.tsv`: query, document (the document holds the word)

Audio paths are relative to the folder. Documents of the query's own speaker are no trials, so that only matches across
speakers count.

The other is QUESST 2014 as it is distributed (Anguera et al., MediaEval 2014), of which SUPERB searches the English
part:

    quesst14Database/Audio, dev_queries, eval_queries
    quesst14Database/scoring/language_key_utterances.lst, language_key_dev.lst, language_key_eval.lst
    quesst14Database/scoring/groundtruth_quesst14_{dev,eval}/*.rttm, *.ecf.xml, *.tlist.xml

The `.lst` files hold `PATH LANGUAGE` lines, PATH beginning with the database's own folder. The term list names all
queries, the experiment control file (ecf) all documents, and the RTTM file which document holds which query.
"""

from __future__ import annotations

import hashlib
import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ...data import read_lines, read_table
from ...errors import LaserError
from ..features import Utterance, read_times
from .scoring import Collection, numbered

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
    collection: Collection | None = None  # the full evaluation that this is a part of, if it is one
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

    `split`, "eval" or "dev", is of QUESST 2014 and has no meaning for tables. `LaserError` for neither layout, or where
    something in it is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LaserError(f"there is no folder {folder}")
    if any((folder / name).is_file() for name in TABLES):
        return read_tables(folder)
    for root in (folder, folder / "quesst14Database"):
        if (root / "scoring").is_dir():
            return read_quesst(root, split)
    quesst = "QUESST 2014 with its folders Audio, dev_queries, eval_queries and scoring"
    raise LaserError(f"{folder} is no query-by-example task: expected {', '.join(TABLES)}, or {quesst}")


def read_tables(folder: Path) -> QbeData:
    """Read the three tables of `folder`, as the split "test".

    `LaserError` for a missing table or column, an invalid time, a name that comes twice, or an unknown one in
    `targets.tsv`.
    """
    if missing := [name for name in TABLES if not (folder / name).is_file()]:
        raise LaserError(f"{folder} lacks {', '.join(missing)}")
    paths = [folder / name for name in TABLES]
    queries = _once(
        (place, Utterance(row["query"], folder / row["audio"], *_times(place, row), row["speaker"]))
        for place, row in _rows(paths[0], "query", "audio", "start_seconds", "duration_seconds", "speaker")
    )
    documents = _once(
        (place, Utterance(row["document"], folder / row["audio"], speaker=row["speaker"]))
        for place, row in _rows(paths[1], "document", "audio", "speaker")
    )
    rows, columns = (numbered(one.name for one in part) for part in (queries, documents))
    targets = np.zeros((len(queries), len(documents)), dtype=bool)
    for place, row in _rows(paths[2], "query", "document"):
        if row["query"] not in rows or row["document"] not in columns:
            raise LaserError(f"{place}: unknown query or document: {row['query']}, {row['document']}")
        targets[rows[row["query"]], columns[row["document"]]] = True
    speakers, others = (np.array([one.speaker for one in part]) for part in (queries, documents))
    return QbeData("test", queries, documents, targets, speakers[:, None] != others)


def _rows(path: Path, *columns: str) -> list[tuple[str, dict[str, str]]]:
    table = read_table(path, columns)
    if not table:
        raise LaserError(f"{path} has no line below its header")
    return table


def _times(place: str, row: dict[str, str]) -> tuple[float, float]:
    given = row["start_seconds"], row["duration_seconds"]
    if (times := read_times(*given)) is None:
        raise LaserError(f"{place}: expected a start from 0 on and a positive duration, got {' and '.join(given)}")
    return times


def _once(placed: Iterable[tuple[str, Utterance]]) -> list[Utterance]:
    found: dict[str, Utterance] = {}
    for place, utterance in placed:
        if not utterance.name:
            raise LaserError(f"{place}: the name is empty")
        if found.setdefault(utterance.name, utterance) is not utterance:
            raise LaserError(f"{place}: the file names {utterance.name} twice")
    return list(found.values())


def read_quesst(root: Path, split: str = "eval") -> QbeData:
    """Read the English queries of `split`, the English documents and the ground truth; every pair is a trial.

    `root` holds `Audio`, `dev_queries`, `eval_queries` and `scoring`. Audio files are not looked at here. `LaserError`
    for an unknown split, a list or ground-truth file that is missing or unreadable, or if nothing English is left.
    """
    if split not in SPLITS:
        raise LaserError(f"QUESST 2014 has the splits {', '.join(SPLITS)}, not {split!r}")
    queries = _read_list(root, root / "scoring" / f"language_key_{split}.lst")
    documents = _read_list(root, root / "scoring" / "language_key_utterances.lst")
    truth = root / "scoring" / f"groundtruth_quesst14_{split}"
    terms = _names(_only(truth, "*.tlist.xml"), "term", "termid")
    files = _names(_only(truth, "*.ecf.xml"), "excerpt", "audio_filename")
    rttm = _only(truth, "*.rttm")
    collection = Collection(terms, files, _read_rttm(rttm, terms, files))
    targets = collection.targets[np.ix_(_find(queries, terms, "term list"), _find(documents, files, "control file"))]
    if not targets.any():
        raise LaserError(f"{rttm} holds no target among the {LANGUAGE} queries and documents")
    gain = 10 ** (GAIN_DB / 20)
    return QbeData(split, queries, documents, targets, np.ones_like(targets), "quesst2014", collection, gain)


def _stem(name: str) -> str:
    """A recording's name without folder and extension; the files write it with and without."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in (".wav", ".sph", ".flac") else path.name


def _read_list(root: Path, path: Path) -> list[Utterance]:
    """English recordings of a `.lst` file; `root` replaces the first component of each path."""
    found, languages = [], set()
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
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise LaserError(f"expected one {pattern} in {folder}, found {len(files)}")
    return files[0]


def _names(path: Path, element: str, attribute: str) -> list[str]:
    """Stems of an attribute of all elements of a kind, in order, each once."""
    try:
        tree = ElementTree.parse(path)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two are of encodings
        raise LaserError(f"{path} is no well-formed XML: {error}") from error
    names = dict.fromkeys(_stem(entry.attrib[attribute]) for entry in tree.iter(element) if attribute in entry.attrib)
    if not names:
        raise LaserError(f"{path} has no <{element} {attribute}=...>")
    return list(names)


def _read_rttm(path: Path, queries: list[str], documents: list[str]) -> np.ndarray:
    """Targets, bool (queries, documents), from lines `LEXEME DOCUMENT 1 BEGIN DURATION QUERY ...`."""
    rows, columns = numbered(queries), numbered(documents)
    targets, unknown = np.zeros((len(queries), len(documents)), dtype=bool), 0
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


def _find(utterances: Sequence[Utterance], among: list[str], where: str) -> list[int]:
    """Positions of `utterances` in a list of the ground truth."""
    index = numbered(among)
    if unknown := [utterance.name for utterance in utterances if utterance.name not in index]:
        raise LaserError(f"{len(unknown)} recordings of the language lists are not in the {where}, as {unknown[0]}")
    return [index[utterance.name] for utterance in utterances]
