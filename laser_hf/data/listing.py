"""Listings: the audio files of a folder, or the rows of a manifest, as an Arrow table on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_reader import ArrowReader

from ..errors import LaserError
from ..records import read_json, write_json
from .files import cache_folder, read_lines, walk_audio, writing_to

ROWS = 20_000  # of a chunk; a listing of more is kept on disk
FRESH = 2 * 10**9  # ns; what changed so shortly before may change once more without another time of change
_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("int64")
_FEATURES = {"id": _TEXT, "audio": datasets.Audio(decode=False), "speaker": _TEXT, "text": _TEXT}
COLUMNS = datasets.Features(_FEATURES | dict.fromkeys(("samples", "bytes", "crc"), _NUMBER))
Row = tuple[str, str, str | None, str | None, int | None, int | None, int | None]  # of `COLUMNS`; of the audio its path
Stamps = dict[str, int]  # path -> time of change (ctime, ns) of everything that a listing depends on


def list_folder(folder: Path) -> datasets.Dataset:
    """The audio files below a folder, sorted by path; nothing is decoded.

    A file `speaker/chapter/speaker-chapter-utterance.ext`, as LibriSpeech names them, gets the id
    `speaker-chapter-utterance`, its speaker, and its line of `speaker-chapter.trans.txt` if there is one. The id of any
    other file is its path below `folder` without the extension.

    A listing of more than `ROWS` files is kept in the cache of `datasets`, and made anew when a folder or a transcript
    has another time of change, as after adding, removing or renaming a file.

    Returns:
        Columns `id`, `audio` (`datasets.Audio(decode=False)`) and, if known for any file, `speaker` and `text`.

    Raises:
        LaserError: two files have the same id, a folder cannot be read, or the cache cannot be written.
    """
    return keep_listing(folder, _folder_rows)


def _folder_rows(folder: str, stamps: Stamps) -> Iterator[Row]:
    place, texts = "", {}
    for path in walk_audio(folder, stamps):
        name, speaker = name_utterance(path, path[len(folder) + 1 :])
        if speaker is not None and place != (place := os.path.dirname(path)):
            transcript = f"{place}/{speaker}-{os.path.basename(place)}.trans.txt"
            texts = {}
            if os.path.isfile(transcript):
                stamps[transcript] = os.stat(transcript).st_ctime_ns
                lines = (line.split(maxsplit=1) for _, line in read_lines(transcript))
                texts = {first: "".join(rest).strip() for first, *rest in lines}
        yield name, path, speaker, texts.get(name) if speaker is not None else None, None, None, None


def name_utterance(path: str, relative: str) -> tuple[str, str | None]:
    """Id and speaker of a file, see `list_folder`; `relative` is the end of `path` that may name it."""
    *_, speaker, chapter, name = f"///{path}".rsplit("/", 3)
    stem = name.rpartition(".")[0] or name
    if stem.startswith(f"{speaker}-{chapter}-"):
        return stem, speaker
    return relative[: len(relative) - len(name) + len(stem)], None


def keep_listing(source: Path, rows: Callable[[str, Stamps], Iterator[Row]]) -> datasets.Dataset:
    """The dataset of `rows(source, stamps)`, which fills `stamps`; from the cache as long as these hold."""
    path, place = os.path.abspath(source), cache_folder()
    note = place / f"listing-{hashlib.sha256(path.encode()).hexdigest()[:16]}.json"
    try:
        known = read_json(note)
        table = place / known["table"]
        same = all(os.stat(one).st_ctime_ns == changed for one, changed in known["stamps"].items())
        if same and table.stat().st_size == known["bytes"]:
            return _dataset(table, known["columns"])
    except (OSError, ValueError, KeyError):  # none yet, or damaged
        pass
    began, stamps, columns = time.time_ns(), {}, {"id", "audio"}
    hashes, digest, every = [], hashlib.sha256(), rows(path, stamps)

    def tables() -> Iterator[pa.Table]:
        while chunk := list(itertools.islice(every, ROWS)):
            values = dict(zip(COLUMNS, zip(*chunk, strict=True), strict=True))
            digest.update(json.dumps(values).encode())
            hashes.append(np.fromiter(map(hash, values["id"]), np.int64, len(chunk)))
            columns.update(name for name, found in values.items() if any(value is not None for value in found))
            audio = [pa.nulls(len(chunk), pa.binary()), pa.array(values["audio"], pa.string())]
            values["audio"] = pa.StructArray.from_arrays(audio, ["bytes", "path"])
            yield pa.table(values, COLUMNS.arrow_schema)

    chunks = tables()
    first = list(itertools.islice(chunks, 2))
    if len(first) < 2:
        speech = _dataset(first[0] if first else COLUMNS.arrow_schema.empty_table(), columns, digest.hexdigest())
        _refuse_twice(speech, hashes, source)
        return speech
    with writing_to(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            part = Path(folder, "table")
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, COLUMNS.arrow_schema) as writer:
                for chunk in itertools.chain(first, chunks):
                    writer.write_table(chunk)
            _refuse_twice(_dataset(part, columns), hashes, source)
            table, size = place / f"listing-{digest.hexdigest()}.arrow", part.stat().st_size
            if not table.is_file() or table.stat().st_size != size:  # never replaced under those who read it
                os.replace(part, table)
        old = {one: changed if changed < began - FRESH else 0 for one, changed in stamps.items()}
        write_json(note, {"table": table.name, "bytes": size, "columns": sorted(columns), "stamps": old})
    return _dataset(table, columns)


def _dataset(table: pa.Table | Path, columns: Iterable[str], fingerprint: str = "") -> datasets.Dataset:
    if isinstance(table, Path):
        table, fingerprint = ArrowReader.read_table(str(table)), table.stem
    return datasets.Dataset(table, fingerprint=fingerprint).select_columns([one for one in COLUMNS if one in columns])


def _refuse_twice(speech: datasets.Dataset, hashes: list[np.ndarray], source: Path) -> None:
    """`LaserError` if two utterances have one id; `hashes` are those of the ids."""
    every = np.concatenate([np.empty(0, np.int64), *hashes])
    values, counts = np.unique(every, return_counts=True)
    paths: dict[str, str] = {}
    for row in np.flatnonzero(np.isin(every, values[counts > 1])).tolist():
        name, path = speech[row]["id"], speech[row]["audio"]["path"]
        if (other := paths.setdefault(name, path)) is not path:
            raise LaserError(f"{source}: {other} and {path} have the same id {name!r}; name one split (a sub-folder)")
