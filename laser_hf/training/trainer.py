"""`LaserTrainer`: a Hugging Face Trainer whose loss is a mean over the pairs (or frames) of an optimiser step."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, rotate_checkpoints

from ..cli import Stopped
from ..console import LogLines
from ..data import PairTransform, SkipLog
from ..encoders import SpeechEncoder, receptive_field
from ..errors import LaserError
from ..objectives import LaserLoss, Objective
from ..records import read_json, write_json
from ..runs import RECIPE_NAME, WRITING, seal_checkpoint
from .arguments import LaserTrainingArguments
from .batches import check_views, memory_named
from .callbacks import CollapseMonitor, StopSignals, UpdateProfiler
from .means import Means, TrainingWindow, from_all_processes
from .model import AlignmentModel
from .sampling import eval_loader, micro_batches
from .updates import UpdateTrainer

logger = logging.getLogger(__name__)

STATE_NAME = "laser_state.json"


class LaserTrainer(UpdateTrainer):
    """Trains an `AlignmentModel` on pairs of views; `docs/training_in_python.md` has an example.

    The loss of an update is the mean over its pairs (over its frames, where the objective says so), whatever the size
    of the micro-batches and the number of processes. Loss terms, speed and collapse statistics go through `log`.

    Args:
        model: encoder and head; the objective becomes a part of it. An objective that needs a twin adds one.
        args: options.
        train_dataset, eval_dataset: `PairDataset`, `PairStream` (for training), or any data set of such pairs.
            `set_epoch` of the first, if any, is called; `perturbation` makes missing perturbed views on the device.
        objective: the loss, `LaserLoss()` by default. Its parameters are trained and kept in checkpoints.
        evaluator: `evaluator(encoder) -> {name: value}`, such as `DiscriminationEvaluator`; called at every evaluation
            on the first process, logged as `eval_name`.
        callbacks: as for `Trainer`.

    `train` takes SIGUSR1 and SIGTERM: it ends the update, saves a checkpoint and raises `laser_hf.cli.Stopped`.

    Raises:
        LaserError: training data that do not fit the objective, or that cannot be shared among the processes.
    """

    def __init__(
        self,
        model: AlignmentModel,
        args: LaserTrainingArguments,
        train_dataset=None,
        eval_dataset=None,
        objective: Objective | None = None,
        evaluator: Callable[[SpeechEncoder], dict[str, float]] | None = None,
        callbacks: list | None = None,
    ):
        if args.n_gpu > 1:
            logger.warning("%d GPUs are visible; start with `accelerate launch` to use more than one", args.n_gpu)
            args._n_gpu = 1
        objective = LaserLoss() if objective is None else objective
        check_views(train_dataset, objective)
        if eval_dataset is None:
            args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
        for dataset in (train_dataset, eval_dataset):
            if isinstance(getattr(dataset, "transform", None), PairTransform):
                dataset.transform.min_samples = receptive_field(model.encoder.config)
        self.micro_batches = micro_batches(args)
        if objective.needs_twin and model.twin is None:
            model.add_twin(getattr(objective, "twin_dropout", True))
        # Part of the model: its parameters go to the device, the optimiser, the checkpoints and DDP.
        self.objective = model.objective = objective
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, callbacks=callbacks)
        if args.torch_compile:
            model.compile_layers(args.torch_compile_backend, args.torch_compile_mode)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the pairs (or frames) of the whole update
        self.evaluator = evaluator
        limits = args.collapse_cosine_fraction, args.collapse_rank_fraction
        self.monitor = CollapseMonitor(*limits, "" if eval_dataset is None else "eval_", objective.anti_collapse)
        # First, so that other callbacks see what it adds to the log.
        self.callback_handler.callbacks.insert(0, self.monitor)
        LogLines.replace_bars(self, objective.log_labels())
        if args.profile_updates:
            self.add_callback(UpdateProfiler(args.profile_updates))
        self.stop = StopSignals()
        self.add_callback(self.stop)
        self.skip_log, self.eval_skip_log = SkipLog(), SkipLog()
        self.window = TrainingWindow(objective.term_names, args.device)
        self.losses = []
        self._window_name = f"window-{args.process_index}-of-{args.world_size}.pt"  # in a checkpoint

    def _inner_training_loop(self, *args, **kwargs):
        checkpoint = kwargs.get("resume_from_checkpoint")
        if not checkpoint:
            self.window.restart()
        self.resumed_at = read_json(Path(checkpoint) / TRAINER_STATE_NAME)["global_step"] if checkpoint else 0
        with self.stop.noticed():
            output = super()._inner_training_loop(*args, **kwargs)
        if self.stop.agreed and self.state.global_step < self.state.max_steps:
            raise Stopped(f"stopped after update {self.state.global_step} by {self.stop.asked or 'another process'}")
        return output

    def check_end(self) -> None:
        """`LaserError` on no usable utterance, too few updates or weights not finite; every process has to call it."""
        self._check_used()
        if (made := self.state.global_step) < self.args.max_steps:
            raise LaserError(f"training ended after {made} of --max_steps {self.args.max_steps}; start again to go on")
        self._check_weights()

    def _check_used(self) -> None:
        if not self.own_state()["processed_seconds"]:
            found = self.skipped(self.skip_log).summary()
            these = f"the {found['utterances']} utterances that came up in {self.state.global_step} updates"
            why = f"({found['by_kind']}); the log has the reasons"
            raise LaserError(f"nothing is trained: none of {these} can be used {why}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`. In lines with a training loss, the loss and its terms are means over the same pairs."""
        if "loss" in logs:
            # The Trainer's own loss is a mean over updates.
            logs = {name: value for name, value in logs.items() if name != "loss"} | self.window.close()
            if skipped := self.skipped(self.skip_log).summary()["utterances"]:
                logs["skipped"] = skipped
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss terms and collapse statistics of held-out pairs (`LaserError` if none is usable); the evaluator's."""
        began = time.perf_counter()
        # Evaluation is too little for compilation.
        with torch.compiler.set_stance("force_eager") if self.args.torch_compile else contextlib.nullcontext():
            values = self._measure(self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.window.began += time.perf_counter() - began  # it was no training time
        return metrics

    def _measure(self, dataset) -> dict[str, float]:
        was_training = self.model.training
        self.model.eval()
        means = Means(self.objective.term_names, self.args.device)
        for item in eval_loader(dataset, self.args, together=self.objective.unit == "frames"):
            (batch,) = self._cut(item, dataset, 1, self.eval_skip_log)
            count = len(batch["ids"])
            if count == 0 and self.args.world_size == 1:
                continue  # several processes may compute a loss together
            named = memory_named(batch, self.model.encoder.config, self.args.device)
            with self.compute_loss_context_manager(), self.accelerator.autocast(), named:
                terms, projected, frames = self._pair_terms(self.model, batch)
            if count:
                means.add(terms, self._units(batch), projected, frames[:count])
        self.model.train(was_training)
        means.draw()
        values = means.terms() | means.statistics()
        if "loss" not in values:
            raise LaserError("none of the held-out utterances could be used; the log has the reasons")
        evaluates = self.evaluator is not None and self.is_world_process_zero()
        return values | from_all_processes(self.evaluator(self.model.encoder) if evaluates else {})[0]

    def skipped(self, log: SkipLog) -> SkipLog:
        """`skip_log` or `eval_skip_log` over all processes, each of which has to call it."""
        together = SkipLog()
        for state in from_all_processes(log.state_dict()):
            together.load_state_dict(state)
        return together

    def own_state(self) -> dict[str, Any]:
        """What a resumed run must know besides the Trainer's own state; every process has to call it."""
        logs = {"skipped": self.skip_log, "held_out_skipped": self.eval_skip_log}
        collapse = {"collapse_start": self.monitor.start, "collapse_fired_at": self.monitor.fired_at}
        return self.window.state() | {name: self.skipped(log).state_dict() for name, log in logs.items()} | collapse

    def _save_checkpoint(self, model, trial):
        self._check_weights()
        final = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = final.parent / WRITING / final.name  # older ones go only once it is complete
        output_dir, self.args.output_dir = self.args.output_dir, str(aside.parent)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = output_dir
        state = self.own_state()
        if not self.args.save_only_model:
            torch.save(self.window.partial(), aside / self._window_name)
        self.accelerator.wait_for_everyone()  # every process has written its random states
        if not self.args.should_save:
            return
        best = final.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if best == final or best.exists():
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
        write_json(aside / STATE_NAME, state)
        if (final.parent / RECIPE_NAME).is_file():
            shutil.copy(final.parent / RECIPE_NAME, aside)
        seal_checkpoint(aside, final)
        aside.parent.rmdir()
        rotate_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / STATE_NAME
        if not path.is_file():
            logger.warning("%s is missing; processed hours and skipped utterances count from zero", path)
            return
        state = read_json(path)
        self.window.load_state(state)
        if (partial := path.with_name(self._window_name)).is_file():
            self.window.load_partial(torch.load(partial, "cpu", weights_only=True))
        if self.args.process_index == 0:  # they are of all processes
            self.skip_log.load_state_dict(state["skipped"])
            self.eval_skip_log.load_state_dict(state["held_out_skipped"])
        self.monitor.start, self.monitor.fired_at = state["collapse_start"], state["collapse_fired_at"]

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        # The peak rate may be another one than that of the checkpoint; the place in the schedule stays.
        for index, group in enumerate(self.optimizer.param_groups if checkpoint else ()):
            change = self.args.learning_rate / group["initial_lr"]
            if change != 1 and hasattr(self.lr_scheduler, "base_lrs"):
                group["lr"], group["initial_lr"] = group["lr"] * change, self.args.learning_rate
                self.lr_scheduler.base_lrs[index] = self.args.learning_rate
                self.lr_scheduler._last_lr[index] = group["lr"]
