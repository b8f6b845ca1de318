"""`CtcTrainer`: a Hugging Face Trainer for a CTC head on a frozen encoder."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from ...console import LogLines
from ...errors import LaserError
from ...runs import WRITING, find_fault, seal_checkpoint
from ..features import EncoderFeatures
from .data import Split, UpdateSampler, collate
from .heads import CtcHead, ctc_losses
from .task import CtcTask, Decoded, Recipe

logger = logging.getLogger(__name__)


class CtcTrainer(Trainer):
    """Trains a `CtcHead`, decodes the dev split every `eval_steps` and keeps the head that did best there.

    Checkpoints hold the head, not the encoder. An update is the same, up to rounding, whatever the number of processes
    and the micro-batch size.

    Args:
        features: of the encoder, which stays as it is; it is moved to the device of training.
        args: options of the Trainer; `gradient_accumulation_steps` is set here.
        micro_batch_size: utterances a process holds at once in training; `None` for whole batches.
    """

    def __init__(
        self,
        head: CtcHead,
        features: EncoderFeatures,
        task: CtcTask,
        recipe: Recipe,
        args: TrainingArguments,
        train: Split,
        dev: Split,
        micro_batch_size: int | None = None,
    ) -> None:
        if args.n_gpu > 1:
            logger.warning("%d GPUs are visible; start with `accelerate launch` to use more than one", args.n_gpu)
            args._n_gpu = 1
        groups = task.groups(train.samples, [len(one.target) for one in train.utterances], recipe)
        updates = (recipe.max_steps, getattr(recipe, "batches_per_update", 1))
        place = (args.world_size, args.process_index, args.seed)
        self.sampler = UpdateSampler(groups, *updates, micro_batch_size, *place)
        args.gradient_accumulation_steps = self.sampler.micro_batches
        super().__init__(model=head, args=args, data_collator=collate, train_dataset=train, eval_dataset=dev)
        self.loss_is_scaled_for_ga = True  # compute_loss weights every utterance by its share in the update
        LogLines.replace_bars(self, {name: name.upper() for name in ("per", "wer", "cer")}, "dev")
        self.features, self.task = features, task
        self.features.encoder.to(args.device)
        self._started = time.perf_counter()
        self._earlier: float | None = None

    def _dataloader(self, split: Split, batches: Any, generator: torch.Generator | None = None) -> DataLoader:
        how = {"num_workers": self.args.dataloader_num_workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(split, batch_sampler=batches, collate_fn=collate, generator=generator, **how)

    def get_train_dataloader(self) -> DataLoader:
        """All micro-batches of the run for this process: see `UpdateSampler`."""
        return self._dataloader(self.train_dataset, self.sampler)

    def _log_probs(self, model, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log probabilities, frames in use, losses."""
        states, frames = inputs.get("states"), inputs["lengths"]
        if states is None:
            states, frames = self.features.states(inputs["waveforms"], frames)
        log_probs = model(states, frames)
        return log_probs, frames, ctc_losses(log_probs, frames, inputs["targets"], inputs["target_lengths"])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Share of this micro-batch in the loss of the update."""
        if not inputs["indices"]:
            # The other processes wait for this one's gradients.
            nothing = torch.zeros(self.features.layers, 1, 11, self.features.dim, device=self.args.device)
            return 0.0 * model(nothing, torch.tensor([11], device=self.args.device)).sum()
        _, _, losses = self._log_probs(model, inputs)
        # DDP averages the gradients over the processes, hence the factor.
        return (losses * inputs["weights"]).sum() * self.args.world_size

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if not torch.isfinite(torch.as_tensor(norm)):
            # No step, as in S3PRL: Adam passes over parameters without a gradient.
            logger.warning("update %d left out: its gradient is not finite", self.state.global_step + 1)
            self.log({"left_out": 1})
            model.zero_grad(set_to_none=True)
        return norm

    def left_out(self) -> int:
        """Updates without a step because their gradient was not finite, over all starts."""
        return sum(entry.get("left_out", 0) for entry in self.state.log_history)

    @torch.no_grad()
    def decode(self, split: Split) -> tuple[list[Decoded], float]:
        """Utterances of a split decoded greedily, and the mean of their losses; alike on all processes."""
        samples = split.samples
        order = sorted(range(len(split)), key=lambda index: -samples[index])
        own = [(index, 1.0) for index in order[self.args.process_index :: self.args.world_size]]
        size = self.args.eval_batch_size
        batches = [own[start : start + size] for start in range(0, len(own), size)]
        self.model.eval()  # the Trainer's next update sets it to training again
        found: list[tuple[int, list[str], float]] = []
        # A generator of its own: decoding must not change what training draws.
        loader = self._dataloader(split, batches, torch.Generator())
        shown = self.args.process_index == 0 and not self.args.disable_tqdm
        for inputs in tqdm(loader, desc=f"decoding {split.name}", disable=not shown or None, leave=False):
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                log_probs, frames, losses = self._log_probs(self.model, inputs)
            paths = [p[:n] for p, n in zip(log_probs.argmax(-1).tolist(), frames.tolist(), strict=True)]
            found += zip(inputs["indices"], map(self.task.decode, paths), losses.tolist(), strict=True)
        found = sorted(gather_object(found))
        utterances = [(split.utterances[index], units) for index, units, _ in found]
        decoded = [Decoded(one.id, units, list(one.units)) for one, units in utterances]
        return decoded, sum(loss for _, _, loss in found) / len(found)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Error rates of the dev split in percent, and its loss, by which the Trainer keeps the best checkpoint."""
        if self.state.best_metric is None:
            self.state.best_metric = self.task.FIRST_BEST
        if self.left_out() == self.state.global_step:
            raise LaserError(f"no gradient of {self.left_out()} updates was finite: is the encoder?")
        decoded, loss = self.decode(self.eval_dataset)
        metrics = {f"eval_{name}": value for name, value in {**self.task.metrics(decoded), "loss": loss}.items()}
        self.log({**metrics, "trained_seconds": self.trained_seconds()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def load_best(self) -> dict[str, Any]:
        """Take the weights that did best on dev, or keep the last ones if no head was good enough.

        Returns for a record the head's `step` (`None` for the last) and the `rule` it was chosen by; raises
        `LaserError` if its checkpoint is damaged.
        """
        step, name = self.state.best_global_step, self.task.PRIMARY
        if step is None:
            logger.warning("no dev %s was below %s: the head of the last update is tested", name, self.task.FIRST_BEST)
            return {"step": None, "rule": "last update: no dev value was low enough to be kept"}
        checkpoint = self._best()
        if fault := find_fault(checkpoint):
            what = f"{checkpoint} holds the best head and is damaged ({fault})"
            raise LaserError(f"{what}; start over with --overwrite_output_dir")
        self.model.load_state_dict(load_file(checkpoint / SAFE_WEIGHTS_NAME))
        return {"step": step, "rule": f"lowest dev {name}, looked at every {self.args.eval_steps} updates"}

    def trained_seconds(self) -> float:
        """Seconds since the trainer was made, and those that the log knows of earlier starts."""
        if self._earlier is None:
            self._earlier = max((entry.get("trained_seconds", 0.0) for entry in self.state.log_history), default=0.0)
        return self._earlier + time.perf_counter() - self._started

    def _save_checkpoint(self, model, trial):
        """Write it aside, so that it appears whole or not at all, and older ones go only then."""
        folder, limit = self.args.output_dir, self.args.save_total_limit
        self.args.output_dir, self.args.save_total_limit = str(Path(folder) / WRITING), None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.save_total_limit = folder, limit
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            aside = Path(folder) / WRITING / name
            self.state.best_model_checkpoint = str(self._best()) if self.state.best_global_step else None
            self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
            seal_checkpoint(aside, Path(folder) / name)
            rotate_checkpoints(folder, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()  # load_best reads the seal

    def _best(self) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
