"""`LaserTrainer`: a Hugging Face Trainer whose loss is a mean over the pairs (or frames) of an optimiser step."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import TorchDynamoPlugin
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data import PairCollator, Perturbation, SkipLog
from ..encoders import SAMPLE_RATE, SpeechEncoder
from ..objectives import Objective
from ..records import read_json, write_json
from . import finite
from .arguments import LaserTrainingArguments
from .finite import NonFiniteLossError
from .held_out import HeldOutMeans
from .loaders import accumulation_steps, eval_loader, train_loader
from .micro_batches import cut_by_length, perturb_pairs, split_batch, to_device
from .model import AlignmentModel
from .monitor import CollapseMonitor
from .optimization import coupled_adam, linear_from_minimum
from .profile import UpdateProfile
from .sampling import PairBatchSampler, SecondsBatchSampler
from .views import drawn_sides, stack_views
from .window import LogWindow

logger = logging.getLogger(__name__)

STATE_NAME = "laser_state.json"


class LaserTrainer(Trainer):
    """Trains an `AlignmentModel` on pairs.

    The loss of an update is the mean over its pairs (over its frames, where the objective says so), whatever the
    micro-batch size and the number of processes.
    Named loss terms, speech processed, frames per second and collapse statistics go through the usual
    `log`, to whatever `report_to` names.

    Args:
        model: encoder and head.
        args: options; `gradient_accumulation_steps` is set from `pairs_per_update`.
        objective: `(x, lengths_x, y, lengths_y) -> {"total": (batch,), ...}`; its parameters, if any, are trained and
            kept in checkpoints with the model.
        train_dataset, eval_dataset: data sets of pairs, map-style or streaming (`laser_hf.data.with_pairs`).
        set_epoch: called with the epoch before each pass over a map-style training set.
        perturbation: makes the second view on the device, for pairs that come without it
            (`PairTransform(..., perturb=False)`).
        train_seconds: length of each training utterance, for `--seconds_per_update`.
        probe: measures the encoder at every evaluation, on the first process only (`EvalProbe`).
        callbacks: as for `Trainer`.
    """

    def __init__(
        self,
        model: AlignmentModel,
        args: LaserTrainingArguments,
        objective: Objective,
        train_dataset,
        eval_dataset=None,
        set_epoch: Callable[[int], None] | None = None,
        perturbation: Perturbation | None = None,
        train_seconds: list[float] | None = None,
        probe: Callable[[SpeechEncoder], dict[str, float]] | None = None,
        callbacks: list | None = None,
    ):
        if args.n_gpu > 1:
            logger.warning("%d GPUs are visible; start with `accelerate launch` to use more than one", args.n_gpu)
            args._n_gpu = 1
        args.gradient_accumulation_steps = accumulation_steps(args)
        if perturbation is not None and not perturbation.batched:
            perturbation.apply_batch([], [])  # its own error says what is missing
        # Part of the model: its parameters go to the device, the optimiser, the checkpoints and DDP.
        model.objective = objective
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        if args.torch_compile:
            model.compile_layers(args.torch_compile_backend, args.torch_compile_mode)
        # compute_loss divides by the pairs (or frames) of the whole update.
        self.loss_is_scaled_for_ga = True
        self.skip_log, self.eval_skip_log = SkipLog(), SkipLog()
        self.monitor = CollapseMonitor(args.collapse_cosine_fraction, args.collapse_rank_fraction)
        self.window = LogWindow(objective.term_names, self._sum_over_processes, args.device)
        self.perturbation = perturbation
        self.probe = probe
        self.profile = UpdateProfile(args.profile_updates, args.device)
        self.add_callback(self.profile)
        self._set_pair_epoch = set_epoch
        self._train_seconds = train_seconds
        self._sampler: PairBatchSampler | SecondsBatchSampler | None = None
        self._totals: list[tuple[list[str], torch.Tensor]] = []  # of the micro-batches of this update

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self.model.objective

    def _build_accelerator_args(self, **kwargs):
        # Compiled as a whole, the model would be compiled anew for every set of lengths; see compile_layers.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    # ---- optimiser ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`; Adam with L2 regularisation of all parameters if asked for."""
        if self.optimizer is None and self.args.coupled_weight_decay:
            self.optimizer = coupled_adam(model or self.model, self.args)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """As `Trainer.create_scheduler`; the linear one starts and ends at `min_learning_rate`."""
        if self.lr_scheduler is None and self.args.min_learning_rate:
            self.lr_scheduler = linear_from_minimum(optimizer or self.optimizer, self.args, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches for this process; see `PairBatchSampler` and `SecondsBatchSampler`."""
        loader, self._sampler = train_loader(self.train_dataset, self.args, self._train_seconds)
        self.profile.workers = loader.num_workers
        return loader

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Held-out pairs in the order of the data set, shared among the processes."""
        return eval_loader(eval_dataset if eval_dataset is not None else self.eval_dataset, self.args)

    def _run_epoch(self, **kwargs):
        epoch = kwargs["epoch"]
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
        if self._set_pair_epoch is not None:
            self._set_pair_epoch(epoch)
        return super()._run_epoch(**kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one update, sorted by length, and how many pairs (or frames) all processes have."""
        self.objective.prepare_update()
        self.profile.begin()
        self._totals = []
        with self.profile.section("wait"):
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        for batch in batches:
            self.profile.add_batch(batch)
            self.skip_log.update(batch["skipped"])
        micro_batches = self._complete([to_device(batch, self.args.device) for batch in batches])
        self.profile.add_pairs(micro_batches)
        # Filled on the device: a copy from the CPU would wait for everything before it.
        units = torch.full((), sum(self._units(batch) for batch in batches), device=device)
        return micro_batches, self._sum_over_processes(units)

    def _units(self, batch: dict[str, Any]) -> int:
        """What the loss is a mean over: pairs, or frames of the clean views."""
        if self.objective.unit == "pairs" or not batch["ids"]:
            return len(batch["ids"])
        return int(self.model.encoder.frame_lengths(batch["clean_lengths"]).sum())

    def _complete(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As many micro-batches as there are batches, sorted by length, with both views."""
        missing = any(batch["perturbed"] is None for batch in batches)
        if len(batches) == 1 and not missing:
            return batches
        pairs = [pair for batch in batches for pair in split_batch(batch)]
        if missing:
            with self.profile.section("perturb"):
                pairs = perturb_pairs(pairs, self.perturbation)
        return cut_by_length(pairs, len(batches))

    def _prepare_inputs(self, inputs):
        return to_device(inputs, self.args.device)

    # ---- loss ----

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of one micro-batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.profile.stop("backward")
        if self.accelerator.sync_gradients:
            self.profile.start("optimizer")  # until the end of the step
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Share of this micro-batch in the mean loss over the pairs (or frames) of the update."""
        terms, output = self._pair_terms(model, inputs)
        total = terms["total"]
        self._totals.append((inputs["ids"], total.detach()))
        units = self._units(inputs)
        share = torch.as_tensor(units if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        # DDP averages the gradients over the processes, hence the factor.
        loss = total.sum() / share * self.args.world_size
        count = len(inputs["ids"])
        if count:
            lengths = torch.cat((inputs["clean_lengths"], inputs["perturbed_lengths"]))
            self.window.add(
                terms,
                units,
                frames=int(self.model.encoder.frame_lengths(lengths).sum()),
                samples=int(inputs["clean_lengths"].sum()),
                projected=output["projected"][:count],
                lengths=output["lengths"][:count],
            )
        self.profile.start("backward")
        return (loss, output) if return_outputs else loss

    def _pair_terms(self, model, inputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        count = len(inputs["ids"])
        if count == 0:
            return self._terms_of_nothing(model)
        waveforms, lengths = self._both_views(inputs)
        with self.profile.section("encode"):
            # As plain numbers: DDP would move a tensor to the device, where reading it means waiting.
            output = model(waveforms, lengths.tolist())
        (x, y), (m, n) = output["projected"].split(count), output["lengths"].split(count)
        frames = self.model.encoder.frame_lengths(lengths)
        longest_x, longest_y = (int(part.max()) for part in frames.split(count))
        with self.profile.section("loss"):
            terms = self.objective(x[:, :longest_x], m, y[:, :longest_y], n)
        return terms, output

    def _both_views(self, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms and lengths of both views; with a twin, first the side that is trained on."""
        swap = None
        if self.model.twin is not None:
            # Held-out pairs always look the same.
            swap = drawn_sides(self.args.seed, self.state.global_step if self.model.training else 0, inputs["ids"])
        return stack_views(inputs, swap)

    def _terms_of_nothing(self, model) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Every pair was skipped. The other processes still wait for this one's gradients, and for its part of a loss
        that is computed by all of them together."""
        silence = torch.zeros(2, SAMPLE_RATE // 10, device=self.args.device)
        output = model(silence, [silence.shape[1]] * 2)
        x, y = output["projected"].split(1)
        none = output["lengths"][:0]
        terms = self.objective(x[:0], none, y[:0], none)
        anchor = 0.0 * output["projected"].sum() + sum(0.0 * p.sum() for p in self.objective.parameters())
        return {name: value + anchor for name, value in terms.items()}, output

    def _stop_if_not_finite(self, gradient_norm: torch.Tensor | float) -> None:
        """Look at losses and gradient of the update, once: it is the only time that training waits for the device.

        Raises:
            NonFiniteLossError: the optimiser has not stepped yet; the state before this update is saved.
        """
        found = [torch.isfinite(total).all() for _, total in self._totals]
        if not self.args.fp16:  # there the gradient scaler skips such steps
            found.append(torch.isfinite(torch.as_tensor(gradient_norm, device=self.args.device)))
        bad = (~torch.stack(found).all()).to(torch.int64).reshape(1)
        if self._sum_over_processes(bad).item() == 0:
            return
        losses, ids, what = finite.culprits(self._totals, self.args.world_size)
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.state.global_step > 0 and not folder.exists():
            self._save_checkpoint(self.model, trial=None)
        if self.args.should_save:
            finite.report(Path(self.args.output_dir), self.state.global_step + 1, what, ids, losses)
        saved = f"the state before it is in {folder}" if folder.exists() else "no update had been made yet"
        raise NonFiniteLossError(
            f"non-finite {what} at step {self.state.global_step + 1} on the utterances {', '.join(ids)}; {saved}. "
            "Look at those files, lower the learning rate, or train without --bf16."
        )

    def _get_grad_norm(self, model, grad_norm=None):
        # The last call before the optimiser steps, with or without clipping.
        norm = super()._get_grad_norm(model, grad_norm)
        self._stop_if_not_finite(norm)
        return norm

    # ---- what is logged ----

    def _sum_over_processes(self, value: torch.Tensor) -> torch.Tensor:
        if self.args.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; lines with a training loss also carry the terms."""
        if "loss" in logs:
            logs = {**logs, **self.window.close()}
            if len(self.skip_log):
                logs["skipped"] = len(self.skip_log)
            if self.eval_dataset is None:
                self._watch(logs)
        super().log(logs, start_time)

    def _watch(self, statistics: dict[str, float], prefix: str = "") -> None:
        cosine, rank = statistics.get(f"{prefix}frame_cosine"), statistics.get(f"{prefix}effective_rank")
        if cosine is None or rank is None:
            return
        collapsing = self.monitor.check(self.state.global_step, cosine, rank)
        statistics[f"{prefix}collapse"] = int(collapsing)
        if collapsing and self.is_world_process_zero():
            logger.warning(
                "Collapse: %s at step %d. The frames are becoming alike; %slower --learning_rate.",
                self.monitor.reason,
                self.state.global_step,
                "raise --alpha or " if "idm" in self.objective.term_names else "",
            )

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Mean loss terms and collapse statistics of held-out pairs, whose perturbation never changes."""
        began = time.perf_counter()
        was_training = self.model.training
        self.model.eval()
        held_out = HeldOutMeans(self.objective.term_names, self.model.head.output_dim)
        for inputs in self.get_eval_dataloader(eval_dataset):
            self.eval_skip_log.update(inputs["skipped"])
            (inputs,) = self._complete([self._prepare_inputs(inputs)])
            count = len(inputs["ids"])
            if count == 0 and self.args.world_size == 1:
                continue  # among several processes a loss may be computed by all of them together
            with self.compute_loss_context_manager(), self.accelerator.autocast(), self._eager():
                terms, output = self._pair_terms(self.model, inputs)
            if count:
                held_out.add(terms, self._units(inputs), output["projected"][:count], output["lengths"][:count])
        self.model.train(was_training)
        means = held_out.gather(self._sum_over_processes, self.args.device, self.args.world_size)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self._watch(metrics, f"{metric_key_prefix}_")
        if self.probe is not None:
            if self.is_world_process_zero():
                with self._eager():
                    values = self.probe(self.model.encoder)
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
            self.accelerator.wait_for_everyone()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        # Evaluation is no training time, and no frame of it counts for the speed.
        self.window.leave_out(time.perf_counter() - began)
        return metrics

    def _eager(self):
        """Evaluation is too little to compile another variant of the layers for it."""
        compiled = self.args.torch_compile
        return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

    # ---- state ----

    def skipped_summary(self, held_out: bool = False) -> dict[str, Any]:
        """Utterances left out of training (or of evaluation) so far, over all processes."""
        own = self.eval_skip_log if held_out else self.skip_log
        if self.args.world_size == 1:
            return own.summary()
        gathered: list[Any] = [None] * self.args.world_size
        dist.all_gather_object(gathered, own.state_dict())
        together = SkipLog()
        for state in gathered:
            together.load_state_dict(state)
        return together.summary()

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self._save_own_state(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def own_state(self) -> dict[str, Any]:
        """What a resumed run must know besides the Trainer's own state."""
        processed, trained = self.window.seconds()
        return {
            "processed_seconds": processed,
            "trained_seconds": trained,
            "skipped": self.skip_log.state_dict(),
            "collapse_start": self.monitor.start,
            "collapse_fired_at": self.monitor.fired_at,
        }

    def _save_own_state(self, folder: Path) -> None:
        state = self.own_state()  # sums over the processes: every one of them has to come here
        if self.args.should_save and folder.is_dir():
            write_json(folder / STATE_NAME, state)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / STATE_NAME
        if not path.is_file():
            logger.warning("%s is missing; processed hours and skipped utterances count from zero", path)
            return
        state = read_json(path)
        self.window.processed_seconds = state["processed_seconds"]
        self.window.trained_seconds = state["trained_seconds"]
        self.skip_log.load_state_dict(state["skipped"])
        self.monitor.start = state["collapse_start"]
        self.monitor.fired_at = state["collapse_fired_at"]

    def _inner_training_loop(self, *args, **kwargs):
        self.window.restart()
        return super()._inner_training_loop(*args, **kwargs)
