"""The columns every source of speech is brought to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import datasets
import pyarrow as pa

Speech = datasets.Dataset | datasets.IterableDataset

_COLUMNS = {
    "id": ("id", "utterance_id"),
    "speaker": ("speaker", "speaker_id"),
    "text": ("text", "transcription", "sentence"),
}


class SpeechSourceError(ValueError):
    """A source of speech that cannot be read: what was given, what was expected, and how to mend it."""


def to_speech_columns(dataset: Speech, audio_column: str, source: str) -> Speech:
    """Bring a dataset to the columns ``id``, ``audio`` and, where it has them, ``speaker`` and ``text``.

    Args:
        dataset: any.
        audio_column: where its audio is.
        source: what to call it in messages.

    Raises:
        SpeechSourceError: there is no such column, or it does not hold audio.
    """
    features = dataset.features
    columns = list(features) if features is not None else list(next(iter(dataset), {}))
    if audio_column not in columns:
        raise no_column(audio_column, columns, source)
    if features is not None:
        stored_as = features[audio_column]
        if isinstance(stored_as, datasets.Audio) or _is_text(stored_as) or _is_text(stored_as, "binary"):
            dataset = dataset.cast_column(audio_column, datasets.Audio(decode=False))
        elif not (isinstance(stored_as, dict) and {"bytes", "path", "array"} & set(stored_as)):
            raise SpeechSourceError(
                f"{source}: the column {audio_column!r} holds {stored_as}, not audio. {_columns(columns)}"
            )
    chosen = {"audio": audio_column}
    for column, aliases in _COLUMNS.items():
        found = next((alias for alias in aliases if alias in columns and alias != audio_column), None)
        if found is not None:
            chosen[column] = found
    if (
        features is not None
        and "id" in columns
        and chosen == {column: column for column in columns}
        and all(_is_text(features[column]) for column in columns if column != "audio")
    ):
        return dataset
    if isinstance(dataset, datasets.IterableDataset):
        typed = None
        if features is not None:
            typed = datasets.Features(
                {"id": datasets.Value("string"), "audio": dataset.features[audio_column]}
                | {column: datasets.Value("string") for column in ("speaker", "text") if column in chosen}
            )
        return dataset.map(_Rename(chosen), remove_columns=columns, features=typed)

    stored = dataset.select_columns([audio_column])
    stored = stored.rename_column(audio_column, "audio") if audio_column != "audio" else stored
    for column in ("id", "speaker", "text"):
        if column in chosen:
            values = [None if value is None else str(value) for value in dataset[chosen[column]]]
        elif column == "id":
            values = _ids_from_paths(stored) or [f"{index:08d}" for index in range(len(stored))]
        else:
            continue
        stored = stored.add_column(column, values)
    return stored


def _is_text(feature: object, dtype: str = "string") -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype == dtype


class _Rename:
    """Map function of a stream: pick the chosen columns, and make up an id where there is none."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.chosen = dict(chosen)

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {new: example[old] for new, old in self.chosen.items()}
        for column in ("id", "speaker", "text"):
            if renamed.get(column) is not None:
                renamed[column] = str(renamed[column])
        if renamed.get("id") is None:
            audio = renamed["audio"] or {}
            renamed["id"] = _stem(audio.get("path")) or hashlib.sha256(audio.get("bytes") or b"").hexdigest()[:16]
        return renamed


def _stem(path: str | None) -> str | None:
    return PurePosixPath(path).stem if path else None


def _ids_from_paths(dataset: datasets.Dataset) -> list[str] | None:
    """File names stored with the audio, if every utterance has its own; the audio itself is not read."""
    audio = dataset.with_format("arrow")[:]["audio"]
    if not pa.types.is_struct(audio.type) or audio.type.get_field_index("path") < 0:
        return None
    paths = [path for chunk in audio.chunks for path in chunk.field("path").to_pylist()]
    stems = [_stem(path) for path in paths]
    return stems if all(stems) and len(set(stems)) == len(stems) else None


def no_column(column: str, columns: list[str], source: str) -> SpeechSourceError:
    """The error for an audio column that does not exist."""
    return SpeechSourceError(f"{source}: there is no audio column {column!r}. {_columns(columns)}")


def _columns(columns: list[str]) -> str:
    return f"Columns that exist: {', '.join(columns) or 'none'}."
