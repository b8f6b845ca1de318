"""Where speech comes from: files on disk, a saved dataset, a dataset on the Hub; all with the same columns.

``id`` (text), ``audio`` (``{"bytes", "path"}``, not decoded) and, when known, ``speaker`` and ``text``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets.distributed import split_dataset_by_node
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from .columns import Speech, SpeechSourceError, no_column, to_speech_columns
from .local_speech import AUDIO_SUFFIXES, find_audio_files, index_audio_files

LOCAL_SHARDS = 64
"""Shards of a streamed local source: nodes times workers that can read it side by side."""
_MEND = "Give --train_data PATH (a folder of speech) or the id of a dataset on the Hub, or try --preset demo."


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

            - a folder of audio files (.flac .wav .ogg .opus .mp3), at any depth; files laid out as in
              LibriSpeech, ``speaker/chapter/speaker-chapter-utterance.ext``, get their speaker and
              transcript. Sorted by path.
            - a folder written by ``Dataset.save_to_disk``, or a local copy of a Parquet dataset,
            - the id of a dataset on the Hub, such as ``openslr/librispeech_asr``.
        split: a sub-folder of a folder of audio files, else a split of the dataset. None for the whole
            folder, or for the only split.
        name: configuration of a Hub dataset, such as ``clean``.
        streaming: give an ``IterableDataset`` that reads while it is iterated; else a ``Dataset``.
        audio_column: name of the column that holds the audio.
        revision: of a Hub dataset.
        token: for a Hub dataset that is not public.

    Returns:
        Columns ``id``, ``audio`` and, when known, ``speaker`` and ``text``. Without a column of ids, ids are
        the file names stored with the audio; failing these, running numbers (in a stream: a hash of the
        audio, because every worker reads another part).

    Raises:
        SpeechSourceError: nothing usable is there, the split or the audio column does not exist, or the Hub
            cannot be reached. The original exception is chained.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        dataset = _load_folder(folder, split, name, streaming, audio_column)
    elif folder.exists():
        raise SpeechSourceError(f"{source!s} is a file; a folder of speech was expected. {_MEND}")
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(source)):
        dataset = _load_hub(str(source), split, name, streaming, revision, token)
    else:
        raise SpeechSourceError(f"there is no folder {source!s}. {_MEND}")
    return to_speech_columns(dataset, audio_column, str(source))


def shuffled_stream(
    dataset: datasets.IterableDataset,
    seed: int = 0,
    buffer_size: int = 1000,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> datasets.IterableDataset:
    """Shuffle a stream and give this node its share; ``dataset.set_epoch`` shuffles anew.

    To be applied before the audio is decoded: each worker holds ``buffer_size`` stored utterances (some
    200 kB of FLAC each). Every utterance comes up once an epoch over all nodes and workers together. If the
    number of shards is a multiple of ``world_size``, each node reads its own shards only, else every node
    reads all of them and keeps one utterance in ``world_size``.

    Args:
        dataset: not yet shuffled or split.
        seed: the same on every node.
        buffer_size: utterances to draw from.
        rank: of this node, 0-based.
        world_size: number of nodes.
    """
    dataset = dataset.shuffle(seed=seed, buffer_size=buffer_size)
    return split_dataset_by_node(dataset, rank, world_size) if world_size > 1 else dataset


def _load_folder(folder: Path, split: str | None, name: str | None, streaming: bool, audio_column: str) -> Speech:
    if any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
        dataset = datasets.load_from_disk(str(folder))
        if isinstance(dataset, datasets.DatasetDict):
            dataset = dataset[_choose_split(list(dataset), split, folder)]
        elif split is not None and split != str(dataset.split):
            raise _no_split(split, [str(dataset.split)] if dataset.split else [], folder)
        return _stream(dataset) if streaming else dataset

    # LibriSpeech unpacks into a folder LibriSpeech/ around its splits.
    bases = [folder, folder / "LibriSpeech"] if split else [folder]
    part = next((base / (split or "") for base in bases if (base / (split or "")).is_dir()), None)
    files = find_audio_files(part) if part else []
    if files:
        if audio_column != "audio":
            raise no_column(audio_column, ["audio"], str(folder))
        try:
            dataset = index_audio_files(part, files)
        except ValueError as error:
            raise SpeechSourceError(f"{part}: {error}. Name one split (a sub-folder).") from error
        return _stream(dataset) if streaming else dataset

    if next(folder.rglob("*.parquet"), None) is not None:
        return _load_split(str(folder), split, name, streaming, {})
    if part is None:
        below = sorted(entry.name for base in bases if base.is_dir() for entry in base.iterdir() if entry.is_dir())
        raise _no_split(split, below, folder)
    suffixes = " ".join(AUDIO_SUFFIXES)
    raise SpeechSourceError(
        f"no audio files ({suffixes}) in {part}, nor a dataset saved by save_to_disk or as Parquet. {_MEND}"
    )


def _load_hub(
    source: str, split: str | None, name: str | None, streaming: bool, revision: str | None, token: Any
) -> Speech:
    """A dataset on the Hub. One request comes first: without network ``load_dataset`` retries for 24 s."""
    try:
        huggingface_hub.HfApi(token=token).dataset_info(source, revision=revision, timeout=10)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status is not None and status >= 500:
            raise _unreachable(source, error) from error
        raise SpeechSourceError(
            f"{source!r} is neither a folder here nor a dataset that the Hub lets you read "
            f"({_first_line(error)}). {_MEND}"
        ) from error
    except Exception as error:  # connection errors of the HTTP library, whichever huggingface_hub uses
        cached = Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")
        if streaming or not cached.is_dir():
            raise _unreachable(source, error) from error
    return _load_split(source, split, name, streaming, {"revision": revision, "token": token})


def _load_split(source: str, split: str | None, name: str | None, streaming: bool, options: dict[str, Any]) -> Speech:
    """``datasets.load_dataset``; the splits are looked up before anything large is downloaded."""
    try:
        names = datasets.get_dataset_split_names(source, name, **options)
        split = _choose_split(names, split, source)
        return datasets.load_dataset(source, name, split=split, streaming=streaming, **options)
    except SpeechSourceError:
        raise
    except (ValueError, OSError) as error:  # unknown configuration, no data files, connection lost
        raise SpeechSourceError(f"{source}: {error} {_MEND}") from error


def _stream(dataset: datasets.Dataset) -> datasets.IterableDataset:
    return dataset.to_iterable_dataset(num_shards=max(1, min(LOCAL_SHARDS, len(dataset))))


def _choose_split(names: list[str], split: str | None, source: object) -> str:
    if split is None and len(names) == 1:
        return names[0]
    # A slice such as train[:10%] or a sum of splits is left for datasets to read.
    if split is None or not all(part.split("[")[0].strip() in names for part in split.split("+")):
        raise _no_split(split, names, source)
    return split


def _no_split(split: str | None, names: list[str], source: object) -> SpeechSourceError:
    asked = f"there is no split {split!r}" if split is not None else "a split must be named"
    return SpeechSourceError(f"{source}: {asked}. Splits that exist: {', '.join(names) or 'none'}.")


def _unreachable(source: str, error: Exception) -> SpeechSourceError:
    offline = " (offline mode is on: HF_HUB_OFFLINE)" if isinstance(error, OfflineModeIsEnabled) else ""
    endpoint = huggingface_hub.constants.ENDPOINT
    return SpeechSourceError(
        f"there is no folder {source!r}, and the Hub at {endpoint} cannot be reached{offline} to look for a "
        f"dataset of that id ({_first_line(error)}). {_MEND}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
