"""One training run: load, train, export, record, draw."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils import logging as transformers_logging

from ..cpu import keep_freed_memory
from ..encoders import TRAINING_CONFIG, SpeechEncoder, load_encoder
from ..objectives import OBJECTIVES, Objective
from ..publishing import export_encoder
from ..records import write_json
from .arguments import ObjectiveArguments
from .finite import NonFiniteLossError
from .model import AlignmentModel
from .options import Options
from .output_folder import HISTORY_NAME, RECORD_NAME, RunError, prepare_output_dir
from .probe import load_eval_probe
from .run_record import run_record
from .speech_pairs import load_pairs
from .trainer import LaserTrainer

logger = logging.getLogger(__name__)


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
    model = AlignmentModel(
        encoder,
        options.model.projection_dim,
        options.model.projection_layers,
        twin=_load(options) if options.objective.objective == "score" else None,
        twin_dropout=options.objective.twin_dropout,
    )
    pairs = load_pairs(options.data, args)
    trainer = LaserTrainer(
        model=model,
        args=args,
        objective=build_objective(options.objective, options.model.projection_dim),
        train_dataset=pairs.train,
        eval_dataset=pairs.held_out,
        set_epoch=pairs.transform.set_epoch,
        perturbation=pairs.perturbation,
        train_seconds=pairs.seconds,
        probe=load_eval_probe(options.data),
    )
    logger.info(
        "%s on %s: %s of %s parameters trained; %s an update = %d process(es) x %d micro-batch(es)",
        options.objective.objective,
        options.model.model_name_or_path,
        f"{sum(p.numel() for p in encoder.parameters() if p.requires_grad):,}",
        f"{sum(p.numel() for p in encoder.parameters()):,}",
        f"{args.seconds_per_update:g} s" if args.seconds_per_update else f"{args.pairs_per_update} pairs",
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
        record = run_record(options, trainer, encoder, trainable, pairs, skipped, state)
        export_encoder(encoder.model, encoder.base_config, output_dir, options.model.do_normalize)
        write_json(output_dir / HISTORY_NAME, {"log": trainer.state.log_history})
        if args.plots:
            # Imported here: matplotlib takes a second that --help and failing runs need not wait for.
            from .pictures import draw_finished_run

            draw_finished_run(options, trainer, _load(options), record, output_dir / "plots")
        # Last: its presence says that the run is complete.
        write_json(output_dir / RECORD_NAME, record)
        logger.info("Encoder, %s and plots are in %s", RECORD_NAME, output_dir)
    trainer.accelerator.wait_for_everyone()
    if args.publish and trainer.is_world_process_zero():
        _publish(options, output_dir)
    return record


def build_objective(options: ObjectiveArguments, dim: int) -> Objective:
    """The loss that `--objective` names, on projected frames of dimension `dim`."""
    values = options.used()
    return OBJECTIVES[values.pop("name")].build(dim, **values)


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


def _load(options: Options) -> SpeechEncoder:
    """The encoder with its initial weights and the training-time configuration."""
    model = options.model
    return load_encoder(
        model.model_name_or_path,
        revision=model.model_revision,
        token=options.training.hub_token,
        training_config={**TRAINING_CONFIG, **model.dropouts()},
        do_normalize=model.do_normalize,
    )
