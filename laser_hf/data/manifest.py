"""Manifests: a table of files with their lengths, written by `laser-hf manifest` and taken wherever a folder is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from .. import cli
from ..errors import LaserError
from .decode import SAMPLE_RATE, is_remote
from .listing import ROWS, Row, Stamps, keep_listing, list_folder, name_utterance
from .pair_sets import read_headers

_TEXTS, _NUMBERS = ("path", "id", "speaker", "text"), ("samples", "bytes", "crc")
_TYPES = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_NUMBERS, pa.int64())
_EXPECTED = (
    "a manifest is a table, tab-separated (.tsv) or Parquet (.parquet), with a column path and, if known, id, speaker, "
    "text, samples (at 16 kHz), bytes (size of the file) and crc (CRC-32 of 4 kB from its middle)"
)


def list_manifest(path: Path) -> datasets.Dataset:
    """The utterances of a manifest, in its order, with the columns of `list_folder` and `samples`, `bytes` and `crc`.

    Paths are relative to the manifest's folder. An id or a speaker that is not given is made from the path, as in
    `list_folder`; a long listing is kept as there. No file is looked at.

    Raises:
        LaserError: no manifest, a row without a path, or two rows with one id.
    """
    _check_suffix(path)
    try:
        return keep_listing(path, _rows)
    except pa.ArrowException as error:
        raise LaserError(f"{path} cannot be read: {error}; {_EXPECTED}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".tsv", ".parquet"):
        raise LaserError(f"{path} is a file that is no manifest: {_EXPECTED}")


def _rows(path: str, stamps: Stamps) -> Iterator[Row]:
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
            made, speaker = name_utterance(where, place)
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
    columns = {name: listed[name] for name in _TYPES if name in listed.column_names}
    columns["path"] = pa.compute.if_else(pa.compute.starts_with(paths, base), below, paths)
    columns["samples"] = pa.array(np.rint(seconds * SAMPLE_RATE), from_pandas=True).cast(pa.int64())
    columns |= {"bytes": pa.array(marks[:, 0]), "crc": pa.array(marks[:, 1])}
    table = pa.table({name: columns[name] for name in _TYPES if name in columns})
    part = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".parquet":
            pa.parquet.write_table(table, part)
        else:
            with open(part, "wb") as file:
                file.write("\t".join([*table.column_names]).encode() + b"\n")
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


if __name__ == "__main__":
    cli.run(main)
