"""`LaserTrainer`: a Hugging Face Trainer whose loss is a mean over the pairs of an optimiser step."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import TorchDynamoPlugin
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data import PairCollator, Perturbation, SkipLog
from ..encoders import SAMPLE_RATE, SpeechEncoder
from ..ops.statistics import effective_rank, mean_pairwise_cosine
from ..records import read_json, write_json
from .arguments import LaserTrainingArguments
from .micro_batches import cut_by_length, perturb_pairs, split_batch, to_device
from .model import AlignmentModel
from .monitor import CollapseMonitor, pick_frames
from .profile import UpdateProfile
from .sampling import PairBatchSampler, micro_batches_per_update

logger = logging.getLogger(__name__)

STATE_NAME = "laser_state.json"


class NonFiniteLossError(RuntimeError):
    """Loss or gradient became NaN or infinite; the message names the utterances and the saved state."""


class LaserTrainer(Trainer):
    """Trains an `AlignmentModel` on pairs.

    The loss of an update is the mean over its pairs, whatever the micro-batch size and the number of processes.
    Named loss terms, speech processed, frames per second and collapse statistics go through the usual
    `log`, to whatever `report_to` names.

    Args:
        model: encoder and head.
        args: options; `gradient_accumulation_steps` is set from `pairs_per_update`.
        objective: `(x, lengths_x, y, lengths_y) -> {"total": (batch,), ...}`.
        train_dataset, eval_dataset: data sets of pairs, map-style or streaming (`laser_hf.data.with_pairs`).
        set_epoch: called with the epoch before each pass over a map-style training set.
        perturbation: makes the second view on the device, for pairs that come without it
            (`PairTransform(..., perturb=False)`).
        probe: measures the encoder at every evaluation, on the first process only (`EvalProbe`).
        callbacks: as for `Trainer`.
    """

    def __init__(
        self,
        model: AlignmentModel,
        args: LaserTrainingArguments,
        objective: nn.Module,
        train_dataset,
        eval_dataset=None,
        set_epoch: Callable[[int], None] | None = None,
        perturbation: Perturbation | None = None,
        probe: Callable[[SpeechEncoder], dict[str, float]] | None = None,
        callbacks: list | None = None,
    ):
        if args.n_gpu > 1:
            logger.warning("%d GPUs are visible; start with `accelerate launch` to use more than one", args.n_gpu)
            args._n_gpu = 1
        args.gradient_accumulation_steps = micro_batches_per_update(
            args.pairs_per_update, args.per_device_train_batch_size, args.world_size
        )
        if perturbation is not None and not perturbation.batched:
            perturbation.apply_batch([], [])  # its own error says what is missing
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
        self.objective = objective
        # compute_loss divides by the pairs of the whole update.
        self.loss_is_scaled_for_ga = True
        self.skip_log, self.eval_skip_log = SkipLog(), SkipLog()
        self.monitor = CollapseMonitor(args.collapse_cosine_fraction, args.collapse_rank_fraction)
        self.processed_seconds = 0.0  # source speech of all processes, the unit of the paper's Table 1
        self.trained_seconds = 0.0  # wall time, over all resumes
        self.perturbation = perturbation
        self.probe = probe
        self.profile = UpdateProfile(args.profile_updates, args.device)
        self.add_callback(self.profile)
        self._set_pair_epoch = set_epoch
        self._sampler: PairBatchSampler | None = None
        self._last_output: tuple[torch.Tensor, torch.Tensor] | None = None
        self._totals: list[tuple[list[str], torch.Tensor]] = []  # of the micro-batches of this update
        self._reset_window()

    def _build_accelerator_args(self, **kwargs):
        # Compiled as a whole, the model would be compiled anew for every set of lengths; see compile_layers.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches for this process; see `PairBatchSampler`."""
        args = self.args
        if isinstance(self.train_dataset, IterableDataset):
            shares = args.world_size * args.gradient_accumulation_steps
            if args.pairs_per_update % shares:
                raise ValueError(
                    f"a streamed update of {args.pairs_per_update} pairs does not divide into {args.world_size} "
                    f"processes x {args.gradient_accumulation_steps} micro-batches; choose "
                    "--per_device_train_batch_size and the number of processes so that it does"
                )
            return self._train_dataloader(batch_size=args.pairs_per_update // shares)
        self._sampler = PairBatchSampler(
            len(self.train_dataset),
            args.pairs_per_update,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        return self._train_dataloader(batch_sampler=self._sampler)

    def _train_dataloader(self, **how) -> DataLoader:
        loader = self._dataloader(self.train_dataset, **how)
        self.profile.workers = loader.num_workers
        return loader

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Held-out pairs in the order of the data set, shared among the processes."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        sampler = PairBatchSampler(
            len(dataset),
            self.args.per_device_eval_batch_size * self.args.world_size,
            world_size=self.args.world_size,
            rank=self.args.process_index,
            shuffle=False,
        )
        return self._dataloader(dataset, batch_sampler=sampler)

    def _dataloader(self, dataset, **how) -> DataLoader:
        # Not through accelerator.prepare: the sampler (or the split of the stream) already knows its process.
        workers = self.args.dataloader_num_workers
        if isinstance(dataset, IterableDataset):
            workers = min(workers, dataset.num_shards)
        return DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            **how,
        )

    def _run_epoch(self, **kwargs):
        epoch = kwargs["epoch"]
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
        if self._set_pair_epoch is not None:
            self._set_pair_epoch(epoch)
        return super()._run_epoch(**kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one update, sorted by length, and how many pairs they hold over all processes."""
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
        pairs = torch.full((), sum(len(batch["ids"]) for batch in batches), device=device)
        return micro_batches, self._sum_over_processes(pairs)

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
        """Share of this micro-batch in the mean loss over the pairs of the update."""
        terms, output = self._pair_terms(model, inputs)
        total = terms["total"]
        self._totals.append((inputs["ids"], total.detach()))
        pairs = torch.as_tensor(len(total) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        # DDP averages the gradients over the processes, hence the factor.
        loss = total.sum() / pairs * self.args.world_size
        self._note(terms, output, inputs)
        self.profile.start("backward")
        return (loss, output) if return_outputs else loss

    def _pair_terms(self, model, inputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        clean, perturbed = inputs["clean"], inputs["perturbed"]
        count = len(clean)
        if count == 0:
            # Every pair was skipped. The other processes still wait for this one's gradients.
            silence = torch.zeros(1, SAMPLE_RATE // 10, device=self.args.device)
            output = model(silence, [silence.shape[1]])
            nothing = output["projected"].sum(dim=(1, 2))[:0] + 0.0 * output["projected"].sum()
            return dict.fromkeys(self.objective.term_names, nothing), output
        # Both views in one forward call: DDP wants one, and padding changes nothing.
        longest = max(clean.shape[1], perturbed.shape[1])
        waveforms = torch.cat([nn.functional.pad(view, (0, longest - view.shape[1])) for view in (clean, perturbed)])
        lengths = torch.cat((inputs["clean_lengths"], inputs["perturbed_lengths"]))
        with self.profile.section("encode"):
            # As plain numbers: DDP would move a tensor to the device, where reading it means waiting.
            output = model(waveforms, lengths.tolist())
        (x, y), (m, n) = output["projected"].split(count), output["lengths"].split(count)
        frames = self.model.encoder.frame_lengths(lengths)
        longest_x, longest_y = (int(part.max()) for part in frames.split(count))
        with self.profile.section("loss"):
            terms = self.objective(x[:, :longest_x], m, y[:, :longest_y], n)
        return terms, output

    def _stop_if_not_finite(self, gradient_norm: torch.Tensor | float) -> None:
        """Look at losses and gradient of the update, once: it is the only time that training waits for the device.

        Raises:
            NonFiniteLossError: the optimiser has not stepped yet; the state before this update is saved.
        """
        finite = [torch.isfinite(total).all() for _, total in self._totals]
        if not self.args.fp16:  # there the gradient scaler skips such steps
            finite.append(torch.isfinite(torch.as_tensor(gradient_norm, device=self.args.device)))
        bad = (~torch.stack(finite).all()).to(torch.int64).reshape(1)
        if self._sum_over_processes(bad).item() == 0:
            return
        values = {
            name: value
            for ids, total in self._totals
            for name, value in zip(ids, total.tolist(), strict=True)
            if not math.isfinite(value)
        }
        # A gradient can be bad where every loss is fine: then all pairs of the update are named.
        everything = [name for ids, _ in self._totals for name in ids]
        if self.args.world_size > 1:
            # Each process knows its own utterances.
            gathered: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(gathered, (values, everything))
            values = {name: value for found, _ in gathered for name, value in found.items()}
            everything = [name for _, names in gathered for name in names]
        what = "loss" if values else "gradient"
        ids = list(values) or everything
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.state.global_step > 0 and not folder.exists():
            self._save_checkpoint(self.model, trial=None)
        saved = f"the state before it is in {folder}" if folder.exists() else "no update had been made yet"
        message = (
            f"non-finite {what} at step {self.state.global_step + 1} on the utterances {', '.join(ids)}; {saved}. "
            "Look at those files, lower the learning rate, or train without --bf16."
        )
        if self.args.should_save:
            write_json(
                Path(self.args.output_dir) / "non_finite.json",
                {
                    "step": self.state.global_step + 1,
                    "what": what,
                    "utterances": ids,
                    "losses": {name: repr(value) for name, value in values.items()},
                },
            )
        raise NonFiniteLossError(message)

    def _get_grad_norm(self, model, grad_norm=None):
        # The last call before the optimiser steps, with or without clipping.
        norm = super()._get_grad_norm(model, grad_norm)
        self._stop_if_not_finite(norm)
        return norm

    # ---- what is logged ----

    def _reset_window(self) -> None:
        self._window: dict[str, Any] = {"sums": None, "pairs": 0, "frames": 0, "samples": 0}
        self._window_start = time.perf_counter()

    def _note(self, terms, output, inputs) -> None:
        window = self._window
        count = len(inputs["ids"])
        if count:
            sums = torch.stack([terms[name].detach().sum() for name in self.objective.term_names])
            window["sums"] = sums if window["sums"] is None else window["sums"] + sums
            window["pairs"] += count
            lengths = torch.cat((inputs["clean_lengths"], inputs["perturbed_lengths"]))
            window["frames"] += int(self.model.encoder.frame_lengths(lengths).sum())
            window["samples"] += int(inputs["clean_lengths"].sum())
            # Only the tensors are kept; the statistics are computed when a line is logged.
            self._last_output = output["projected"][:count].detach(), output["lengths"][:count]

    def _sum_over_processes(self, value: torch.Tensor) -> torch.Tensor:
        if self.args.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def _close_window(self) -> dict[str, float]:
        """Means of the terms since the last line, speech processed, speed and collapse statistics."""
        window, names = self._window, self.objective.term_names
        sums = window["sums"] if window["sums"] is not None else torch.zeros(len(names))
        device = self.args.device
        counts = torch.tensor([window[key] for key in ("pairs", "frames", "samples")], dtype=torch.float64)
        summed = self._sum_over_processes(torch.cat((sums.double().cpu(), counts)).to(device)).tolist()
        pairs, frames, samples = summed[-3:]
        elapsed = time.perf_counter() - self._window_start
        self.trained_seconds += elapsed
        self.processed_seconds += samples / SAMPLE_RATE
        logs = {}
        if pairs:
            # The total is the Trainer's own "loss".
            logs = {name: summed[i] / pairs for i, name in enumerate(names) if name != "total"}
        logs["processed_hours"] = self.processed_seconds / 3600
        logs["frames_per_second"] = frames / max(elapsed, 1e-9)
        last = pick_frames(*self._last_output) if self._last_output is not None else ()
        if len(last) > 1:
            logs["frame_cosine"] = mean_pairwise_cosine(last)
            logs["effective_rank"] = effective_rank(last)
        if len(self.skip_log):
            logs["skipped"] = len(self.skip_log)
        self._reset_window()
        return logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; lines with a training loss also carry the terms."""
        if "loss" in logs:
            logs = {**logs, **self._close_window()}
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
                "Collapse: %s at step %d. The frames are becoming alike; raise --alpha or lower --learning_rate.",
                self.monitor.reason,
                self.state.global_step,
            )

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Mean loss terms and collapse statistics of held-out pairs, whose perturbation never changes."""
        window = time.perf_counter()
        was_training = self.model.training
        self.model.eval()
        names = self.objective.term_names
        sums, pairs, kept = torch.zeros(len(names), dtype=torch.float64), 0, []
        for inputs in self.get_eval_dataloader(eval_dataset):
            self.eval_skip_log.update(inputs["skipped"])
            (inputs,) = self._complete([self._prepare_inputs(inputs)])
            count = len(inputs["ids"])
            if count == 0:
                continue
            with self.compute_loss_context_manager(), self.accelerator.autocast(), self._eager():
                terms, output = self._pair_terms(self.model, inputs)
            sums += torch.stack([terms[name].sum().double().cpu() for name in names])
            pairs += count
            kept.append(pick_frames(output["projected"][:count].float(), output["lengths"][:count], 64 * count).cpu())
        self.model.train(was_training)
        frames = self._gather_frames(kept)
        summed = self._sum_over_processes(torch.cat((sums, torch.tensor([float(pairs)]))).to(self.args.device))
        *sums, pairs = summed.tolist()
        if not pairs:
            raise ValueError("none of the held-out utterances could be used; see the log for the reasons")
        named = {"total": "loss"}
        metrics = {f"{metric_key_prefix}_{named.get(n, n)}": s / pairs for n, s in zip(names, sums, strict=True)}
        if len(frames) > 1:
            metrics[f"{metric_key_prefix}_frame_cosine"] = mean_pairwise_cosine(frames)
            metrics[f"{metric_key_prefix}_effective_rank"] = effective_rank(frames)
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
        self._window_start += time.perf_counter() - window
        return metrics

    def _eager(self):
        """Evaluation is too little to compile another variant of the layers for it."""
        compiled = self.args.torch_compile
        return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

    def _gather_frames(self, kept: list[torch.Tensor]) -> torch.Tensor:
        frames = torch.cat(kept) if kept else torch.zeros(0, self.model.head.projection.out_features)
        if self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(gathered, frames)
            frames = torch.cat(gathered)
        return pick_frames(frames[None], torch.tensor([len(frames)]))

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
        return {
            "processed_seconds": self.processed_seconds + self._window_seconds(),
            "trained_seconds": self.trained_seconds + time.perf_counter() - self._window_start,
            "skipped": self.skip_log.state_dict(),
            "collapse_start": self.monitor.start,
            "collapse_fired_at": self.monitor.fired_at,
        }

    def _window_seconds(self) -> float:
        samples = self._sum_over_processes(torch.tensor(self._window["samples"], device=self.args.device))
        return float(samples) / SAMPLE_RATE

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
        self.processed_seconds = state["processed_seconds"]
        self.trained_seconds = state["trained_seconds"]
        self.skip_log.load_state_dict(state["skipped"])
        self.monitor.start = state["collapse_start"]
        self.monitor.fired_at = state["collapse_fired_at"]

    def _inner_training_loop(self, *args, **kwargs):
        self._reset_window()
        return super()._inner_training_loop(*args, **kwargs)
