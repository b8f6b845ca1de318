"""Listings: the audio files of a folder, or the rows of a manifest, as an Arrow table on disk.

A manifest is a table of files with their lengths: `laser-hf manifest` writes it, and it is taken wherever a folder is.
"""

import argparse
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from datasets.arrow_reader import ArrowReader

from .. import cli
from ..errors import LaserError
from ..records import read_json, write_json
from .decode import SAMPLE_RATE, is_remote
from .files import cache_folder, read_lines, walk_audio, writing_to
from .pair_sets import read_headers

ROWS = 20_000  # of a chunk; a listing of more is kept on disk
FRESH = 2 * 10**9  # ns; what changed so shortly before may change once more without another time of change
_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("int64")
_FEATURES = {"id": _TEXT, "audio": datasets.Audio(decode=False), "speaker": _TEXT, "text": _TEXT}
COLUMNS = datasets.Features(_FEATURES | dict.fromkeys(("samples", "bytes", "crc"), _NUMBER))
Rows = Iterator[tuple[str | int | None, ...]]  # of `COLUMNS`; of the audio its path
Stamps = dict[str, int]  # path -> time of change (ctime, ns) of everything that a listing depends on
_TYPES = dict.fromkeys(("path", "id", "speaker", "text"), pa.string())
_TYPES |= dict.fromkeys(("samples", "bytes", "crc"), pa.int64())
_EXPECTED = (
    "a manifest is a table, tab-separated (.tsv) or Parquet (.parquet), with a column path and, if known, id, speaker, "
    "text, samples (at 16 kHz), bytes (size of the file) and crc (CRC-32 of 4 kB from its middle)"
)


def list_folder(folder: Path) -> datasets.Dataset:
    """The audio files below a folder, sorted by path; nothing is decoded.

    A file `speaker/chapter/speaker-chapter-utterance.ext`, as LibriSpeech names them, gets the id
    `speaker-chapter-utterance`, its speaker, and its line of `speaker-chapter.trans.txt` if there is one. The id of any
    other file is its path below `folder` without the extension.

    A listing of more than `ROWS` files is kept in the cache of `datasets`, and made anew when a folder or a transcript
    has another time of change, as after adding, removing or renaming a file.
    The columns are `id`, `audio` (`datasets.Audio(decode=False)`) and, if known for any file, `speaker` and `text`.

    A `LaserError` says that two files have the same id, a folder cannot be read, or the cache cannot be written.
    """
    return _keep_listing(folder, _folder_rows)


def _folder_rows(folder: str, stamps: Stamps) -> Rows:
    place, texts = "", {}
    for path in walk_audio(folder, stamps):
        name, speaker = _name_utterance(path, path[len(folder) + 1 :])
        if speaker is not None and place != (place := os.path.dirname(path)):
            texts, transcript = {}, f"{place}/{speaker}-{os.path.basename(place)}.trans.txt"
            if os.path.isfile(transcript):
                stamps[transcript] = os.stat(transcript).st_ctime_ns
                lines = (line.split(maxsplit=1) for _, line in read_lines(transcript))
                texts = {first: "".join(rest).strip() for first, *rest in lines}
        yield name, path, speaker, texts.get(name) if speaker is not None else None, None, None, None


def _name_utterance(path: str, relative: str) -> tuple[str, str | None]:
    """Id and speaker of a file, see `list_folder`; `relative` is the end of `path` that may name it."""
    *_, speaker, chapter, name = f"///{path}".rsplit("/", 3)
    stem = name.rpartition(".")[0] or name
    if stem.startswith(f"{speaker}-{chapter}-"):
        return stem, speaker
    return relative[: len(relative) - len(name) + len(stem)], None


def _keep_listing(source: Path, rows: Callable[[str, Stamps], Rows]) -> datasets.Dataset:
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
            digest.update(repr(chunk).encode())
            values = dict(zip(COLUMNS, zip(*chunk, strict=True), strict=True))
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
    ordered, paths = np.sort(every), {}
    for row in np.flatnonzero(np.isin(every, ordered[1:][ordered[1:] == ordered[:-1]])).tolist():
        name, path = speech[row]["id"], speech[row]["audio"]["path"]
        if (other := paths.setdefault(name, path)) is not path:
            raise LaserError(f"{source}: {other} and {path} have the same id {name!r}; name one split (a sub-folder)")


def list_manifest(path: Path) -> datasets.Dataset:
    """The utterances of a manifest, in its order, with the columns of `list_folder` and `samples`, `bytes` and `crc`.

    Paths are relative to the manifest's folder. An id or a speaker that is not given is made from the path, as in
    `list_folder`; a long listing is kept as there. No file is looked at. A `LaserError` says that it is no manifest,
    that a row has no path, or that two have one id.
    """
    _check_suffix(path)
    try:
        return _keep_listing(path, _manifest_rows)
    except pa.ArrowException as error:
        raise LaserError(f"{path} cannot be read: {error}; {_EXPECTED}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".tsv", ".parquet"):
        raise LaserError(f"{path} is a file that is no manifest: {_EXPECTED}")


def _manifest_rows(path: str, stamps: Stamps) -> Rows:
    stamps[path] = os.stat(path).st_ctime_ns
    if path.endswith(".tsv"):
        how = {"column_types": _TYPES, "include_columns": list(_TYPES), "include_missing_columns": True}
        text = pa.csv.ConvertOptions(**how, null_values=[""], strings_can_be_null=True)
        batches = pa.csv.open_csv(path, None, pa.csv.ParseOptions(delimiter="\t", quote_char=False), text)
    else:
        batches = pa.parquet.ParquetFile(path).iter_batches(ROWS)
    for batch in batches:
        there, nothing = set(batch.schema.names), [None] * len(batch)
        columns = [batch[name].cast(kind).to_pylist() if name in there else nothing for name, kind in _TYPES.items()]
        for place, name, *more in zip(*columns, strict=True):
            if not place:
                raise LaserError(f"{path}: a row has no path; {_EXPECTED}")
            where = place if is_remote(place) else os.path.join(os.path.dirname(path), place)
            made, speaker = _name_utterance(where, place)
            yield name or made, where, more[0] or speaker, *more[1:]


def write_manifest(folder: Path, path: Path) -> tuple[int, float]:
    """Write the manifest of a folder, and return the number of its files and their hours.

    Headers are read in parallel. A run that is given the manifest and one that is given the folder train on the same,
    in the same order. A file whose header cannot be read has no `samples`.

    Raises:
        LaserError: no audio files, a `path` that does not end in .tsv or .parquet or cannot be written, or names with
            tabs, quotes or line ends for a .tsv.
    """
    _check_suffix(path)
    if not folder.is_dir() or not len(speech := list_folder(folder)):
        raise LaserError(f"there is no folder {folder} with audio files")
    seconds, marks = read_headers(speech)
    listed = speech.with_format("arrow")[:]
    paths, base = pa.compute.struct_field(listed["audio"], "path"), f"{os.path.dirname(os.path.abspath(path))}/"
    below = pa.compute.utf8_slice_codeunits(paths, len(base))
    columns = {"path": pa.compute.if_else(pa.compute.starts_with(paths, base), below, paths)}
    columns |= {name: listed[name] for name in _TYPES if name in listed.column_names}
    samples = pa.array(np.rint(seconds * SAMPLE_RATE), from_pandas=True).cast(pa.int64())
    table = pa.table(columns | {"samples": samples, "bytes": pa.array(marks[:, 0]), "crc": pa.array(marks[:, 1])})
    part = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".parquet":
            pa.parquet.write_table(table, part)
        else:
            with open(part, "wb") as file:
                file.write("\t".join(table.column_names).encode() + b"\n")
                how = {"include_header": False, "delimiter": "\t", "quoting_style": "none"}
                pa.csv.write_csv(table, file, pa.csv.WriteOptions(**how))
        os.replace(part, path)
    except pa.ArrowInvalid as error:
        raise LaserError(f"{path}: {error}. Tabs, quotes and line ends fit into a .parquet file alone") from error
    except OSError as error:
        raise LaserError(f"cannot write {path} ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)
    return len(speech), float(np.nansum(seconds)) / 3600


def main(argv: Sequence[str] | None = None) -> None:
    """The command `laser-hf manifest`."""
    parser = argparse.ArgumentParser(
        prog="laser-hf manifest",
        formatter_class=cli.HelpFormatter,
        description="List the audio files of a folder with their lengths, once. laser-hf train takes the table for "
        "--train_data or --eval_data in place of the folder: it trains on the same, and starts sooner.",
    )
    parser.add_argument("folder", type=Path, help="folder of audio files, at any depth")
    text = ".tsv or .parquet; paths in it are relative if it lies in a folder above the files"
    parser.add_argument("--output", type=Path, default=Path("manifest.tsv"), help=f"{text} (default: %(default)s)")
    given = parser.parse_args(argv)
    files, hours = write_manifest(given.folder.expanduser(), given.output.expanduser())
    print(f"{given.output}: {files:,} utterances, {hours:,.1f} hours")
