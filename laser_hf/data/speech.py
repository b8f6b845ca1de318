"""Opening speech: files on disk, a saved dataset, or a dataset on the Hub; all get the same columns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import LaserError
from .files import AUDIO_SUFFIXES, find_audio_files, index_audio_files

Speech = datasets.Dataset | datasets.IterableDataset

LOCAL_SHARDS = 64
"""Shards of a streamed local source: processes times workers that can read it side by side."""
_MEND = "Give a folder of speech or the id of a dataset on the Hub; laser_hf/demo/speech is shipped."
_ALIASES = {
    "id": ("id", "utterance_id"),
    "speaker": ("speaker", "speaker_id"),
    "text": ("text", "transcription", "sentence"),
}


def load_speech(
    source: str | Path,
    split: str | None = None,
    *,
    name: str | None = None,
    streaming: bool = False,
    audio_column: str = "audio",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Speech:
    """Open speech without decoding it.

    Args:
        source: one of

            - a folder of audio files (.flac .wav .ogg .opus .mp3) at any depth, sorted by path; see
              `index_audio_files` for ids, speakers and transcripts,
            - a folder written by `Dataset.save_to_disk`, or a local copy of a Parquet dataset,
            - the id of a dataset on the Hub, such as `openslr/librispeech_asr`.
        split: a sub-folder of a folder of audio files, else a split of the dataset. `None` for the whole folder, or for
            the only split.
        name: configuration of a Hub dataset, such as `clean`.
        streaming: give an `IterableDataset` that reads while it is iterated; else a `Dataset`.
        audio_column: name of the column that holds the audio.
        revision: of a Hub dataset.
        token: for a Hub dataset that is not public.

    Returns:
        Columns `id` (text), `audio` (`{"bytes", "path"}`, not decoded) and, if known, `speaker` and `text`. Without a
        column of ids, ids are the file names stored with the audio; without these, running numbers (in a stream: a hash
        of the audio, because every worker reads another part).

    Raises:
        LaserError: nothing usable is there, the split or the audio column does not exist, or the Hub cannot be reached.
            The original exception is chained.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        dataset = _load_folder(folder, split, name, streaming, audio_column)
    elif folder.exists():
        raise LaserError(f"{source!s} is a file; a folder of speech was expected. {_MEND}")
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(source)):
        _ask_hub(str(source), streaming, revision, token)
        dataset = _load_split(str(source), split, name, streaming, revision=revision, token=token)
    else:
        raise LaserError(f"there is no folder {source!s}. {_MEND}")
    dataset = _to_speech_columns(dataset, audio_column, str(source))
    if streaming and isinstance(dataset, datasets.Dataset):
        return dataset.to_iterable_dataset(num_shards=max(1, min(LOCAL_SHARDS, len(dataset))))
    return dataset


def _load_folder(folder: Path, split: str | None, name: str | None, streaming: bool, audio_column: str) -> Speech:
    if any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
        dataset = datasets.load_from_disk(str(folder))
        if isinstance(dataset, datasets.DatasetDict):
            return dataset[_choose_split(list(dataset), split, folder)]
        if split is not None and split != str(dataset.split):
            raise _no_split(split, [str(dataset.split)] if dataset.split else [], folder)
        return dataset

    # LibriSpeech unpacks into a folder LibriSpeech/ around its splits.
    bases = [folder, folder / "LibriSpeech"] if split else [folder]
    part = next((base / (split or "") for base in bases if (base / (split or "")).is_dir()), None)
    if files := find_audio_files(part) if part else []:
        if audio_column != "audio":
            raise _no_column(audio_column, ["audio"], folder)
        return index_audio_files(part, files)
    if next(folder.rglob("*.parquet"), None) is not None:
        return _load_split(str(folder), split, name, streaming)
    if part is None:
        below = sorted(entry.name for base in bases if base.is_dir() for entry in base.iterdir() if entry.is_dir())
        raise _no_split(split, below, folder)
    suffixes = " ".join(AUDIO_SUFFIXES)
    raise LaserError(
        f"no audio files ({suffixes}) in {part}, nor a dataset saved by save_to_disk or as Parquet. {_MEND}"
    )


def _ask_hub(source: str, streaming: bool, revision: str | None, token: Any) -> None:
    """Ask whether the dataset is there: without network `load_dataset` would retry for 24 s.

    A map-style dataset that was downloaded before needs no network.
    """
    try:
        huggingface_hub.HfApi(token=token).dataset_info(source, revision=revision, timeout=10)
    except Exception as error:  # also connection errors of the HTTP library, whichever huggingface_hub uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None and response.status_code < 500:
            raise LaserError(
                f"{source!r} is neither a folder here nor a dataset that the Hub lets you read ({reason}). {_MEND}"
            ) from error
        if streaming or not (Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")).is_dir():
            offline = " (offline mode is on: HF_HUB_OFFLINE)" if isinstance(error, OfflineModeIsEnabled) else ""
            raise LaserError(
                f"there is no folder {source!r}, and the Hub at {huggingface_hub.constants.ENDPOINT} cannot be "
                f"reached{offline} to look for a dataset of that id ({reason}). {_MEND}"
            ) from error


def _load_split(source: str, split: str | None, name: str | None, streaming: bool, **options: Any) -> Speech:
    """`datasets.load_dataset`; the splits are checked before anything large is downloaded."""
    try:
        split = _choose_split(datasets.get_dataset_split_names(source, name, **options), split, source)
        return datasets.load_dataset(source, name, split=split, streaming=streaming, **options)
    except LaserError:
        raise
    except (ValueError, OSError) as error:  # unknown configuration, no data files, connection lost
        raise LaserError(f"{source}: {error} {_MEND}") from error


def _choose_split(names: list[str], split: str | None, source: object) -> str:
    if split is None and len(names) == 1:
        return names[0]
    # datasets itself reads a slice such as train[:10%] or a sum of splits.
    if split is None or not all(part.split("[")[0].strip() in names for part in split.split("+")):
        raise _no_split(split, names, source)
    return split


def _no_split(split: str | None, names: list[str], source: object) -> LaserError:
    asked = f"there is no split {split!r}" if split is not None else "a split must be named"
    return LaserError(f"{source}: {asked}. Splits that exist: {', '.join(names) or 'none'}.")


def _no_column(column: str, columns: list[str], source: object) -> LaserError:
    return LaserError(
        f"{source}: there is no audio column {column!r}. Columns that exist: {', '.join(columns) or 'none'}."
    )


def _to_speech_columns(dataset: Speech, audio_column: str, source: str) -> Speech:
    """Bring a dataset to the columns that `load_speech` returns."""
    features = dataset.features
    columns = list(features if features is not None else next(iter(dataset), {}))
    if audio_column not in columns:
        raise _no_column(audio_column, columns, source)
    if features is not None:
        stored_as = features[audio_column]
        if isinstance(stored_as, datasets.Audio) or getattr(stored_as, "dtype", None) in ("string", "binary"):
            dataset = dataset.cast_column(audio_column, datasets.Audio(decode=False))
        elif not (isinstance(stored_as, dict) and {"bytes", "path", "array"} & set(stored_as)):
            raise LaserError(
                f"{source}: the column {audio_column!r} holds {stored_as}, not audio. Columns that exist: "
                f"{', '.join(columns)}."
            )
    chosen = {"audio": audio_column}
    for column, aliases in _ALIASES.items():
        found = next((alias for alias in aliases if alias in columns and alias != audio_column), None)
        if found is not None:
            chosen[column] = found
    if isinstance(dataset, datasets.IterableDataset):
        typed = None
        if features is not None:
            texts = {column: datasets.Value("string") for column in ("id", *_ALIASES) if column in {"id", *chosen}}
            typed = datasets.Features(texts | {"audio": dataset.features[audio_column]})
        return dataset.map(_rename, fn_kwargs={"chosen": chosen}, remove_columns=columns, features=typed)

    stored = dataset.select_columns([audio_column])
    stored = stored.rename_column(audio_column, "audio") if audio_column != "audio" else stored
    for column in _ALIASES:
        if column in chosen:
            values = [None if value is None else str(value) for value in dataset[chosen[column]]]
        elif column == "id":
            values = _stored_names(stored) or [f"{index:08d}" for index in range(len(stored))]
        else:
            continue
        stored = stored.add_column(column, values)
    return stored


def _rename(example: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """Map function of a stream: pick the chosen columns, and make up an id if there is none."""
    renamed = {new: example[old] for new, old in chosen.items()}
    renamed |= {name: str(renamed[name]) for name in _ALIASES if renamed.get(name) is not None}
    if renamed.get("id") is None:
        audio = renamed["audio"] or {}
        path, data = audio.get("path"), audio.get("bytes") or b""
        renamed["id"] = PurePosixPath(path).stem if path else hashlib.sha256(data).hexdigest()[:16]
    return renamed


def _stored_names(stored: datasets.Dataset) -> list[str] | None:
    """File names stored with the audio, if every utterance has its own; the audio itself is not read."""
    parts = stored.flatten()
    if "audio.path" not in parts.column_names:
        return None
    names = [PurePosixPath(path).stem if path else "" for path in parts["audio.path"]]
    return names if all(names) and len(set(names)) == len(names) else None
