"""QUESST 2014 as it is distributed (Anguera et al., MediaEval 2014), of which SUPERB searches the English part.

    quesst14Database/Audio, dev_queries, eval_queries
    quesst14Database/scoring/language_key_utterances.lst, language_key_dev.lst, language_key_eval.lst
    quesst14Database/scoring/groundtruth_quesst14_{dev,eval}/*.rttm, *.ecf.xml, *.tlist.xml

The `.lst` files hold `PATH LANGUAGE` lines, PATH beginning with the database's own folder. The term list names all
queries, the experiment control file (ecf) all documents, and the RTTM file which document holds which query.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

import numpy as np

from .data import Collection, QbeData, QbeDataError, Utterance, index_names

logger = logging.getLogger(__name__)

LANGUAGE = "nnenglish"  # as the lists write non-native English
GAIN_DB = -3.0
GAIN = 10 ** (GAIN_DB / 20)  # SUPERB's sox chain ends with `gain -3`
SPLITS = ("dev", "eval")
_NO_QUERY = "NO_KEYWORD"  # the RTTM's entry for a document that holds none


def find_root(folder: Path) -> Path | None:
    """The folder that holds `scoring`: `folder` or a `quesst14Database` in it; `None` without one."""
    return next((root for root in (folder, folder / "quesst14Database") if (root / "scoring").is_dir()), None)


def read_quesst(root: Path, split: str = "eval", language: str = LANGUAGE) -> QbeData:
    """Read the queries of `split`, the documents and the ground truth; every pair is a trial.

    Args:
        root: folder that holds `Audio`, `dev_queries`, `eval_queries` and `scoring`.
        split: "dev" or "eval".
        language: only queries and documents of this language are searched; the full term list and collection are
            kept in `QbeData.collection`.

    Raises:
        QbeDataError: an unknown split, a list or ground-truth file is missing or cannot be read, or no query of the
            language is left. Audio files are not looked at here.
    """
    if split not in SPLITS:
        raise QbeDataError(f"QUESST 2014 has the splits {', '.join(SPLITS)}, not {split!r}")
    scoring = root / "scoring"
    queries = _read_list(root, scoring / f"language_key_{split}.lst", language)
    documents = _read_list(root, scoring / "language_key_utterances.lst", language)
    truth = scoring / f"groundtruth_quesst14_{split}"
    terms = _names(_only(truth, "*.tlist.xml"), "term", "termid")
    files = _names(_only(truth, "*.ecf.xml"), "excerpt", "audio_filename")
    rttm = _only(truth, "*.rttm")
    collection = Collection(terms, files, _read_rttm(rttm, terms, files))
    rows = _positions([query.name for query in queries], terms, "the term list")
    columns = _positions([document.name for document in documents], files, "the experiment control file")
    targets = collection.targets[np.ix_(rows, columns)]
    if not targets.any():
        raise QbeDataError(f"{rttm} holds no target among the {language} queries and documents")
    return QbeData(split, queries, documents, targets, np.ones_like(targets), "quesst2014", collection, GAIN)


def _stem(name: str) -> str:
    """A recording's name without folder and extension: the files write it now this way, now that."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in (".wav", ".sph", ".flac") else path.name


def _read_list(root: Path, path: Path, language: str) -> list[Utterance]:
    """Recordings of one language in a `.lst` file, the first component of each path taken for `root`."""
    if not path.is_file():
        raise QbeDataError(f"QUESST 2014 lacks {path}")
    found, languages = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise QbeDataError(f"{path}, line {number}: expected a path and a language, got {line!r}")
        languages.add(fields[1])
        if fields[1] == language:
            below = PurePosixPath(fields[0]).parts[1:]
            found.append(Utterance(_stem(fields[0]), root.joinpath(*below)))
    if not found:
        raise QbeDataError(f"{path} lists nothing in {language!r}; it has {', '.join(sorted(languages)) or 'no line'}")
    index_names(found, path)
    return found


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise QbeDataError(f"expected one {pattern} in {folder}, found {len(files)}")
    return files[0]


def _names(path: Path, element: str, attribute: str) -> list[str]:
    """Stems of an attribute of all elements of a kind, in order, each once."""
    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError as error:
        raise QbeDataError(f"{path} is no well-formed XML: {error}") from error
    names = dict.fromkeys(_stem(entry.attrib[attribute]) for entry in tree.iter(element) if attribute in entry.attrib)
    if not names:
        raise QbeDataError(f"{path} has no <{element} {attribute}=...>")
    return list(names)


def _read_rttm(path: Path, queries: list[str], documents: list[str]) -> np.ndarray:
    """Targets, bool (queries, documents), from lines `LEXEME DOCUMENT 1 BEGIN DURATION QUERY ...`."""
    rows, columns = ({name: i for i, name in enumerate(names)} for names in (queries, documents))
    targets, unknown = np.zeros((len(queries), len(documents)), dtype=bool), 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] != "LEXEME":
            continue
        if len(fields) < 6:
            raise QbeDataError(f"{path}, line {number}: expected LEXEME DOCUMENT 1 BEGIN DURATION QUERY, got {line!r}")
        document, query = _stem(fields[1]), _stem(fields[5])
        if query == _NO_QUERY:
            continue
        if query in rows and document in columns:
            targets[rows[query], columns[document]] = True
        else:
            unknown += 1
    if unknown:
        logger.warning("%s: %d lines name a query or document of neither list; they are left out", path, unknown)
    return targets


def _positions(names: list[str], among: list[str], where: str) -> list[int]:
    index = {name: i for i, name in enumerate(among)}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise QbeDataError(f"{len(unknown)} recordings of the language lists are not in {where}, such as {unknown[0]}")
    return [index[name] for name in names]
