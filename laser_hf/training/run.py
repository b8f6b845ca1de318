"""One training run: load, train, export, record, draw."""

from __future__ import annotations

import logging
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..cli import program
from ..console import hide_bars, short
from ..cpu import keep_freed_memory
from ..encoders import TRAINING_CONFIG, SpeechEncoder, load_encoder
from ..errors import LaserError
from ..publishing import export_encoder, sample_features
from ..records import TRAINING_RECORD, new_record, plain, portable, read_json, tensors_digest, write_json
from ..runs import CONTENT, RECIPE_NAME, SEAL_NAME, RunFolder, differences, find_fault
from . import callbacks
from .arguments import PRECISIONS
from .closing import verdict
from .means import from_all_processes, from_first_process
from .model import AlignmentModel
from .options import Options
from .released import ReleasedModel
from .speech import load_evaluator, load_pairs, same_speech
from .trainer import LaserTrainer
from .updates import NON_FINITE_NAME

logger = logging.getLogger(__name__)

HISTORY_NAME = "training_log.json"
_OWNED = (
    "runs", "plots", "results", HISTORY_NAME, NON_FINITE_NAME, callbacks.PROFILE_NAME, callbacks.TRACE_NAME,
    "config.json", "model.safetensors", "preprocessor_config.json",
)  # fmt: skip
_CONTINUED = ("--bf16", "--fp16", "--learning_rate")
"""What may change where a run goes on from the checkpoint of another one."""


def run_training(options: Options) -> dict[str, Any]:
    """Train as `options` say and leave encoder, record and plots in `output_dir`; return the record.

    `LaserError` on options, data or a folder that cannot be used, on nothing to train on, and on a loss that is not
    finite (`NonFiniteLossError`), after the last finite state is saved.
    """
    hide_bars()
    args, output_dir = options.training, Path(options.training.output_dir)
    folder = RunFolder(args.output_dir, TRAINING_RECORD, owned=_OWNED)
    from_first_process(lambda: check_folder(folder, options))
    set_seed(args.seed)
    if args.device.type == "cpu":
        keep_freed_memory()
    chosen, config = options.model, {**TRAINING_CONFIG, **options.model.dropouts()}
    which = {"revision": chosen.model_revision, "token": args.hub_token, "do_normalize": chosen.do_normalize}
    encoder = load_encoder(chosen.model_name_or_path, training_config=config, **which)
    weights = {"model_name_or_path": tensors_digest(encoder.model.state_dict())}
    if args.publish:
        from_first_process(lambda: _check_publishing(options, encoder, weights))
    trainable = encoder.freeze_except(chosen.trainable_layers, chosen.train_encoder_layer_norm)
    objective = options.objective.plugin.build(chosen.projection_dim, **options.objective.values)
    # One process of each machine reads lengths and decodes; the others find the results in the cache.
    with args.main_process_first(desc="reading speech"):
        train, held_out = load_pairs(options)
    kind = ReleasedModel if args.released else AlignmentModel
    model = kind(encoder, chosen.projection_dim, chosen.projection_layers)
    trainer = LaserTrainer(model, args, train, held_out, objective, load_evaluator(options.data))
    content = same_speech(options, train)
    content[CONTENT] = weights | content[CONTENT]
    recipe, start = from_first_process(lambda: find_start(folder, options, content))
    checkpoint = start and str(output_dir / start)
    everything = short(sum(p.numel() for p in encoder.parameters()))
    trained = short(sum(p.numel() for p in encoder.parameters() if p.requires_grad))
    size = f"{args.seconds_per_update:g} s" if args.seconds_per_update else f"{args.pairs_per_update} pairs"
    logger.info(
        f"{objective.title or options.objective.name} on {chosen.model_name_or_path}: {trained} of {everything} "
        f"parameters trained, {args.max_steps} updates of {size} on {args.world_size} process(es)"
    )
    if checkpoint:
        if not all(have := from_all_processes((Path(checkpoint) / SEAL_NAME).is_file())):
            raise LaserError(
                f"process {have.index(False)} does not have {start}, which the first one resumes; give all of "
                "them one --output_dir on a shared file system, or copy it (--save_on_each_node keeps it on every node)"
            )
        logger.info("Resuming from %s", checkpoint)
        args.eval_on_start = False  # it is in the log already
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.wait_for_everyone()
    trainer.check_end()
    record = _make_record(options, recipe, trainer, encoder, trainable)
    if trainer.is_world_process_zero():
        export_encoder(encoder.model, encoder.base_config, output_dir, chosen.do_normalize)
        write_json(output_dir / HISTORY_NAME, {"log": trainer.state.log_history})
        if args.plots:
            # Imported here: matplotlib takes a second that failing runs need not wait for.
            from ..plots import draw_run

            draw_run(output_dir, record=record)
        folder.finish(record)
        print("", *(textwrap.fill(said, 110, subsequent_indent="  ") for said in verdict(record)), sep="\n", flush=True)
    trainer.accelerator.wait_for_everyone()
    if args.publish and trainer.is_world_process_zero():
        _publish(options, output_dir)
    return record


def check_folder(folder: RunFolder, options: Options) -> None:
    """Refuse a folder that cannot be used before anything is read."""
    args, data = options.training, options.data
    noise = next((c.values["noise_dir"] for c in options.perturbations if "noise_dir" in c.values), None)
    inputs = {"--model": options.model.model_name_or_path, "--train_data": data.train_data, "--noise_dir": noise}
    inputs |= {"--eval_data": data.eval_data, "--eval_alignments": data.eval_alignments}
    if args.overwrite_output_dir:
        inputs["--resume_from_checkpoint"] = args.resume_from_checkpoint
    folder.protect(inputs)
    folder.check(reopen=args.overwrite_output_dir)


def find_start(
    folder: RunFolder, options: Options, content: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], str | None]:
    """The run's recipe, for which the folder is prepared; and the checkpoint to resume from, `None` to begin.

    `content` are groups of the recipe that its options do not know. Of a checkpoint in the output folder it is the
    name, because every process has its own folder. `LaserError` if one of the two cannot be used (`RunFolder.prepare`).
    """
    args, recipe = options.training, plain({**options.recipe(), **content})
    asked = args.resume_from_checkpoint
    named = Path(asked) if asked and str(asked).lower() != "true" else None
    elsewhere = named is not None and named.resolve().parent != folder.path.resolve()
    if elsewhere:
        recipe["continued_from"] = portable(str(named))
    if elsewhere and folder.unfinished and not args.overwrite_output_dir:
        named = None  # the run has gone on from it already
    if named:
        _check_checkpoint(named, recipe)
    folder.prepare(recipe, args.overwrite_output_dir)
    found = named or folder.last_checkpoint()
    if args.save_only_model:
        logger.warning("--save_only_model: nothing to resume is kept; an interrupted run starts over")
    if found and not (found / "optimizer.pt").is_file():
        logger.warning("%s holds weights alone (--save_only_model): starting over", found)
        found = None
    if asked and found is None:
        raise LaserError(f"nothing to resume: there is no complete checkpoint in {folder.path}")
    return recipe, found and (str(found.resolve()) if named and elsewhere else found.name)


def _check_checkpoint(named: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is damaged, or of a run with another recipe than a run that goes on from it may have."""
    about = f"--resume_from_checkpoint {named}"
    if fault := find_fault(named):
        raise LaserError(f"{about} cannot be resumed: {fault}")
    if not (named / RECIPE_NAME).is_file():
        raise LaserError(f"{about} does not say which run it is of: it has no {RECIPE_NAME}")
    before = read_json(named / RECIPE_NAME)
    found = differences(before, {**recipe, "continued_from": before.get("continued_from")})
    if changed := [one for one in found if one.split()[0] not in _CONTINUED]:
        allowed = f"going on from it, only {', '.join(_CONTINUED)} may change"
        raise LaserError(f"{about} is of a run with another recipe ({'; '.join(changed)}); {allowed}")


def _make_record(
    options: Options, recipe: dict[str, Any], trainer: LaserTrainer, encoder: SpeechEncoder, trainable: list[str]
) -> dict[str, Any]:
    """The record of the finished run; it sums over the processes, so every one of them has to call it."""
    args, data = options.training, options.data
    own_state, history, train = trainer.own_state(), trainer.state.log_history, trainer.train_dataset
    return new_record(
        "training",
        recipe={name: group for name, group in recipe.items() if name != "continued_from"},
        data={
            "source": data.train_data,
            "local": Path(data.train_data).exists(),
            "name": data.train_name,
            "split": data.train_split,
            "utterances": len(train) if hasattr(train, "__len__") else None,
            "left_out": getattr(train, "left_out", {}),
            "skipped": trainer.skipped(trainer.skip_log).summary(),
            "held_out": data.eval_data,
            "held_out_name": data.eval_name,
            "held_out_split": data.eval_split,
            "held_out_utterances": None if trainer.eval_dataset is None else len(trainer.eval_dataset),
            "held_out_skipped": trainer.skipped(trainer.eval_skip_log).summary(),
        },
        seed=args.seed,
        wall_seconds=own_state["trained_seconds"],
        method=options.objective.name,
        preset=options.preset,
        changed_from_preset=options.changed,
        base_model=_base_model(options, encoder),
        trained_parameters=trainable,
        updates=trainer.state.global_step,
        processed_hours=own_state["processed_seconds"] / 3600,
        processes=args.world_size,
        precision=PRECISIONS[args.mixed_precision],
        perturbed_on=data.perturb_on,
        continued_from=recipe.get("continued_from"),
        collapse={"fired_at": trainer.monitor.fired_at, "start": trainer.monitor.start},
        first=_summary(reversed(history)),
        last=_summary(history),
        sample_features=sample_features(encoder.model, options.model.do_normalize),
        weights_sha256=tensors_digest(encoder.model.state_dict()),
    )


def _summary(history) -> dict[str, Any]:
    """The last value of every logged quantity in the order of `history`, with its step."""
    logged = ((key, value, entry["step"]) for entry in history for key, value in entry.items())
    left_out = ("step", "epoch", "total_flos", "train_")
    return {key: {"step": step, "value": value} for key, value, step in logged if not key.startswith(left_out)}


def _base_model(options: Options, encoder: SpeechEncoder) -> dict[str, Any]:
    """The base model as records name it."""
    path = Path(options.model.model_name_or_path)
    return {
        "name": path.name if path.exists() else options.model.model_name_or_path,
        "local": path.exists(),
        "revision": encoder.revision,
        "model_type": encoder.config.model_type,
        "parameters": sum(p.numel() for p in encoder.parameters()),
    }


def _push_command(options: Options) -> list[str]:
    """What publishes the run, without the token."""
    args = options.training
    more = ["--private"] if args.hub_private_repo else []
    more += ["--facts", args.hub_facts] if args.hub_facts else []
    return [args.output_dir, "--repo_id", args.hub_model_id, *more, "--allow_unevaluated", "--yes"]


def _check_publishing(options: Options, encoder: SpeechEncoder, weights: Mapping[str, str]) -> None:
    """Before anything is trained: whether the run could be published at its end; `LaserError` says what is missing."""
    from ..publishing.push import check_beforehand

    token = ["--token", options.training.hub_token] if options.training.hub_token else []
    record = {
        "method": options.objective.name,
        "base_model": _base_model(options, encoder),
        "data": {"source": portable(options.data.train_data)},
        "recipe": {**options.recipe(), CONTENT: weights},
    }
    try:
        check_beforehand([*_push_command(options), *token], record)
    except LaserError as error:
        raise LaserError(f"nothing was trained, because --push_to_hub could not publish it: {error}") from error


def _publish(options: Options, output_dir: Path) -> None:
    """Upload the finished run; an error says that it is complete all the same, and how to go on."""
    from ..publishing.push import main as push

    args, command = options.training, _push_command(options)
    try:
        push([*command, "--token", args.hub_token] if args.hub_token else command)
    except (LaserError, OSError, KeyboardInterrupt) as error:
        why, later = str(error) or "interrupted", f"{program()} {shlex.join(['push', *command])}"
        what = f"the run is complete in {output_dir}, but it was not published: {why}"
        raise LaserError(f"{what}. To publish it later: {later}") from error
