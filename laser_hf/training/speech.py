"""The pairs that a run trains on and is evaluated on, as its options ask for them."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch

from ..data import PairDataset, PairStream, PairTransform, build_perturbation, keep_decoded, load_speech
from ..errors import LaserError
from .options import Options


def load_pairs(options: Options) -> tuple[PairDataset | PairStream, PairDataset | None]:
    """Training pairs and held-out pairs, if there are any.

    Raises:
        LaserError: options that contradict each other, or speech that is not there.
    """
    data, args = options.data, options.training
    streaming = data.streaming if data.streaming is not None else not Path(data.train_data).exists()
    if data.cache_decoded and streaming:
        raise LaserError(
            "--cache_decoded keeps what is read again and again; a stream is not. Leave it out, or give "
            "--streaming false to download the data first"
        )
    values = {dest: value for choice in options.perturbations for dest, value in choice.values.items()}
    perturbation = build_perturbation([choice.name for choice in options.perturbations], values)

    def transform() -> PairTransform:
        return PairTransform(
            perturbation,
            args.seed,
            min_seconds=data.min_seconds,
            max_seconds=data.max_seconds,
            crop_seconds=data.crop_seconds,
            perturb=data.perturb_on == "worker",
        )

    speech = load_speech(
        data.train_data,
        data.train_split,
        name=data.train_name,
        streaming=streaming,
        audio_column=data.audio_column,
        token=args.hub_token,
    )
    train: PairDataset | PairStream
    if streaming:
        if data.max_train_samples is not None:
            speech = speech.take(data.max_train_samples)
        train = PairStream(speech, transform(), args.seed, data.shuffle_buffer, args.process_index, args.world_size)
    else:
        if data.max_train_samples is not None:
            speech = speech.select(range(min(data.max_train_samples, len(speech))))
        # Utterances skipped while training would leave updates of different sizes.
        by_length = args.seconds_per_update is not None or data.max_seconds is not None
        train = PairDataset(_kept(speech, options), transform(), check_lengths=by_length)
    held_out = None
    if data.eval_data:
        # A transform of its own: its epoch stays 0, so that held-out pairs look the same at every step.
        held_out = PairDataset(_kept(_load_held_out(options), options), transform())
        if data.max_eval_samples is not None and data.max_eval_samples < len(held_out):
            # Spread over the set: the first ones would be one speaker.
            picks = torch.linspace(0, len(held_out) - 1, data.max_eval_samples).long().tolist()
            held_out = PairDataset(held_out.speech.select(picks), transform(), check_lengths=False)
    return train, held_out


def _kept(speech: datasets.Dataset, options: Options) -> datasets.Dataset:
    """`speech`, decoded once if the options ask for it."""
    folder = options.data.cache_decoded
    if not folder:
        return speech
    return keep_decoded(speech, folder if str(folder).lower() != "true" else None)


def _load_held_out(options: Options) -> datasets.Dataset:
    """Held-out speech: all of a local set, the first `max_eval_samples` utterances of a Hub set."""
    data = options.data
    local = Path(data.eval_data).exists()
    speech = load_speech(
        data.eval_data,
        data.eval_split,
        name=data.eval_name,
        # From the Hub only what is used: a map-style load would fetch every split of the configuration.
        streaming=not local and data.max_eval_samples is not None,
        audio_column=data.audio_column,
        token=options.training.hub_token,
    )
    if isinstance(speech, datasets.IterableDataset):
        taken = speech.take(data.max_eval_samples)
        return datasets.Dataset.from_list([{key: item[key] for key in ("id", "audio")} for item in taken])
    return speech
