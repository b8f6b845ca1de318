"""One training run: load, train, export, record, draw."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from ..cpu import keep_freed_memory
from ..data import DecodedCache, PairTransform, build_perturbation, decode_audio, load_speech, with_pairs
from ..encoders import SAMPLE_RATE, TRAINING_CONFIG, SpeechEncoder, load_encoder
from ..objectives import LaserLoss
from ..ops import soft_dtw_alignment
from ..publishing import export_encoder, sample_features
from ..records import portable, provenance, read_json, write_json
from .arguments import DataArguments, precision
from .micro_batches import perturb_pairs
from .model import AlignmentModel
from .options import Options
from .probe import load_eval_probe, plot_probe
from .profile import PROFILE_NAME
from .sampling import EpochStream
from .trainer import LaserTrainer, NonFiniteLossError

logger = logging.getLogger(__name__)

RECORD_NAME = "laser_config.json"
HISTORY_NAME = "training_log.json"
RECIPE_NAME = "recipe.json"


class RunError(RuntimeError):
    """A run that cannot start as asked; the message says how to mend it."""


def run_training(options: Options) -> dict[str, Any]:
    """Train as `options` say and leave encoder, record and plots in `output_dir`; return the record.

    Errors a user can mend end the process with their message and exit status 1.
    """
    _set_up_logging(options)
    try:
        return _run(options)
    except (RunError, NonFiniteLossError, ValueError) as error:
        logger.error("%s", error)
        sys.exit(1)


def _set_up_logging(options: Options) -> None:
    main = options.training.process_index == 0
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        stream=sys.stderr,
    )
    logging.getLogger("laser_hf").setLevel(logging.INFO if main else logging.WARNING)
    transformers_logging.set_verbosity_warning()


def _run(options: Options) -> dict[str, Any]:
    args, output_dir = options.training, Path(options.training.output_dir)
    checkpoint = prepare_output_dir(options)
    set_seed(args.seed)
    if args.device.type == "cpu":
        keep_freed_memory()
    encoder = _load(options)
    trainable = encoder.freeze_except(options.model.trainable_layers, options.model.train_encoder_layer_norm)
    model = AlignmentModel(encoder, options.model.projection_dim)
    train, eval_pairs, set_epoch, perturbation = _load_pairs(options)
    trainer = LaserTrainer(
        model=model,
        args=args,
        objective=LaserLoss(**dataclasses.asdict(options.objective)),
        train_dataset=train,
        eval_dataset=eval_pairs,
        set_epoch=set_epoch,
        perturbation=perturbation,
        probe=load_eval_probe(options.data),
    )
    logger.info(
        "%s: %s of %s parameters trained; %d pairs an update = %d process(es) x %d micro-batch(es)",
        options.model.model_name_or_path,
        f"{sum(p.numel() for p in encoder.parameters() if p.requires_grad):,}",
        f"{sum(p.numel() for p in encoder.parameters()):,}",
        args.pairs_per_update,
        args.world_size,
        args.gradient_accumulation_steps,
    )
    if checkpoint:
        logger.info("Resuming from %s", checkpoint)
        args.eval_on_start = False  # it is in the log already
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.wait_for_everyone()
    # Sums over the processes: every one of them has to come here.
    skipped = {"train": trainer.skipped_summary(), "held_out": trainer.skipped_summary(held_out=True)}
    state = trainer.own_state()
    record = {}
    if trainer.is_world_process_zero():
        record = _record(options, trainer, encoder, trainable, train, skipped, state)
        export_encoder(encoder.model, encoder.base_config, output_dir, options.model.do_normalize)
        write_json(output_dir / HISTORY_NAME, {"log": trainer.state.log_history})
        if args.plots:
            _draw(options, trainer, encoder, eval_pairs if eval_pairs is not None else train, output_dir)
        # Last: its presence says that the run is complete.
        write_json(output_dir / RECORD_NAME, record)
        logger.info("Encoder, %s and plots are in %s", RECORD_NAME, output_dir)
    trainer.accelerator.wait_for_everyone()
    if args.publish and trainer.is_world_process_zero():
        _publish(options, output_dir)
    return record


def _publish(options: Options, output_dir: Path) -> None:
    """Upload the finished run; where that fails the run is complete all the same, and the error says how to go on."""
    from ..publishing.push import PushError, Request, later_command, push

    args = options.training
    request = Request(
        output_dir, args.hub_model_id, private=args.hub_private_repo, allow_unevaluated=True, token=args.hub_token
    )
    try:
        push(request)
    except PushError as error:
        raise RunError(
            f"the run is complete in {output_dir}, but it was not published: {error}. To publish it later: "
            f"{later_command(request)}"
        ) from error


def prepare_output_dir(options: Options) -> str | None:
    """Make `output_dir` usable and return the checkpoint to resume from, if any.

    Raises:
        RunError: a folder that cannot be written, holds a finished run, or a run of another recipe.
    """
    args, output_dir = options.training, Path(options.training.output_dir)
    recipe = options.recipe()
    with args.main_process_first(local=False, desc="preparing the output folder"):
        if args.process_index == 0:
            if args.overwrite_output_dir:
                _clear(output_dir)
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
                probe = output_dir / ".writable"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise RunError(
                    f"cannot write to --output_dir {output_dir} ({error.strerror}); choose another folder"
                ) from error
            if (output_dir / RECORD_NAME).exists():
                raise RunError(
                    f"{output_dir} holds a finished run ({RECORD_NAME}); choose another --output_dir, or start over "
                    "with --overwrite_output_dir"
                )
            if (output_dir / "trainer_state.json").exists():
                raise RunError(f"{output_dir} is itself a checkpoint; give the folder above it as --output_dir")
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("True", "true", True) or checkpoint is None:
        checkpoint = last_complete_checkpoint(output_dir)
    elif not Path(checkpoint, "trainer_state.json").is_file():
        raise RunError(f"--resume_from_checkpoint {checkpoint} is not a checkpoint (it has no trainer_state.json)")
    if args.resume_from_checkpoint in ("True", "true", True) and checkpoint is None:
        raise RunError(f"nothing to resume: no complete checkpoint in {output_dir}")
    if checkpoint and (output_dir / RECIPE_NAME).exists():
        before = read_json(output_dir / RECIPE_NAME)
        changed = sorted(
            f"--{name} {before[group].get(name)} -> {value}"
            for group, values in recipe.items()
            for name, value in values.items()
            if before.get(group, {}).get(name) != value
        )
        if changed:
            raise RunError(
                f"{output_dir} holds an unfinished run of another recipe ({'; '.join(changed)}). Give the old values "
                "to resume it, choose another --output_dir, or start over with --overwrite_output_dir"
            )
    if args.process_index == 0:
        write_json(output_dir / RECIPE_NAME, recipe)
    return checkpoint


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """Newest checkpoint whose writing was not interrupted; incomplete ones are moved out of the way."""
    while (checkpoint := get_last_checkpoint(str(output_dir))) is not None:
        # The Trainer writes the weights first and its state last.
        if all((Path(checkpoint) / name).is_file() for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt")):
            return checkpoint
        logger.warning("%s is incomplete; it is left aside as broken-%s", checkpoint, Path(checkpoint).name)
        os.replace(checkpoint, output_dir / f"broken-{Path(checkpoint).name}")
    return None


def _clear(output_dir: Path) -> None:
    """Delete what an earlier run left, and nothing else."""
    for pattern in ("checkpoint-*", "broken-checkpoint-*", "runs", "plots", "results"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder)
    for name in (
        RECORD_NAME, HISTORY_NAME, RECIPE_NAME, PROFILE_NAME, "non_finite.json", "config.json", "model.safetensors",
        "preprocessor_config.json",
    ):  # fmt: skip
        (output_dir / name).unlink(missing_ok=True)


def _load(options: Options) -> SpeechEncoder:
    model = options.model
    return load_encoder(
        model.model_name_or_path,
        revision=model.model_revision,
        token=options.training.hub_token,
        training_config={**TRAINING_CONFIG, **model.dropouts()},
        do_normalize=model.do_normalize,
    )


def _load_pairs(options: Options):
    data, args = options.data, options.training
    perturbation = build_perturbation(
        {"name": "speed_pitch", "speed_factors": data.speed_factors, "pitch_steps": data.pitch_steps}
    )

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
            perturbation, args.seed, SAMPLE_RATE, data.min_seconds, data.max_seconds, decode, perturb=in_workers
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
    if streaming:
        if data.max_train_samples is not None:
            speech = speech.take(data.max_train_samples)
        train = EpochStream(
            speech, train_transform, args.seed, data.shuffle_buffer, args.process_index, args.world_size
        )
    else:
        if data.max_train_samples is not None:
            speech = speech.select(range(min(data.max_train_samples, len(speech))))
        train = with_pairs(speech, train_transform)
    held_out = None
    if not data.eval_data:
        args.eval_on_start = False
    else:
        held_out = _load_held_out(data, args.hub_token)
        # A transform of its own: its epoch stays 0, so that held-out pairs look the same at every step.
        held_out = with_pairs(held_out, transform())
        args.eval_strategy = "steps"
    return train, held_out, train_transform.set_epoch, None if in_workers else perturbation


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
    if data.max_eval_samples is not None and data.max_eval_samples < len(speech):
        # The first ones would be one speaker.
        picks = torch.linspace(0, len(speech) - 1, data.max_eval_samples).long().tolist()
        speech = speech.select(picks)
    return speech


def _record(
    options: Options,
    trainer: LaserTrainer,
    encoder: SpeechEncoder,
    trainable: list[str],
    train,
    skipped: dict[str, Any],
    own_state: dict[str, Any],
) -> dict[str, Any]:
    args, state = options.training, trainer.state
    model = options.model
    local = Path(model.model_name_or_path).exists()
    return {
        "method": "laser",
        "preset": options.preset,
        "base_model": {
            "name": Path(model.model_name_or_path).name if local else model.model_name_or_path,
            "local": local,
            "revision": encoder.revision,
            "model_type": encoder.config.model_type,
            "parameters": sum(p.numel() for p in encoder.parameters()),
        },
        "recipe": options.recipe(),
        "trained_parameters": trainable,
        "data": {
            "source": portable(options.data.train_data),
            "name": options.data.train_name,
            "split": options.data.train_split,
            "utterances": len(train) if hasattr(train, "__len__") else None,
            "skipped": skipped["train"],
            "held_out": portable(options.data.eval_data),
            "held_out_skipped": skipped["held_out"],
        },
        "seed": args.seed,
        "updates": state.global_step,
        "processed_hours": own_state["processed_seconds"] / 3600,
        "wall_time_seconds": round(own_state["trained_seconds"], 1),
        "processes": args.world_size,
        "precision": precision(args),
        "collapse": {"fired_at": trainer.monitor.fired_at, "start": trainer.monitor.start},
        "first": _summary(state.log_history, first=True),
        "last": _summary(state.log_history, first=False),
        "sample_features": sample_features(encoder.model, model.do_normalize),
        **provenance(),
    }


def _summary(history: list[dict[str, Any]], first: bool) -> dict[str, Any]:
    """First or last value of every logged quantity, with its step."""
    summary: dict[str, Any] = {}
    for entry in history if not first else reversed(history):
        summary.update(
            {
                key: {"step": entry["step"], "value": value}
                for key, value in entry.items()
                if key not in ("step", "epoch") and not key.startswith("train_") and key != "total_flos"
            }
        )
    return summary


@torch.no_grad()
def _draw(options: Options, trainer: LaserTrainer, encoder: SpeechEncoder, pairs, output_dir: Path) -> None:
    # Imported here: matplotlib takes a second that --help and failing runs need not wait for.
    from ..plots import plot_alignment, plot_training

    folder = output_dir / "plots"
    folder.mkdir(exist_ok=True)
    name = Path(options.model.model_name_or_path).name
    plot_training({"LASER": trainer.state.log_history}, folder / "loss_terms.png", f"LASER on {name}")
    plot_probe(trainer.state.log_history, folder / "probe.png", f"LASER on {name}, last layer")
    pair = next((item for item in pairs if not item["skip"]), None)
    if pair is None:
        return
    if pair["perturbed"] is None:
        (pair,) = perturb_pairs([pair], trainer.perturbation)
    alignments = {}
    for when, model in (("before", _load(options)), ("after", encoder)):
        model = model.cpu().eval()
        views = []
        for view in ("clean", "perturbed"):
            waveform = pair[view][None]
            frames = model(waveform, torch.tensor([waveform.shape[1]])).frames
            views.append(torch.nn.functional.normalize(frames, dim=-1))
        alignments[when] = soft_dtw_alignment(*views, gamma=options.objective.gamma)[0]
    stride = 1
    for factor in encoder.config.conv_stride:
        stride *= factor
    # A whole utterance would be a hairline.
    alignments = {when: alignment[:200, :200] for when, alignment in alignments.items()}
    plot_alignment(
        alignments,
        folder / "alignment.png",
        stride / SAMPLE_RATE,
        f"Soft-DTW alignment of {pair['id']}, last layer",
    )
