"""`LaserTrainer`: a Hugging Face Trainer whose loss is a mean over the pairs (or frames) of an optimiser step."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..data import PairTransform, SkipLog
from ..encoders import SpeechEncoder, receptive_field
from ..errors import LaserError
from ..objectives import LaserLoss, Objective
from ..records import read_json, write_json
from ..runs import seal_checkpoint
from .arguments import LaserTrainingArguments
from .batches import check_views
from .callbacks import CollapseMonitor, UpdateProfiler
from .means import Means, TrainingWindow, from_all_processes
from .model import AlignmentModel
from .sampling import micro_batches
from .updates import NonFiniteLossError, UpdateTrainer, find_non_finite

logger = logging.getLogger(__name__)

STATE_NAME = "laser_state.json"
NON_FINITE_NAME = "non_finite.json"


class LaserTrainer(UpdateTrainer):
    """Trains an `AlignmentModel` on pairs of views.

    An item of the data loader is this process's share of one update. `training_step` cuts it into micro-batches. The
    loss of an update is the mean over its pairs (over its frames, where the objective says so), whatever the size of
    the micro-batches and the number of processes. Named loss terms, speech processed, frames per second and collapse
    statistics go through the usual `log`, to whatever `report_to` names.

    Args:
        model: encoder and head; the objective becomes a part of it. An objective that needs a twin adds one.
        args: options.
        train_dataset, eval_dataset: `PairDataset`, `PairStream` (for training), or any data set of such pairs. The
            Trainer calls `set_epoch` of the training set if there is one; its `perturbation` makes the perturbed views
            on the device where pairs come without.
        objective: the loss, `LaserLoss()` by default. Its parameters are trained and kept in checkpoints.
        evaluator: `evaluator(encoder) -> {name: value}`, such as `DiscriminationEvaluator`; called at every evaluation
            on the first process, logged as `eval_name`.
        callbacks: as for `Trainer`.

    Raises:
        LaserError: training data that do not fit the objective, or that cannot be shared among the processes.

    Example:
        >>> from transformers import set_seed
        >>> from laser_hf import LaserLoss
        >>> from laser_hf.data import PairDataset, PairTransform, SpeedPitch, load_speech
        >>> from laser_hf.encoders import TRAINING_CONFIG, load_encoder
        >>> from laser_hf.publishing import export_encoder
        >>> from laser_hf.training import AlignmentModel, LaserTrainer, LaserTrainingArguments
        >>>
        >>> set_seed(1337)
        >>> encoder = load_encoder("facebook/hubert-base-ls960", training_config=TRAINING_CONFIG)
        >>> encoder.freeze_except(2)  # train the top two layers
        >>> views = SpeedPitch(speed_factors=[0.9, 1.0, 1.1], pitch_steps=[-2.0, 2.0])
        >>> train = PairDataset(load_speech("LibriSpeech", "train-clean-100"), PairTransform(views, seed=1337))
        >>> held_out = PairDataset(load_speech("LibriSpeech", "dev-clean"), PairTransform(views, seed=1337))
        >>> args = LaserTrainingArguments("outputs/laser", max_steps=3600, pairs_per_update=8, eval_strategy="steps")
        >>> trainer = LaserTrainer(AlignmentModel(encoder), args, train, held_out, LaserLoss(alpha=0.4))
        >>> trainer.train()
        >>> export_encoder(encoder.model, encoder.base_config, "outputs/laser")  # for AutoModel.from_pretrained
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
        for dataset in (train_dataset, eval_dataset):
            if isinstance(getattr(dataset, "transform", None), PairTransform):
                dataset.transform.min_samples = receptive_field(model.encoder.config)
        self.micro_batches = micro_batches(args)
        if objective.needs_twin and model.twin is None:
            model.add_twin(getattr(objective, "twin_dropout", True))
        # Part of the model: its parameters go to the device, the optimiser, the checkpoints and DDP.
        model.objective = objective
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, callbacks=callbacks
        )
        if args.torch_compile:
            model.compile_layers(args.torch_compile_backend, args.torch_compile_mode)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the pairs (or frames) of the whole update
        self.evaluator = evaluator
        self.monitor = CollapseMonitor(
            args.collapse_cosine_fraction,
            args.collapse_rank_fraction,
            prefix="" if eval_dataset is None else "eval_",
            remedy=objective.anti_collapse,
        )
        # First, so that other callbacks see what it adds to the log.
        self.callback_handler.callbacks.insert(0, self.monitor)
        if args.profile_updates:
            self.add_callback(UpdateProfiler(args.profile_updates))
        self.skip_log, self.eval_skip_log = SkipLog(), SkipLog()
        self.window = TrainingWindow(objective.term_names, args.device)
        self.losses = []

    def _inner_training_loop(self, *args, **kwargs):
        self.window.restart()
        return super()._inner_training_loop(*args, **kwargs)

    def _get_grad_norm(self, model, grad_norm=None):
        # The Trainer's last call before the optimiser steps, with or without clipping.
        norm = super()._get_grad_norm(model, grad_norm)
        self._check_finite(norm)
        return norm

    def _check_finite(self, gradient_norm: torch.Tensor | float) -> None:
        """Check losses and gradient norm before the optimiser steps; one host sync per update.

        Raises:
            NonFiniteLossError: the optimiser has not stepped yet; the state before this update is saved.
        """
        # With fp16 the gradient scaler skips steps whose gradient is not finite.
        norm = None if self.args.fp16 else torch.as_tensor(gradient_norm, device=self.args.device)
        found = find_non_finite(self.losses, norm, self.args.device)
        if found is None:
            return
        what, ids, losses = found
        step, output_dir = self.state.global_step, Path(self.args.output_dir)
        folder = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step > 0 and not folder.exists():
            self._save_checkpoint(self.model, trial=None)
        if self.args.should_save:
            bad = {name: repr(value) for name, value in losses.items()}
            report = {"step": step + 1, "what": what, "utterances": ids, "losses": bad}
            write_json(output_dir / NON_FINITE_NAME, report)
        saved = f"the state before it is in {folder}" if step > 0 else "no update had been made yet"
        raise NonFiniteLossError(
            f"non-finite {what} at step {step + 1} on the utterances {', '.join(ids)}; {saved}. "
            "Look at those files, lower the learning rate, or train without --bf16."
        )

    # ---- what is logged ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`. In lines with a training loss, the loss and its terms are means over the same pairs."""
        if "loss" in logs:
            # The Trainer's own loss is a mean over updates.
            logs = {name: value for name, value in logs.items() if name != "loss"} | self.window.close()
            if len(self.skip_log):
                logs["skipped"] = len(self.skip_log)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Mean loss terms and collapse statistics of held-out pairs, and what the evaluator measures.

        Raises:
            LaserError: no held-out utterance can be used.
        """
        began = time.perf_counter()
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        was_training = self.model.training
        self.model.eval()
        means = Means(self.objective.term_names, self.args.device)
        for item in self.get_eval_dataloader(dataset):
            (batch,) = self._cut(item, dataset, 1, self.eval_skip_log)
            count = len(batch["ids"])
            if count == 0 and self.args.world_size == 1:
                continue  # several processes may compute a loss together
            with self.compute_loss_context_manager(), self.accelerator.autocast(), self._eager():
                terms, projected, frames = self._pair_terms(self.model, batch)
            if count:
                means.add(terms, self._units(batch), projected, frames[:count])
        self.model.train(was_training)
        means.draw()
        values = means.terms() | means.statistics()
        if "loss" not in values:
            raise LaserError("none of the held-out utterances could be used; the log has the reasons")
        if self.evaluator is not None:
            measured: dict[str, float] = {}
            if self.is_world_process_zero():
                with self._eager():
                    measured = self.evaluator(self.model.encoder)
            values |= from_all_processes(measured)[0]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        # Evaluation is no training time, and no frame of it counts for the speed.
        self.window.leave_out(time.perf_counter() - began)
        return metrics

    def _eager(self):
        """Without compilation: evaluation is too little to compile another variant of the layers for it."""
        compiled = self.args.torch_compile
        return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

    # ---- state ----

    def skipped_summary(self, held_out: bool = False) -> dict[str, Any]:
        """Utterances left out of training (or of evaluation) so far, over all processes, each of which calls it."""
        together = SkipLog()
        for state in from_all_processes((self.eval_skip_log if held_out else self.skip_log).state_dict()):
            together.load_state_dict(state)
        return together.summary()

    def own_state(self) -> dict[str, Any]:
        """What a resumed run must know besides the Trainer's own state; every process has to call it."""
        return {
            **self.window.state(),
            "skipped": self.skip_log.state_dict(),
            "collapse_start": self.monitor.start,
            "collapse_fired_at": self.monitor.fired_at,
        }

    def _save_checkpoint(self, model, trial):
        # Older checkpoints go only once the new one is sealed.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        state = self.own_state()
        self.accelerator.wait_for_everyone()  # every process has written its random states
        if self.args.should_save:
            write_json(folder / STATE_NAME, state)
            seal_checkpoint(folder)
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / STATE_NAME
        if not path.is_file():
            logger.warning("%s is missing; processed hours and skipped utterances count from zero", path)
            return
        state = read_json(path)
        self.window.load_state(state)
        self.skip_log.load_state_dict(state["skipped"])
        self.monitor.start, self.monitor.fired_at = state["collapse_start"], state["collapse_fired_at"]
