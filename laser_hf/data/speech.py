"""Opening speech: files on disk, a saved dataset, or a dataset on the Hub; all get the same columns."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import LaserError
from .decode import is_remote
from .files import AUDIO_SUFFIXES, files_digest
from .listing import list_folder, list_manifest
from .pair_sets import speech_digest

Speech = datasets.Dataset | datasets.IterableDataset
LOCAL_SHARDS = 64  # of a streamed local source: processes times workers that can read it side by side
_MEND = "Give a folder of speech or the id of a dataset on the Hub; laser_hf/demo/speech is shipped."
_ALIASES = {"id": ("id", "utterance_id"), "speaker": ("speaker", "speaker_id")}
_ALIASES |= {"text": ("text", "transcription", "sentence")}


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
        source: a folder of audio files at any depth, sorted by path (`list_folder`); a manifest (`list_manifest`); a
            folder written by `Dataset.save_to_disk`; a local copy of a Parquet dataset; or the id of a dataset on the
            Hub, such as `openslr/librispeech_asr`.
        split: a sub-folder of a folder of audio files, else a split of the dataset. `None` for all, or the only one.
        name: configuration of a Hub dataset, such as `clean`.
        streaming: give an `IterableDataset` that reads while it is iterated.
        audio_column: name of the column that holds the audio.
        revision, token: of a Hub dataset.

    The columns are `id` (text), `audio` (`{"bytes", "path"}`, not decoded) and, if known, `speaker` and `text`. Without
    ids, the file names stored with the audio, or running numbers (in a stream: a hash of the audio).

    A `LaserError` says that nothing usable is there, no such split or audio column, or that the Hub cannot be reached.
    """
    folder, source = Path(source).expanduser(), str(source)
    # Where the paths stored in a dataset may point; `None` for anywhere: they were found or given here.
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE, f"datasets--{source.replace('/', '--')}")
    roots: list[Path] | None = [cached, Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
    if folder.is_dir():
        dataset, roots = _load_folder(folder, split, name, streaming)
    elif folder.exists():
        if split is not None:
            raise LaserError(f"{source} is a file, which has no split {split!r}; leave the split out")
        dataset, roots = list_manifest(folder), None
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        _ask_hub(source, streaming, revision, token)
        dataset = _load_split(source, split, name, streaming, revision=revision, token=token)
    else:
        raise LaserError(f"there is no folder {source}. {_MEND}")
    if roots is not None or audio_column != "audio":
        dataset = _to_speech_columns(dataset, audio_column, source, roots or [])
    if streaming and isinstance(dataset, datasets.Dataset):
        return dataset.to_iterable_dataset(num_shards=max(1, min(LOCAL_SHARDS, len(dataset))))
    return dataset


def source_digest(source: str | Path, split: str | None = None, token: str | bool | None = None) -> str:
    """What `load_speech` streams, in words that do not depend on any path.

    Of audio files and of a manifest the `speech_digest`; of a data set on disk the `files_digest`; of the Hub a commit.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        return str(_ask_hub(str(source), True, None, token))
    if folder.is_file():
        return speech_digest(list_manifest(folder))
    part = _part(folder, split)
    if part and not _is_saved(folder) and len(listed := list_folder(part)):
        return speech_digest(listed)
    return files_digest(part or folder, (*AUDIO_SUFFIXES, ".parquet", ".arrow"))


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json"))


def _part(folder: Path, split: str | None) -> Path | None:
    """The folder of a split, if there is one; LibriSpeech unpacks into a folder LibriSpeech/ around its splits."""
    places = [folder / split, folder / "LibriSpeech" / split] if split else [folder]
    return next((place for place in places if place.is_dir()), None)


def _load_folder(
    folder: Path, split: str | None, name: str | None, streaming: bool
) -> tuple[Speech, list[Path] | None]:
    """The dataset and where the paths stored in it may point."""
    if _is_saved(folder):
        saved = datasets.load_from_disk(str(folder))
        parts = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split): saved}
        split = next(iter(parts)) if split is None and len(parts) == 1 else split
        if split not in parts:
            raise _no_split(split, list(parts), folder)
        return parts[split], [folder]
    part = _part(folder, split)
    if part and len(listed := list_folder(part)):
        return listed, None
    if any(folder.rglob("*.parquet")):
        return _load_split(str(folder), split, name, streaming), [folder]
    if part is None:
        inside = [*folder.glob("*"), *folder.glob("LibriSpeech/*")]
        raise _no_split(split, sorted(entry.name for entry in inside if entry.is_dir()), folder)
    what = f"no audio files ({' '.join(AUDIO_SUFFIXES)}) in {part}, nor a dataset saved to disk or as Parquet"
    raise LaserError(f"{what}. {_MEND}")


def _ask_hub(source: str, streaming: bool, revision: str | None, token: Any) -> str | None:
    """The dataset's commit (`None` offline); without network `load_dataset` would retry for 24 s, downloaded or not."""
    try:
        return huggingface_hub.HfApi(token=token).dataset_info(source, revision=revision, timeout=10).sha
    except Exception as error:  # also connection errors of the HTTP library, whichever huggingface_hub uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None and response.status_code < 500:
            what = "neither a folder here nor a dataset that the Hub lets you read"
            raise LaserError(f"{source!r} is {what} ({reason}). {_MEND}") from error
        if streaming or not (Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")).is_dir():
            offline = " (offline mode is on: HF_HUB_OFFLINE)" if isinstance(error, OfflineModeIsEnabled) else ""
            hub = f"the Hub at {huggingface_hub.constants.ENDPOINT} cannot be reached{offline}"
            raise LaserError(f"{source!r} is no folder here, and {hub} ({reason}). {_MEND}") from error
        return None


def _load_split(source: str, split: str | None, name: str | None, streaming: bool, **options: Any) -> Speech:
    """`datasets.load_dataset`; the splits are checked before anything large is downloaded."""
    try:
        names = datasets.get_dataset_split_names(source, name, **options)
        split = names[0] if split is None and len(names) == 1 else split
        # datasets itself reads a slice such as train[:10%] or a sum of splits.
        if split is None or not all(part.split("[")[0].strip() in names for part in split.split("+")):
            raise _no_split(split, names, source)
        return datasets.load_dataset(source, name, split=split, streaming=streaming, **options)
    except LaserError:
        raise
    except (ValueError, OSError) as error:  # unknown configuration, no data files, connection lost
        raise LaserError(f"{source}: {error} {_MEND}") from error


def _no_split(split: str | None, names: list[str], source: object) -> LaserError:
    asked = f"there is no split {split!r}" if split is not None else "a split must be named"
    return LaserError(f"{source}: {asked}. Splits that exist: {', '.join(names) or 'none'}.")


def _to_speech_columns(dataset: Speech, audio_column: str, source: str, roots: list[Path]) -> Speech:
    """Bring a dataset to the columns that `load_speech` returns."""
    features = dataset.features
    columns = list(features if features is not None else next(iter(dataset), {}))
    exist = f"Columns that exist: {', '.join(columns) or 'none'}."
    if audio_column not in columns:
        raise LaserError(f"{source}: there is no audio column {audio_column!r}. {exist}")
    if features is not None:
        stored_as = features[audio_column]
        if isinstance(stored_as, datasets.Audio) or getattr(stored_as, "dtype", None) in ("string", "binary"):
            dataset = dataset.cast_column(audio_column, datasets.Audio(decode=False))
        elif not (isinstance(stored_as, dict) and {"bytes", "path", "array"} & set(stored_as)):
            raise LaserError(f"{source}: the column {audio_column!r} holds {stored_as}, not audio. {exist}")
    chosen = {"audio": audio_column}
    for column, aliases in _ALIASES.items():
        found = [alias for alias in aliases if alias in columns and alias != audio_column]
        chosen |= {column: found[0]} if found else {}
    if isinstance(dataset, datasets.IterableDataset):
        typed = None
        if features is not None:
            texts = {column: datasets.Value("string") for column in _ALIASES if column in {"id", *chosen}}
            typed = datasets.Features(texts | {"audio": dataset.features[audio_column]})
        how = {"chosen": chosen, "source": source, "roots": roots}
        return dataset.map(_rename, fn_kwargs=how, remove_columns=columns, features=typed)
    speech = dataset.select_columns([audio_column]).rename_columns({audio_column: "audio"})
    parts = speech.flatten()
    paths = parts["audio.path"] if "audio.path" in parts.column_names else []
    if {"audio.path", "audio.bytes"} <= set(parts.column_names):
        stored = parts.data.column("audio.path").filter(parts.data.column("audio.bytes").is_null()).to_pylist()
        for path in filter(None, stored):
            _check_path(path, source, roots)
    if "id" not in chosen:  # names stored with the audio, if each utterance has its own; the audio itself is not read
        names = [PurePosixPath(path).stem for path in filter(None, paths)]
        numbers = [f"{index:08d}" for index in range(len(speech))]
        speech = speech.add_column("id", names if len(set(names)) == len(speech) else numbers)
    for column in list(chosen)[1:]:
        values = [None if value is None else str(value) for value in dataset[chosen[column]]]
        speech = speech.add_column(column, values)
    return speech


def _check_path(path: str, source: str, roots: list[Path]) -> None:
    """Refuse to open what somebody else's data set names outside of its own folder or repository."""
    place = path.rpartition("::")[2]
    if is_remote(path):
        inside = place.startswith((f"hf://datasets/{source}@", f"hf://datasets/{source}/"))
    else:
        inside = any(Path(path).resolve().is_relative_to(root.resolve()) for root in roots)
    if not inside:
        mend = "keep the files there, or cast the column to datasets.Audio before saving, which stores the audio itself"
        raise LaserError(f"{source}: the stored path {path!r} is not in the data set's folder or repository; {mend}")


def _rename(example: Mapping[str, Any], chosen: Mapping[str, str], source: str, roots: list[Path]) -> dict[str, Any]:
    """Map function of a stream: pick the chosen columns, and make up an id if there is none."""
    renamed = {new: example[old] for new, old in chosen.items()}
    renamed |= {name: str(renamed[name]) for name in _ALIASES if renamed.get(name) is not None}
    audio = renamed["audio"] or {}
    path, data = audio.get("path"), audio.get("bytes")
    if path and data is None:
        _check_path(path, source, roots)
    if renamed.get("id") is None:
        renamed["id"] = PurePosixPath(path).stem if path else hashlib.sha256(data or b"").hexdigest()[:16]
    return renamed
