# ruff: noqa: RUF009  (`option` makes a field)
"""Options of `laser-hf train`, by default the paper's HuBERT recipe; objectives and perturbations have their own."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from .fields import DDP, PRECISIONS, REFUSED, check_values, option, setting


@dataclass
class ModelArguments:
    """Which encoder is fine-tuned, and how much of it."""

    model_name_or_path: str = option(
        "facebook/hubert-base-ls960", "HuBERT, WavLM, wav2vec 2.0, data2vec-audio: id or folder", aliases=["--model"]
    )
    model_revision: str | None = option(None, "branch, tag or commit of the encoder", aliases=["--revision"])
    trainable_layers: int = option(2, "Transformer layers trained, counted from the top", low=1)
    train_encoder_layer_norm: bool = option(False, "also train the encoder's own LayerNorm, as the released code does")
    projection_dim: int = option(256, "dimension of the projected frames", low=1)
    projection_layers: int = option(1, "linear layers of the projection (SCORE on WavLM: 2)", low=1, high=2)
    do_normalize: bool = option(False, "scale every waveform to zero mean and unit variance (large encoders)")
    hidden_dropout: float = option(0.1, "dropout of the Transformer while training", low=0, high=1)
    attention_dropout: float = option(0.1, "dropout of the attention weights", low=0, high=1)
    activation_dropout: float = option(0.0, "dropout inside the feed-forward blocks", low=0, high=1)
    feat_proj_dropout: float = option(0.1, "dropout of the input of the Transformer", low=0, high=1)

    __post_init__ = check_values

    def dropouts(self) -> dict[str, float]:
        """The four dropout rates by their config names."""
        return {name: value for name, value in vars(self).items() if name.endswith("dropout")}


@dataclass
class DataArguments:
    """Speech for training and for evaluation."""

    train_data: str = option(
        "openslr/librispeech_asr",
        "Hub id, folder of audio (a LibriSpeech tree), manifest, or saved data set",
        aliases=["--data"],
    )
    train_name: str | None = option(None, "configuration of a Hub data set")
    train_split: str | None = option(None, "split, or sub-folder of a LibriSpeech tree", aliases=["--split"])
    eval_data: str | None = setting(None, "held-out speech for loss terms and the collapse monitor")
    eval_name: str | None = setting(None, "configuration of the held-out data set")
    eval_split: str | None = setting(None, "its split or sub-folder")
    eval_alignments: str | None = setting(
        None, "times of words (and phones), or demo: evaluations also measure discrimination", metavar="FILE"
    )
    eval_alignments_data: str | None = setting(None, "folder of that speech; default: --eval_data")
    eval_alignments_splits: list[str] | None = setting(None, "its sub-folders to use")
    audio_column: str = option("audio", "audio column of a data set")
    streaming: bool | None = option(None, "read while training; default: only from the Hub", metavar="BOOL")
    shuffle_buffer: int = option(1000, "utterances shuffled at a time when streaming", low=1)
    max_train_samples: int | None = option(None, "use only so many utterances", low=1)
    max_eval_samples: int | None = setting(64, "held-out utterances used", low=1)
    min_seconds: float = option(0.1, "shorter utterances are skipped and counted", low=0)
    crop_seconds: float | None = option(None, "of longer utterances a random piece is taken (Spin: 17)", above=0)
    max_seconds: float | None = option(None, "longer utterances are left out", above=0)
    perturb_on: str = setting(
        "auto",
        "what makes perturbed views: worker processes, or the model's device; auto: a GPU where all of them can",
        choices=["auto", "worker", "device"],
    )
    cache_decoded: str | None = setting(
        None, "keep decoded utterances (to 230 MB an hour) there; true: in the cache of datasets", metavar="DIR"
    )

    __post_init__ = check_values


@dataclass
class LaserTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's values and the size of an update in pairs."""

    output_dir: str | None = setting("outputs/laser", "where checkpoints, encoder, records and plots go")
    overwrite_output_dir: bool = setting(False, "start over: delete what an earlier run left in output_dir")
    resume_from_checkpoint: str | None = setting(None, "checkpoint; default: the newest in output_dir, if any")
    pairs_per_update: int = option(8, "pairs of an update (optimiser step), over all processes", low=1)
    per_device_train_batch_size: int = setting(4, "pairs in memory at once (a micro-batch)", low=1)
    per_device_eval_batch_size: int = setting(4, "held-out pairs in memory at once", low=1)
    seconds_per_update: float | None = option(None, "of speech, instead of --pairs_per_update (Spin: 256)", above=0)
    per_device_train_seconds: float | None = option(None, "of these in memory at once; default: all", above=0)
    max_steps: int = option(3600, "updates", low=1)
    learning_rate: float = option(2e-5, "peak learning rate", above=0)
    lr_scheduler_type: SchedulerType | str = option("linear", "its schedule; linear decays to 0", metavar="NAME")
    lr_scheduler_kwargs: dict | str | None = option(None, "as JSON; warmup_stable_decay decays after the warm-up")
    warmup_steps: float = option(1000, "updates of linear warm-up", low=0)
    optim: OptimizerNames | str = option(TrainingArguments.default_optim, "optimiser", metavar="NAME")
    adam_beta1: float = option(0.9, "beta1 of AdamW", low=0, high=0.99999)
    adam_beta2: float = option(0.999, "beta2 of AdamW", low=0, high=0.99999999)
    adam_epsilon: float = option(1e-7, "epsilon of AdamW (as S3PRL's)", above=0)
    weight_decay: float = option(0.0, "weight decay of AdamW", low=0)
    coupled_weight_decay: bool = option(False, "Adam with L2 regularisation instead of AdamW (Spin)")
    released: bool = option(False, "as the released code in padding, AdamW and the end of an epoch")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: not at all", low=0)
    seed: int = option(1337, "of data order, perturbation, dropout and head", low=0, high=2**32 - 1)
    data_seed: int | None = option(None, "seed of the data order alone; default: --seed", low=0)
    bf16: bool = option(False, "bf16 autocast of the encoder; the loss stays in float32")
    fp16: bool = option(False, "fp16 autocast of the encoder, on a GPU; the loss stays in float32")
    use_cpu: bool = setting(False, "train on the CPU although there is a GPU")
    logging_steps: float = setting(25, "updates between two lines of the log", above=0)
    logging_first_step: bool = setting(True, "log update 1 too")
    eval_strategy: IntervalStrategy | str = setting("steps", "steps: every --eval_steps updates; no: not at all")
    eval_steps: float | None = setting(200, "updates between two evaluations", above=0)
    eval_on_start: bool = setting(False, "evaluate before the first update too")
    save_steps: float = setting(200, "updates between two checkpoints", above=0)
    save_total_limit: int | None = setting(2, "checkpoints kept", low=1)
    report_to: str | None = setting("tensorboard", "where to log: tensorboard, wandb, none", metavar="NAME")
    dataloader_num_workers: int | None = setting(
        None, "processes that decode and perturb, for each GPU (default: its share of the cores, at most 8)", low=0
    )
    collapse_cosine_fraction: float = setting(0.5, "alarm: share of the mean cosine's way to 1", low=0, high=1)
    collapse_rank_fraction: float = setting(0.5, "alarm: effective rank below this share of its start", low=0, high=1)
    plots: bool = setting(True, "draw curves, alignments and words at the end")
    push_to_hub: bool = setting(False, "publish the run at the end, without results (laser-hf push adds them later)")
    hub_model_id: str | None = setting(None, "repository to publish to: ORG/NAME")
    hub_facts: str | None = setting(None, "JSON facts about base model and speech for the card (docs/publishing.md)")
    hub_private_repo: bool = setting(False, "create that repository as a private one")
    torch_compile: bool = setting(False, "compile Transformer layers (on the CPU this needs a C++ compiler)")
    torch_compile_backend: str | None = setting(None, "backend of torch.compile, such as inductor")
    profile_updates: int = setting(0, "profile so many updates: profile.json and a trace go to output_dir", low=0)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, into `training_args.bin` for one: everything but the token."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self):
        for field in dataclasses.fields(TrainingArguments):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if field.name in REFUSED and getattr(self, field.name) != default:
                raise ValueError(f"--{field.name} is not taken: {REFUSED[field.name]}")
        for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
            if os.environ.get(name, "").lower() in ("true", "1"):
                raise ValueError(f"{name} is set: FSDP and DeepSpeed are not taken, because {DDP}")
        check_values(self)
        if self.dataloader_num_workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.dataloader_num_workers = min(8, max(1, cores // local))
        if self.output_dir == "":
            raise ValueError("--output_dir is empty; give the folder for this run's files")
        if self.eval_strategy not in ("steps", "no"):
            raise ValueError(f"--eval_strategy must be steps or no, got {self.eval_strategy}")
        if self.ddp_backend and os.environ.get("WORLD_SIZE", "1") == "1":
            raise ValueError(f"--ddp_backend {self.ddp_backend} is for several processes, and this is the only one")
        if self.coupled_weight_decay and self.optim != TrainingArguments.default_optim:
            raise ValueError(f"--coupled_weight_decay is Adam; leave out --optim {self.optim}")
        # The Trainer would upload its checkpoints; what is published is the finished run.
        self.publish, self.push_to_hub = self.push_to_hub, False
        if self.publish:
            if not self.hub_model_id:
                raise ValueError("--push_to_hub needs --hub_model_id ORG/NAME; laser-hf push can publish later, too")
            validate_repo_id(self.hub_model_id)
        super().__post_init__()
        # What runs decides: the flags, or else what `accelerate launch` or `accelerate config` chose.
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed precision {self.mixed_precision} is not supported; use bf16, fp16 or no")
        self.bf16, self.fp16 = self.mixed_precision == "bf16", self.mixed_precision == "fp16"
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16 needs a GPU; on a CPU train in fp32, or with --bf16")
        if self.torch_compile:
            # With these accelerate would compile the model as a whole.
            os.environ.pop("ACCELERATE_DYNAMO_BACKEND", None)
            os.environ.pop("ACCELERATE_DYNAMO_MODE", None)
        if self.per_device_train_seconds and not self.seconds_per_update:
            raise ValueError("--per_device_train_seconds goes with --seconds_per_update")
        if self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            after_warm_up = self.max_steps - self.get_warmup_steps(self.max_steps)
            self.lr_scheduler_kwargs = {"num_decay_steps": after_warm_up} | (self.lr_scheduler_kwargs or {})
        if self.released and (self.seconds_per_update or self.weight_decay or self.coupled_weight_decay):
            raise ValueError("--released has updates of pairs and no weight decay, as the released code")
        # By default no search for unused parameters: it would not see those of an objective, used outside `forward`.
        self.ddp_find_unused_parameters = bool(self.ddp_find_unused_parameters)
        # A pair has no columns of the model's argument names; the loss stops on NaN itself, with the ids.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
