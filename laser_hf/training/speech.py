"""What a run trains on and what it is measured on, as its options ask for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data import PairDataset, PairStream, PairTransform, build_perturbation, keep_decoded, load_speech, source_digest
from ..encoders import SpeechEncoder
from ..errors import LaserError
from ..records import located
from ..runs import CONTENT
from ..superb.discrimination import AlignedSpeech, DiscriminationSettings, load_aligned_speech, measure
from ..superb.features import EncoderFeatures
from .arguments import DataArguments
from .means import from_all_processes
from .options import Options
from .sampling import data_workers

DEMO = "demo"
DEMO_SPEECH = "{laser_hf}/demo/speech"
_SIZES = {"max_utterances": 40, "max_words": 200, "max_pairs": 20_000, "phones_per_speaker": 2, "max_speakers": 6}
SETTINGS = DiscriminationSettings(min_letters=4, min_seconds=0.0, **_SIZES)
"""Of `--eval_alignments`: seconds per evaluation. Words as in the demo's table: few utterances hold few long words."""
LOGGED = ("word_ap_across", "abx_across", "abx_within")


def load_pairs(options: Options) -> tuple[PairDataset | PairStream, PairDataset | None]:
    """Training pairs and held-out pairs, if any; `LaserError` on contradicting options or missing speech."""
    data, args = options.data, options.training
    streaming = data.streaming if data.streaming is not None else not Path(data.train_data).exists()
    if data.cache_decoded and streaming:
        raise LaserError("--cache_decoded keeps what is read again and again; a stream is not: give --streaming false")
    values = {dest: value for choice in options.perturbations for dest, value in choice.values.items()}
    perturbation = build_perturbation([choice.name for choice in options.perturbations], values)
    if data.perturb_on == "auto":  # what runs is recorded
        data.perturb_on = "device" if perturbation.batched and args.device.type == "cuda" else "worker"
    limits = {"min_seconds": data.min_seconds, "max_seconds": data.max_seconds, "crop_seconds": data.crop_seconds}
    transform = partial(PairTransform, perturbation, args.seed, perturb=data.perturb_on == "worker", **limits)
    how = {"audio_column": data.audio_column, "token": args.hub_token}
    speech = load_speech(data.train_data, data.train_split, name=data.train_name, streaming=streaming, **how)
    if data.max_train_samples is not None:
        speech = speech.take(data.max_train_samples)
    if streaming:
        train = PairStream(speech, transform(), args.seed, data.shuffle_buffer, args.process_index, args.world_size)
    else:
        # Utterances skipped while training would leave updates of different sizes.
        by_length = args.seconds_per_update is not None or data.max_seconds is not None
        train = PairDataset(_kept(speech, data), transform(), check_lengths=by_length)
    held_out = None
    if data.eval_data and args.eval_strategy != "no":
        # A transform of its own: its epoch stays 0, so that held-out pairs look the same at every step.
        # From a Hub set only the first `max_eval_samples`: a map-style load would fetch every split.
        some = not Path(data.eval_data).exists() and data.max_eval_samples is not None
        speech = load_speech(data.eval_data, data.eval_split, name=data.eval_name, streaming=some, **how)
        if some:
            taken = speech.take(data.max_eval_samples)
            speech = datasets.Dataset.from_list([{key: item[key] for key in ("id", "audio")} for item in taken])
        held_out = PairDataset(_kept(speech, data), transform())
        if data.max_eval_samples is not None and data.max_eval_samples < len(held_out):
            # Spread over the set: the first ones would be one speaker.
            picks = torch.linspace(0, len(held_out) - 1, data.max_eval_samples).long().tolist()
            held_out = PairDataset(held_out.speech.select(picks), transform(), check_lengths=False)
    return train, held_out


def same_speech(options: Options, train: PairDataset | PairStream) -> dict[str, dict[str, Any]]:
    """What a recipe says of the training data that were found; every process has to call it.

    The group `content` has digests of the speech and of the files of perturbations, by option; of a stream, `stream`
    has what decides its order. `LaserError` if a machine has other files than the first one.
    """
    args, data = options.training, options.data
    stream = {}
    if not isinstance(train, PairDataset):
        workers = max(data_workers(train, args), 1)  # one reads as the process itself would
        stream = {"stream": {"dataloader_num_workers": workers, "num_processes": args.world_size}}
    own: dict[str, str] | LaserError = {}
    try:
        if args.local_process_index == 0:
            speech = source_digest(data.train_data, data.train_split, args.hub_token) if stream else train.fingerprint()
            own = {"train_data": speech, **train.perturbation.content()}
    except LaserError as error:
        own = error
    first, *_ = found = from_all_processes(own)
    for process, one in enumerate(found):
        if isinstance(one, LaserError):
            raise one
        if other := [name for name, digest in one.items() if digest != first[name]]:
            raise LaserError(f"--{other[0]} holds other files for process {process} than for the first; give the same")
    return {**stream, CONTENT: first}


def _kept(speech: datasets.Dataset, data: DataArguments) -> datasets.Dataset:
    """`speech`, decoded once if the options ask for it."""
    folder = data.cache_decoded
    return keep_decoded(speech, None if folder.lower() == "true" else folder) if folder else speech


class DiscriminationEvaluator:
    """Word discrimination and phone error of an encoder's last layer on speech with times (`load_aligned_speech`).

    Unlike the loss, these numbers can be compared between runs. A run makes the same weights without it.
    """

    def __init__(self, speech: AlignedSpeech, settings: DiscriminationSettings = SETTINGS):
        self.speech, self.settings = speech, settings

    def __call__(self, encoder: SpeechEncoder) -> dict[str, float]:
        """`word_ap_across`, `abx_across` and `abx_within`, as far as the speech has words and phones."""
        (report,) = measure(EncoderFeatures(encoder), self.speech, settings=self.settings)
        summary = report.summary()
        return {name: summary[name] for name in LOGGED if name in summary}


def load_evaluator(data: DataArguments) -> DiscriminationEvaluator | None:
    """The evaluator that `--eval_alignments` asks for, or `None`; `LaserError` where there is nothing to measure."""
    if not data.eval_alignments:
        return None
    if not data.eval_data:
        raise LaserError("--eval_alignments measures at every evaluation, and there is none without --eval_data")
    alignments, root, splits = data.eval_alignments, data.eval_alignments_data, data.eval_alignments_splits
    if alignments == DEMO:
        root, splits = located(DEMO_SPEECH), ["heldout"]
        alignments = str(Path(root) / "words.tsv")
    elif root is None:
        root, splits = data.eval_data, splits or ([data.eval_split] if data.eval_split else None)
    try:
        return DiscriminationEvaluator(load_aligned_speech(root, alignments, splits, SETTINGS))
    except LaserError as error:
        raise LaserError(
            f"--eval_alignments {data.eval_alignments} cannot be used: {error}. It takes a tab-separated file with "
            f"word times of audio files below --eval_alignments_data, or {DEMO} for the shipped speech"
        ) from error
