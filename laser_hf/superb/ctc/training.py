"""`CtcTrainer`: a Hugging Face Trainer for CTC heads on a frozen encoder."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ...console import LogLines
from ...errors import LaserError
from ...records import read_json
from ...runs import WRITING, seal_checkpoint
from .data import Split, UpdateSampler, collate
from .heads import CtcHead, Heads, ctc_losses
from .task import Decoded

if TYPE_CHECKING:
    from .run import Command

logger = logging.getLogger(__name__)

BEST_NAME = "best_heads.pt"


class CtcTrainer(Trainer):
    """Trains heads, decodes the dev split every `eval_steps` and keeps of each head the weights that did best there.

    Each batch is encoded once, and every head gets what it gets alone, to the same bits on a CPU: its gradients are
    clipped by their own norm, and what it draws in an update follows from its seed, the update and the utterances.
    Checkpoints hold the heads, not the encoder. An update is the same, up to rounding, whatever the number of processes
    and the micro-batch size.

    `command` has the options of the Trainer, `args`, whose seed orders the batches; its encoder moves to their device.
    `heads` are by (seed, learning rate).
    """

    def __init__(self, command: Command, heads: Mapping[tuple[int, float], CtcHead]) -> None:
        self.features, self.task, args, recipe = command.features, command.task, command.args, command.recipe
        train, dev, *_ = command.splits
        if args.n_gpu > 1:
            logger.warning("%d GPUs are visible; start with `accelerate launch` to use more than one", args.n_gpu)
            args._n_gpu = 1
        groups = self.task.groups(train.samples, [len(one.target) for one in train.utterances], recipe)
        updates = (recipe.max_steps, getattr(recipe, "batches_per_update", 1), command.arguments.micro_batch_size)
        self.sampler = UpdateSampler(groups, *updates, args.world_size, args.process_index, args.seed)
        args.gradient_accumulation_steps = self.sampler.micro_batches
        self.runs, self.heads = list(heads), list(heads.values())
        # What a log says of one head of several ends in its number.
        self.marks = [f"/{number}" for number in range(len(heads))] if len(heads) > 1 else [""]
        limit = math.inf if self.task.FIRST_BEST is None else self.task.FIRST_BEST
        # The best weights of each head so far, after the update `step`; without a step none was below the value.
        self.best: list[dict[str, Any]] = [{"value": limit, "step": None, "weights": None} for _ in heads]
        model = Heads(self.heads)
        super().__init__(model=model, args=args, data_collator=collate, train_dataset=train, eval_dataset=dev)
        self.loss_is_scaled_for_ga = True  # compute_loss weights every utterance by its share in the update
        LogLines.replace_bars(self, {name: name.upper() for name in ("per", "wer", "cer")}, "dev")
        self.features.encoder.to(args.device)
        self._sums = torch.zeros(len(heads), device=args.device)  # of losses since the last log line
        self._started, self.earlier_seconds = time.perf_counter(), 0.0  # of training, by the log of earlier starts

    def create_optimizer(self, model=None):
        """Adam, which is AdamW without weight decay, with torch's defaults as in S3PRL; a group for each head."""
        heads = zip(self.runs, self.heads, strict=True)
        groups = [{"params": [*head.parameters()], "lr": rate} for (_, rate), head in heads]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer

    def _dataloader(self, split: Split, batches: Any, generator: torch.Generator | None = None) -> DataLoader:
        how = {"num_workers": self.args.dataloader_num_workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(split, batch_sampler=batches, collate_fn=collate, generator=generator, **how)

    def get_train_dataloader(self) -> DataLoader:
        """All micro-batches of the run for this process: see `UpdateSampler`."""
        return self._dataloader(self.train_dataset, self.sampler)

    def _log_probs(self, model, inputs: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each head: log probabilities, frames in use, losses."""
        states, frames = inputs.get("states"), inputs["lengths"]
        if states is None:
            states, frames = self.features.states(inputs["waveforms"], frames)
        seeds = None
        if model.training:
            place = [self.state.global_step, inputs["indices"]]
            seeds = [int(sha256(json.dumps([seed, *place]).encode()).hexdigest()[:12], 16) for seed, _ in self.runs]
        used, targets = frames // self.heads[0].stack, (inputs["targets"], inputs["target_lengths"])
        return [(one, used, ctc_losses(one, used, *targets)) for one in model(states, frames, seeds)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Share of this micro-batch in the losses of the update, added over heads: their gradients do not meet."""
        if not inputs["indices"]:  # the other processes wait for this one's gradients
            nothing = torch.zeros(self.features.layers, 1, 20, self.features.dim, device=self.args.device)
            return 0.0 * sum(found.sum() for found in model(nothing, torch.tensor([20], device=self.args.device)))
        # DDP averages the gradients over the processes, hence the factor.
        parts = [(losses * inputs["weights"]).sum() for _, _, losses in self._log_probs(model, inputs)]
        parts = torch.stack(parts) * self.args.world_size
        self._sums += parts.detach()
        return parts.sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Of several heads, the loss of each as well."""
        if "loss" in logs:
            before = max((entry["step"] for entry in self.state.log_history if "loss" in entry), default=0)
            means = self.accelerator.reduce(self._sums, "mean") / (self.state.global_step - before)
            logs |= {f"loss{mark}": mean for mark, mean in zip(self.marks, means.tolist(), strict=True) if mark}
            self._sums.zero_()
        super().log(logs, start_time)

    def history(self, number: int) -> list[dict[str, Any]]:
        """The log of one head, without what is said of the others."""
        mark = self.marks[number]
        return [
            {name.removesuffix(mark): value for name, value in entry.items() if name.endswith(mark) or "/" not in name}
            for entry in self.state.log_history
        ]

    def _clip_grad_norm(self, model):
        norms = [nn.utils.clip_grad_norm_(head.parameters(), self.args.max_grad_norm) for head in self.heads]
        for mark, head, norm in zip(self.marks, self.heads, norms, strict=True):
            if norm.isnan():
                # As in S3PRL, which steps for an infinite norm. Adam passes over parameters without a gradient.
                logger.warning("update %d left out: its gradient is not a number", self.state.global_step + 1)
                self.log({f"left_out{mark}": 1})
                head.zero_grad(set_to_none=True)
        return torch.stack(norms).max()

    def left_out(self, number: int) -> int:
        """Updates without a step of a head because their gradient was not a number, over all starts."""
        return sum(entry.get("left_out", 0) for entry in self.history(number))

    @torch.no_grad()
    def decode(self, split: Split) -> list[tuple[list[Decoded], float]]:
        """By head, utterances of a split decoded greedily and the mean of their losses; alike on all processes."""
        samples = split.samples
        order = sorted(range(len(split)), key=lambda index: -samples[index])
        own = [(index, 1.0) for index in order[self.args.process_index :: self.args.world_size]]
        size = self.args.eval_batch_size
        batches = [own[start : start + size] for start in range(0, len(own), size)]
        self.model.eval()  # the Trainer's next update sets it to training again
        found: list[tuple[int, int, list[str], float]] = []
        loader = self._dataloader(split, batches, torch.Generator())  # its own, so as not to change what training draws
        shown = self.args.process_index == 0 and not self.args.disable_tqdm
        for inputs in tqdm(loader, desc=f"decoding {split.name}", disable=not shown or None, leave=False):
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                heads = self._log_probs(self.model, inputs)
            for number, (log_probs, frames, losses) in enumerate(heads):
                paths = [p[:n] for p, n in zip(log_probs.argmax(-1).tolist(), frames.tolist(), strict=True)]
                units, numbers = map(self.task.decode, paths), [number] * len(paths)
                found += zip(numbers, inputs["indices"], units, losses.tolist(), strict=True)
        found = sorted(gather_object(found))
        by_head = []
        for number in range(len(self.heads)):
            own = [(split.utterances[index], *entry) for which, index, *entry in found if which == number]
            decoded = [Decoded(one.id, units, list(one.units)) for one, units, _ in own]
            by_head.append((decoded, sum(loss for *_, loss in own) / len(own)))
        return by_head

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Error rates of the dev split in percent, and its loss, by head; the weights of the best are kept."""
        step, metrics = self.state.global_step, {}
        for number, (decoded, loss) in enumerate(self.decode(self.eval_dataset)):
            if self.left_out(number) == step:
                raise LaserError(f"no gradient of {step} updates was a number: is the encoder finite?")
            values = self.task.metrics(decoded) | {"loss": loss}
            metrics |= {f"eval_{name}{self.marks[number]}": one for name, one in values.items()}
            if (value := values[self.task.PRIMARY]) < self.best[number]["value"]:
                weights = {name: weight.cpu().clone() for name, weight in self.heads[number].state_dict().items()}
                self.best[number] = {"value": value, "step": step, "weights": weights}
        self.log({**metrics, "trained_seconds": self.trained_seconds()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def load_best(self) -> None:
        """Give each head the weights that did best on dev, or leave the last ones if none were good enough.

        `selected` says of each the `step` (`None` for the last) and the `rule` it was chosen by.
        """
        self.selected = []
        for head, best in zip(self.heads, self.best, strict=True):
            rule = f"lowest dev {self.task.PRIMARY}, looked at every {self.args.eval_steps} updates"
            if best["step"] is None:
                rule = f"last update: no dev {self.task.PRIMARY} was below {self.task.FIRST_BEST}"
                logger.warning(rule)
            else:
                head.load_state_dict(best["weights"])
            self.selected.append({"step": best["step"], "rule": rule})

    def trained_seconds(self) -> float:
        """Seconds of training, over all starts."""
        return self.earlier_seconds + time.perf_counter() - self._started

    def _save_checkpoint(self, model, trial):
        """Write it aside, with the best heads, so that it appears whole or not at all, and older ones go only then."""
        folder, limit = self.args.output_dir, self.args.save_total_limit
        self.args.output_dir, self.args.save_total_limit = str(Path(folder) / WRITING), None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.save_total_limit = folder, limit
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            torch.save(self.best, Path(folder) / WRITING / name / BEST_NAME)
            seal_checkpoint(Path(folder) / WRITING / name, Path(folder) / name)
            rotate_checkpoints(folder, limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        self.best = torch.load(folder / BEST_NAME, weights_only=True)
        log = read_json(folder / TRAINER_STATE_NAME)["log_history"]
        self.earlier_seconds = max((entry.get("trained_seconds", 0.0) for entry in log), default=0.0)
