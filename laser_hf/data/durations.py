"""How long the utterances of a dataset are, without decoding them."""

from __future__ import annotations

from typing import Any

import datasets
import soundfile
from tqdm.auto import tqdm

from .decode import BadAudio, opened
from .resampling import resampled_length


def durations(dataset: datasets.Dataset, sample_rate: int = 16000, progress: bool = True) -> list[float | None]:
    """Seconds of each utterance, from the headers of its audio.

    Args:
        dataset: map-style, with a column ``audio`` of ``{"bytes", "path"}``, as
            :func:`laser_hf.data.speech.load_speech` returns it. A transform that is set on it is not carried out.
        sample_rate: Hz; the length is that of the utterance at this rate, rounded up to a whole sample as
            :func:`laser_hf.data.decode.decode_audio` does.
        progress: show a bar.

    Returns:
        One number an utterance, in the order of the dataset; None where the header cannot be read or tells no
        length. (Audio that is damaged behind its header has a length here, and is refused when it is decoded.)

    Raises:
        TypeError: the dataset is a stream.
        ValueError: there is no column ``audio``.
        OSError: a remote file system cannot be reached.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"durations needs a map-style dataset, got {type(dataset).__name__}; load it with streaming=False"
        )
    if "audio" not in dataset.column_names:
        raise ValueError(f"there is no column 'audio'; columns that exist: {', '.join(dataset.column_names)}")
    stored = dataset.with_format(None).select_columns(["audio"])
    if isinstance(stored.features["audio"], datasets.Audio):
        stored = stored.cast_column("audio", datasets.Audio(decode=False))
    rows = tqdm(stored, desc="durations", unit="utterance", disable=not progress, mininterval=2)
    return [_seconds(row["audio"], sample_rate) for row in rows]


def _seconds(audio: Any, sample_rate: int) -> float | None:
    try:
        with opened(audio) as (_, source):
            found = soundfile.info(source)
    except (BadAudio, soundfile.SoundFileError, TypeError, ValueError):
        return None
    # A damaged or streamed header can announce absurdly many frames.
    if not 0 <= found.frames < 2**40:
        return None
    return resampled_length(found.frames, found.samplerate, sample_rate) / sample_rate
