"""The pairs that a run trains on and is watched on, as its options ask for them."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data import (
    DecodedCache,
    PairTransform,
    Perturbation,
    build_perturbation,
    decode_audio,
    durations,
    load_speech,
    with_pairs,
)
from ..encoders import SAMPLE_RATE
from .arguments import DataArguments, LaserTrainingArguments
from .output_folder import RunError
from .sampling import EpochStream

logger = logging.getLogger(__name__)


@dataclass
class SpeechPairs:
    """Data sets of pairs and what belongs to them.

    Attributes:
        train: map-style, or a stream.
        held_out: map-style, or `None`.
        transform: makes the training pairs; knows their epoch.
        perturbation: what the device has to do, where the workers leave it to it; else `None`.
        seconds: of each training utterance as it is trained on, if updates are filled by length; else `None`.
        left_out: utterances whose length alone excludes them, by reason, where lengths were looked at beforehand.
    """

    train: datasets.Dataset | EpochStream
    held_out: datasets.Dataset | None
    transform: PairTransform
    perturbation: Perturbation | None
    seconds: list[float] | None = None
    left_out: dict[str, int] = field(default_factory=dict)


def perturbation_of(data: DataArguments) -> Perturbation:
    """The perturbations of `--perturbations`, one after the other.

    Raises:
        ValueError: an unknown name, none at all, or options that do not fit.
    """
    if not data.perturbations:
        raise ValueError("--perturbations is empty; name at least one, such as speed_pitch")
    options: dict[str, dict[str, Any]] = {
        "speed_pitch": {"speed_factors": data.speed_factors, "pitch_steps": data.pitch_steps},
        "voice": {"speaker_f0": data.speaker_f0},
    }
    if "voice" in data.perturbations and importlib.util.find_spec("parselmouth") is None:
        # Said now, and not by a data worker later.
        raise ValueError("--perturbations voice needs Praat: pip install praat-parselmouth")
    if "noise" in data.perturbations:
        if data.noise_dir is None:
            raise ValueError("--perturbations noise needs --noise_dir, a folder of noise recordings")
        options["noise"] = {"folder": data.noise_dir, "snrs": data.noise_snrs}
    parts = [{"name": name, **options.get(name, {})} for name in data.perturbations]
    return build_perturbation(parts if len(parts) > 1 else parts[0])


def load_pairs(data: DataArguments, args: LaserTrainingArguments) -> SpeechPairs:
    """Training and held-out pairs; sets when `args` evaluate.

    Raises:
        RunError: options that contradict each other.
        ValueError: speech or perturbations that are not there.
    """
    perturbation = perturbation_of(data)
    streaming = data.streaming if data.streaming is not None else not Path(data.train_data).exists()
    in_workers = data.perturb_on == "worker"
    decode = decode_audio
    if data.cache_decoded:
        if streaming:
            raise RunError(
                "--cache_decoded keeps what is read again and again; a stream is not. Leave it out, or give "
                "--streaming false to download the data first"
            )
        decode = DecodedCache(data.cache_decoded if str(data.cache_decoded).lower() != "true" else True)
        logger.info("Decoded utterances are kept in %s", decode.folder)

    def transform() -> PairTransform:
        return PairTransform(
            perturbation,
            args.seed,
            SAMPLE_RATE,
            data.min_seconds,
            data.max_seconds,
            decode,
            perturb=in_workers,
            crop_seconds=data.crop_seconds,
        )

    speech = load_speech(
        data.train_data,
        data.train_split,
        name=data.train_name,
        streaming=streaming,
        audio_column=data.audio_column,
        token=args.hub_token,
    )
    train_transform = transform()
    seconds, left_out = None, {}
    if streaming and args.seconds_per_update is not None:
        raise RunError(
            "--seconds_per_update fills updates with utterances of like length, and a stream does not know lengths "
            "beforehand. Give --streaming false to download the data first, or leave it out"
        )
    if streaming:
        if data.max_train_samples is not None:
            speech = speech.take(data.max_train_samples)
        train = EpochStream(
            speech, train_transform, args.seed, data.shuffle_buffer, args.process_index, args.world_size
        )
    else:
        if data.max_train_samples is not None:
            speech = speech.select(range(min(data.max_train_samples, len(speech))))
        # Skipped while training, those that are too long would leave updates of different sizes.
        if args.seconds_per_update is not None or data.max_seconds is not None:
            speech, lengths, left_out = _within_limits(speech, data)
            if not len(speech):
                raise RunError(
                    f"no utterance of {data.train_data} is as long as asked for: at least --min_seconds "
                    f"{data.min_seconds:g}, at most --max_seconds {data.max_seconds}; left out: {left_out}"
                )
            if args.seconds_per_update is not None:
                seconds = lengths
        train = with_pairs(speech, train_transform)
    held_out = None
    if not data.eval_data:
        args.eval_on_start = False
    else:
        held_out = _load_held_out(data, args.hub_token)
        # A transform of its own: its epoch stays 0, so that held-out pairs look the same at every step.
        held_out = with_pairs(held_out, transform())
        args.eval_strategy = "steps"
    return SpeechPairs(train, held_out, train_transform, None if in_workers else perturbation, seconds, left_out)


def _within_limits(
    speech: datasets.Dataset, data: DataArguments
) -> tuple[datasets.Dataset, list[float], dict[str, int]]:
    """The utterances within the limits, their lengths as trained on, and how many are too short or too long.

    Those whose length cannot be read stay, with length 0: decoding them says what is wrong and counts them.
    """
    found = durations(speech)
    longest = data.max_seconds if data.max_seconds is not None else float("inf")
    keep, seconds, left_out = [], [], {"too_short": 0, "too_long": 0}
    for index, length in enumerate(found):
        if length is None or data.min_seconds <= length <= longest:
            keep.append(index)
            seconds.append(min(length or 0.0, data.crop_seconds or float("inf")))
        else:
            left_out["too_short" if length < data.min_seconds else "too_long"] += 1
    logger.info("%d utterances, %.1f hours; left out: %s", len(keep), sum(seconds) / 3600, left_out)
    return speech.select(keep), seconds, left_out


def _load_held_out(data: DataArguments, token: str | None) -> datasets.Dataset:
    """At most `max_eval_samples` utterances, spread over a local set, the first ones of a Hub set."""
    local = Path(data.eval_data).exists()
    speech = load_speech(
        data.eval_data,
        data.eval_split,
        name=data.eval_name,
        # From the Hub only what is used: a map-style load would fetch every split of the configuration.
        streaming=not local and data.max_eval_samples is not None,
        audio_column=data.audio_column,
        token=token,
    )
    if isinstance(speech, datasets.IterableDataset):
        return datasets.Dataset.from_list(
            [{k: item[k] for k in ("id", "audio")} for item in speech.take(data.max_eval_samples)]
        )
    if data.max_seconds is not None:
        speech, *_ = _within_limits(speech, data)
    if data.max_eval_samples is not None and data.max_eval_samples < len(speech):
        # The first ones would be one speaker.
        picks = torch.linspace(0, len(speech) - 1, data.max_eval_samples).long().tolist()
        speech = speech.select(picks)
    return speech
