"""An update: how its pairs become gradients, and what stops it."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import TorchDynamoPlugin
from torch.profiler import record_function
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from ..data import SkipLog, begin_pairs
from ..encoders import receptive_field
from ..errors import LaserError
from ..records import write_json
from .batches import Batch, Pair, Update, cut_by_length, drawn_sides, memory_named, unpack
from .means import from_all_processes, sum_over_processes
from .model import pair_terms
from .released import ReleasedAdamW
from .sampling import UpdateSampler, train_loader

NON_FINITE_NAME = "non_finite.json"


class UpdateTrainer(Trainer):
    """The part of `LaserTrainer` that makes updates; that class sets the attributes.

    A full update has `micro_batches` on each process. `losses`, ids and a tensor `(pairs,)` of each micro-batch, and
    `units`, pairs (or frames), are of the update that is made.
    """

    resumed_at: int = 0  # updates made before this start
    _sampler: UpdateSampler | None = None
    _items: Iterator[Update] = iter(())  # updates to come, of this epoch
    _ahead: dict[str, Any] | None = None  # the next one, begun

    def _build_accelerator_args(self, **kwargs):
        # Compiled as a whole, the model would be compiled anew for every set of lengths; see compile_layers.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`; `coupled_weight_decay`: Adam with L2 (Spin); `released`: S3PRL's AdamW."""
        args = self.args
        how = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        if self.optimizer is None and args.released:
            self.optimizer = ReleasedAdamW(self._trained(), **how)
        elif self.optimizer is None and args.coupled_weight_decay:
            self.optimizer = torch.optim.Adam(self._trained(), **how, weight_decay=args.weight_decay)
        return super().create_optimizer(model)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def get_train_dataloader(self) -> DataLoader:
        """Updates: an item holds the pairs of this process, see `pack`."""
        loader, self._sampler = train_loader(self.train_dataset, self.args, self.resumed_at)
        return loader

    def _run_epoch(self, **kwargs):
        before, self._ahead = self.state.global_step, None
        if before >= self.state.max_steps:  # killed after the last update, before the record
            self.control.should_training_stop = True
            return
        if self._sampler is not None:  # a stream counts its epochs itself
            self._sampler.set_epoch(kwargs["epoch"])
            if hasattr(self.train_dataset, "set_epoch"):
                self.train_dataset.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)
        if self.state.global_step == before:  # on one process perhaps, so that nothing is asked of the others
            raise LaserError(
                f"the training data ended after {before} of --max_steps {self.args.max_steps}: a stream must not end "
                "(`PairStream` begins again), and every process and worker needs utterances of its own"
            )
        self._check_used()

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return inputs  # already on the device, with lengths on the CPU

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As the Trainer's: one update; that of the last look ahead if there was one."""
        self._items = epoch_iterator
        if self._ahead is None:
            self._look_ahead()
        item, self._ahead = self._ahead, None
        return [] if item is None else [item], None

    def _look_ahead(self) -> None:
        """Begin the next update: its views are then made, and known to be usable, before anything waits for them."""
        item = next(self._items, None)
        self._ahead = item and {**item, "complete": self._begin(item, self.train_dataset)}

    @torch.no_grad()
    def _begin(self, update: Update, dataset) -> Callable[[], list[Pair]]:
        """Begin to move the usable pairs to the device and to make their views there."""
        usable = [pair for pair in unpack(update, self.args.device) if not pair["skip"]]
        perturbation = getattr(dataset, "perturbation", None)
        if perturbation is None and any(pair["perturbed"] is None for pair in usable):
            lack = "the pairs lack their perturbed view (PairTransform with perturb=False), and the data set has no"
            raise LaserError(f"{lack} attribute `perturbation` to make it with; PairDataset has one")
        with record_function("perturb"):
            return begin_pairs(usable, perturbation, receptive_field(self.model.encoder.config))

    def _cut(self, update: Update, dataset, count: int, skip_log: SkipLog) -> list[Batch]:
        """Micro-batches on the device, with both views."""
        pairs = (update.get("complete") or self._begin(update, dataset))()
        skip_log.update((pair["id"], pair["skip"]) for pair in [*update["pairs"], *pairs] if pair["skip"])
        return cut_by_length([pair for pair in pairs if not pair["skip"]], count)

    def _units(self, batch: Batch) -> int:
        """What the loss is a mean over: pairs, or frames of the clean views."""
        if self.objective.unit == "pairs" or not batch["ids"]:
            return len(batch["ids"])
        return int(self.model.encoder.frame_lengths(batch["clean_lengths"]).sum())

    def training_step(self, model, inputs: Update, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of the pairs of one update; gradients are exchanged with the last micro-batch."""
        self.objective.prepare_update()
        self.losses = []
        batches = self._cut(inputs, self.train_dataset, self.micro_batches, self.skip_log)
        if self.args.world_size == 1:  # several processes go through the same number, for losses computed together
            batches = [batch for batch in batches if batch["ids"]] or batches[:1]
        self.units = sum(map(self._units, batches))
        # Filled on the device: a copy from the CPU would be a host sync.
        units = sum_over_processes(torch.full((), self.units, device=self.args.device), self.args.device)
        loss = torch.zeros((), device=self.args.device)
        for batch in batches:
            last = batch is batches[-1]
            exchange = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            named = memory_named(batch, self.model.encoder.config, self.args.device)
            with exchange, named, record_function("micro_batch"):
                loss += super().training_step(model, batch, units)
        self.window.draw()
        if self.state.global_step + 1 < self.args.max_steps:
            self._look_ahead()  # while the device computes
        return loss

    def compute_loss(self, model, inputs: Batch, return_outputs=False, num_items_in_batch=None):
        """Share of a micro-batch in the mean loss over the pairs (or frames) of the update."""
        terms, projected, frames = self._pair_terms(model, inputs)
        total, count, units = terms["total"], len(inputs["ids"]), self._units(inputs)
        self.losses.append((inputs["ids"], total.detach()))
        if count:
            self.window.add(terms, units, projected, frames[:count])
            self.window.frames += sum(frames)
            self.window.samples += int(inputs["clean_lengths"].sum())
        share = torch.as_tensor(units if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        # DDP averages the gradients over the processes, hence the factor.
        loss = total.sum() / share * self.args.world_size
        return (loss, {"projected": projected}) if return_outputs else loss

    def _pair_terms(self, model, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]:
        step = self.state.global_step if self.model.training else 0  # held-out pairs always look the same
        swap = drawn_sides(self.args.seed, step, batch["ids"]) if self.model.twin is not None else None
        return pair_terms(model, self.model, batch, swap)

    def _get_grad_norm(self, model, grad_norm=None):
        # The Trainer's last call before the optimiser steps, with or without clipping.
        norm = super()._get_grad_norm(model, grad_norm)
        units = self._check_finite(norm)
        if not self.args.fp16 and not units:  # no pair: momentum and weight decay would move the weights
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _check_finite(self, norm: torch.Tensor | float) -> int:
        """The units of the update over all processes, which stop together; one host sync if all is well."""
        found = [torch.isfinite(total).all() for _, total in self.losses]
        if not self.args.fp16:  # its gradient scaler skips steps whose gradient is not finite
            found.append(torch.isfinite(torch.as_tensor(norm, device=self.args.device)))
        said = [torch.full((), number, device=found[0].device) for number in (self.units, int(bool(self.stop.asked)))]
        own = torch.stack(((~torch.stack(found).all()).to(torch.int64), *said))
        wrong, units, asked = sum_over_processes(own, self.args.device).tolist()
        self.stop.agreed = asked > 0
        if wrong:
            own = [pair for ids, total in self.losses for pair in zip(ids, total.tolist(), strict=True)]
            losses = dict(pair for process in from_all_processes(own) for pair in process)
            bad = {name: repr(loss) for name, loss in losses.items() if not math.isfinite(loss)}
            self._stop_before_step("loss" if bad else "gradient", list(bad or losses), bad)
        return units

    def _stop_before_step(self, what: str, ids: list[str], losses: dict[str, str]) -> NoReturn:
        """End the run once the state before this update is saved."""
        self._check_weights()
        step = self.state.global_step
        if step > 0 and not (Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}").exists():
            self._save_checkpoint(self.model, trial=None)
        text = f"non-finite {what} at step {step + 1} on the utterances {', '.join(ids)} (look at these files)"
        format = f", without --{self.args.mixed_precision}" if self.args.bf16 or self.args.fp16 else ""
        self._stop(text, {"step": step + 1, "what": what, "utterances": ids, "losses": losses}, format)

    def _check_weights(self) -> None:
        if not torch.stack([torch.isfinite(parameter).all() for parameter in self._trained()]).all():
            step = self.state.global_step
            self._stop(f"the weights are not finite after update {step}", {"step": step, "what": "weights"})

    def _stop(self, what: str, report: dict[str, Any], format: str = "") -> NoReturn:
        """End the run, and say how to go on from its last finite state."""
        output_dir = Path(self.args.output_dir)
        if self.args.should_save:
            write_json(output_dir / NON_FINITE_NAME, report)
        change = f"--learning_rate {self.args.learning_rate / 10:g}{format}"
        if not (saved := sort_checkpoints(str(output_dir))):
            raise NonFiniteLossError(f"{what}; no update had been saved before it. Try {change}")
        options = shlex.join(["--resume_from_checkpoint", saved[-1], "--output_dir", f"{output_dir}-2"])
        mend = f"To go on from it with another rate, give the same command with {options} {change}"
        raise NonFiniteLossError(f"{what}; the last finite state is {saved[-1]}. {mend}")


class NonFiniteLossError(LaserError):
    """Loss or gradient became NaN or infinite; the message names the utterances and the saved state."""
