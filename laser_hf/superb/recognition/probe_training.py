"""`ProbeTrainer`: a Hugging Face Trainer for CTC probes on a frozen encoder."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...records import read_json, write_json
from .batches import UpdateSampler
from .corpus import Split, collate
from .ctc import ctc_losses
from .ctc_tasks import CtcTask, Decoded
from .featurizer import FrozenFeatures
from .probes import Probe, save_weights
from .recipe import Recipe

logger = logging.getLogger(__name__)

STATE_NAME = "probe_state.json"


class ProbeTrainer(Trainer):
    """Trains a `Probe`, decodes the dev split every `eval_steps` and keeps the best probe.

    Checkpoints hold the probe, not the encoder. An update is the same, up to rounding, whatever the number of processes
    and the micro-batch size.

    Args:
        probe: to be trained.
        features: frozen encoder; moved to the device of training.
        task: `AsrTask` or `PrTask`.
        recipe: values of the run.
        args: options of the Trainer; `gradient_accumulation_steps` is set here.
        train, dev: splits.
        micro_batch_size: utterances a process holds at once in training; `None` for whole batches.
        eval_batch_size: utterances decoded at once; padding changes nothing.
    """

    def __init__(
        self,
        probe: Probe,
        features: FrozenFeatures,
        task: CtcTask,
        recipe: Recipe,
        args: TrainingArguments,
        train: Split,
        dev: Split,
        micro_batch_size: int | None = None,
        eval_batch_size: int = 16,
    ):
        if args.n_gpu > 1:
            logger.warning("%d GPUs are visible; start with `accelerate launch` to use more than one", args.n_gpu)
            args._n_gpu = 1
        self.sampler = UpdateSampler(
            task.groups(train.samples, train.labels, recipe),
            recipe.max_steps,
            getattr(recipe, "batches_per_update", 1),
            micro_batch_size,
            args.world_size,
            args.process_index,
            args.seed,
        )
        args.gradient_accumulation_steps = self.sampler.micro_batches
        super().__init__(model=probe, args=args, data_collator=collate, train_dataset=train, eval_dataset=dev)
        # compute_loss weights every utterance by its share in the update.
        self.loss_is_scaled_for_ga = True
        self.features = features.to(args.device)
        self.task = task
        self.eval_batch_size = eval_batch_size
        self.best: dict[str, Any] = {"step": None, "value": task.first_best}
        self.not_finite = 0  # updates left out because their gradient was not finite
        self.trained_seconds = 0.0  # over all resumes
        self._since = time.perf_counter()

    # ---- data ----

    def _dataloader(self, split: Split, batches: Any, generator: torch.Generator | None = None) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            split,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            generator=generator,
        )

    def get_train_dataloader(self) -> DataLoader:
        """All micro-batches of the run for this process: see `UpdateSampler`."""
        return self._dataloader(self.train_dataset, self.sampler)

    # ---- loss ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Adam with torch's defaults besides the learning rate, as S3PRL has it."""
        if self.optimizer is None:
            parameters = (model if model is not None else self.model).parameters()
            self.optimizer = torch.optim.Adam(parameters, lr=self.args.learning_rate)
        return self.optimizer

    def _states(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if "states" in inputs:
            return inputs["states"], inputs["lengths"]
        return self.features(inputs["waveforms"], inputs["lengths"])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Share of this micro-batch in the loss of the update."""
        if not inputs["indices"]:
            # The other processes wait for this one's gradients.
            nothing = torch.zeros(self.features.layers, 1, 11, self.features.dim, device=self.args.device)
            return 0.0 * model(nothing, torch.tensor([11], device=self.args.device)).sum()
        states, frames = self._states(inputs)
        log_probs = model(states, frames)
        losses = ctc_losses(log_probs, frames, inputs["targets"], inputs["target_lengths"])
        # DDP averages the gradients over the processes, hence the factor.
        loss = (losses * inputs["weights"]).sum() * self.args.world_size
        return (loss, {"log_probs": log_probs, "frames": frames}) if return_outputs else loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if not torch.isfinite(torch.as_tensor(norm)):
            # As S3PRL does: no step. Adam passes over parameters without a gradient.
            self.not_finite += 1
            logger.warning("update %d left out: its gradient is not finite", self.state.global_step + 1)
            model.zero_grad(set_to_none=True)
        return norm

    # ---- decoding ----

    @torch.no_grad()
    def decode(self, split: Split, description: str = "decoding") -> tuple[list[Decoded], float]:
        """Greedy decoding of a split, shared among the processes; all of them return all of it.

        Returns:
            Utterances in the order of the split, and the mean of their losses.
        """
        order = sorted(range(len(split)), key=lambda index: -split.utterances[index].samples)
        own = order[self.args.process_index :: self.args.world_size]
        batches = [
            [(index, 1.0) for index in own[start : start + self.eval_batch_size]]
            for start in range(0, len(own), self.eval_batch_size)
        ]
        probe, training = self.model, self.model.training
        probe.eval()
        found: list[tuple[int, list[str], float]] = []
        # A generator of its own: a look at the dev split must not change what training draws.
        loader = self._dataloader(split, batches, torch.Generator())
        shown = self.args.process_index == 0 and not self.args.disable_tqdm
        for inputs in tqdm(loader, desc=description, disable=not shown, leave=False):
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                states, frames = self._states(inputs)
                log_probs = probe(states, frames)
            losses = ctc_losses(log_probs, frames, inputs["targets"], inputs["target_lengths"])
            paths = log_probs.argmax(-1).tolist()
            for index, path, count, loss in zip(
                inputs["indices"], paths, frames.tolist(), losses.tolist(), strict=True
            ):
                found.append((index, self.task.decode(path[:count]), loss))
        probe.train(training)
        if self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(gathered, found)
            found = [entry for part in gathered for entry in part]
        decoded = [
            Decoded(
                split.utterances[index].id,
                hypothesis,
                self.task.reference(split.utterances[index].target),
            )
            for index, hypothesis, _ in sorted(found)
        ]
        return decoded, sum(loss for _, _, loss in found) / len(found)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Error rates of the dev split in percent; keeps the probe if it is the best one so far."""
        decoded, loss = self.decode(eval_dataset or self.eval_dataset, "decoding dev")
        values = self.task.metrics(decoded)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {**values, "loss": loss}.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if values[self.task.primary] < self.best["value"]:
            self._keep(values)
        return metrics

    # ---- the best probe ----

    def _best_path(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"best-{step}.safetensors"

    def _keep(self, values: dict[str, float]) -> None:
        self.best = {"step": self.state.global_step, "value": values[self.task.primary]}
        if self.args.should_save:
            save_weights(self.model, self._best_path(self.best["step"]))

    def load_best(self) -> None:
        """Give the model the weights that did best on dev; the last ones if no probe was ever kept."""
        if self.best["step"] is None:
            logger.warning(
                "no dev %s was below %g at any look: the last update's probe is tested",
                self.task.primary,
                self.best["value"],
            )
            return
        self.model.load_state_dict(load_file(self._best_path(self.best["step"])))

    # ---- state ----

    def own_state(self) -> dict[str, Any]:
        """What a resumed run must know besides the Trainer's own state."""
        return {
            "best_step": self.best["step"],
            "best_value": self.best["value"],
            "not_finite": self.not_finite,
            "trained_seconds": self.trained_seconds + time.perf_counter() - self._since,
        }

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            write_json(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}" / STATE_NAME, self.own_state())
            # No checkpoint that is left refers to an earlier one.
            self.delete_best(but=self.best["step"])

    def delete_best(self, but: int | None = None) -> None:
        """Delete kept weights, save those of step `but`."""
        for path in Path(self.args.output_dir).glob("best-*.safetensors"):
            if but is None or path != self._best_path(but):
                path.unlink()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = read_json(Path(resume_from_checkpoint) / STATE_NAME)
        value = state["best_value"]  # JSON has no infinity
        self.best = {"step": state["best_step"], "value": self.task.first_best if value is None else value}
        self.not_finite = state["not_finite"]
        self.trained_seconds = state["trained_seconds"]

    def _inner_training_loop(self, *args, **kwargs):
        self._since = time.perf_counter()
        return super()._inner_training_loop(*args, **kwargs)
