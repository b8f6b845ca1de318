# ruff: noqa: RUF009  (`option` makes a field)
"""Options of `laser-hf train`, by default the paper's HuBERT recipe, and the presets that set them."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from ..errors import LaserError
from ..plugins import Option
from ..records import located

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""Number format of the forward pass by `TrainingArguments.mixed_precision`."""
_BOUNDS = ("low", "high", "above")
OWN_METADATA = ("recipe", *_BOUNDS)
"""Metadata of a field that argparse does not know."""
_PRESETS = Path(located("{laser_hf}/presets"))

DDP = (
    "the trained layers are small and gain nothing from sharding. Several GPUs share an update by DDP: accelerate "
    "launch --multi_gpu --num_processes N -m laser_hf train"
)
_REASONS = {
    "num_train_epochs": "the length of a run is given in updates: --max_steps",
    "gradient_accumulation_steps": "it follows from --pairs_per_update and --per_device_train_batch_size: set those",
    "ignore_data_skip": "a resumed run goes on behind the pairs that it has seen",
    "enable_jit_checkpoint": "SIGTERM ends a run with a checkpoint as it is",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "fsdp fsdp_config deepspeed parallelism_config": DDP,
    "auto_find_batch_size train_sampling_strategy length_column_name dataloader_drop_last dataloader_in_order "
    "remove_unused_columns accelerator_config include_num_input_tokens_seen": "--seed decides the order of the pairs",
    "do_eval do_predict bf16_full_eval fp16_full_eval prediction_loss_only eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics": "an evaluation measures "
    "loss terms of held-out pairs, --per_device_eval_batch_size at once",
    "label_smoothing_factor label_names average_tokens_across_devices neftune_noise_alpha use_liger_kernel "
    "liger_kernel_config use_cache": "the loss is that of the --objective",
    "hub_strategy hub_always_push hub_revision": "the finished run is published, not its checkpoints",
}
REFUSED = {name: why for names, why in _REASONS.items() for name in names.split()}
"""Options of `TrainingArguments` that would have no effect here, and why."""


def option(default: Any, text: str, recipe: bool = True, **metadata: Any) -> Any:
    """A dataclass field that is an option with a help `text` and, with `recipe`, decides the result of a run.

    `metadata` are `low`, `high` and `above` as of `plugins.Option`, and `choices`, `aliases`, `metavar` as of argparse.
    """
    return dataclasses.field(default=default, metadata={**metadata, "help": text, "recipe": recipe})


def setting(default: Any, text: str, **metadata: Any) -> Any:
    """An `option` that does not decide the result: paths, logging, evaluation, hardware."""
    return option(default, text, recipe=False, **metadata)


def ranged_options(kind: type) -> dict[str, Option]:
    """The options of a dataclass that have one type, by name: what is allowed, for checks and for `--help`."""
    found, hints = {}, get_type_hints(kind)
    for field in dataclasses.fields(kind):
        kinds = set(get_args(hints[field.name]) or (hints[field.name],))
        default = None if type(None) in kinds else ""
        kinds.discard(type(None))
        if "recipe" in field.metadata and len(kinds) == 1 and kinds <= {bool, int, float, str}:
            bounds = {name: field.metadata.get(name) for name in _BOUNDS}
            found[field.name] = Option(f"--{field.name}", default, "", kind=kinds.pop(), **bounds)
    return found


def check_values(options: Any) -> None:
    """`LaserError` on a type or range: argparse sees no value of a preset, and knows no range."""
    for name, option in ranged_options(type(options)).items():
        value = getattr(options, name)
        checked = option.check(value)
        if option.kind is int or isinstance(value, str):
            setattr(options, name, checked)


def recipe_of(options: Any) -> dict[str, Any]:
    """The values of a dataclass of options that decide the result, by name."""
    values = {one.name: getattr(options, one.name) for one in dataclasses.fields(options) if one.metadata.get("recipe")}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in _PRESETS.glob("*.json"))


def load_preset(name: str, known: set[str]) -> dict[str, Any]:
    """Values of a shipped preset, or of a JSON file of one's own, by the names of options.

    `{laser_hf}` in a value stands for the folder of the installed package. `LaserError` on an unknown name, an
    unreadable file, or a key outside `known`.
    """
    path = Path(name) if name.endswith(".json") else _PRESETS / f"{name}.json"
    if not path.is_file():
        raise LaserError(f"unknown preset {name!r}; give a .json file or one of {', '.join(preset_names())}")
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:  # also of text in another encoding
        raise LaserError(f"preset {name!r} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise LaserError(f"preset {name!r} must be a JSON object of options and values, got {type(values).__name__}")
    if unknown := sorted(set(values) - known - {"description", "source"}):
        raise LaserError(f"preset {name!r} has unknown keys: {', '.join(unknown)}. See laser-hf train --help_all.")
    return {key: located(value) if isinstance(value, str) else value for key, value in values.items() if key in known}


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

    train_data: str = option("openslr/librispeech_asr", "Hub id, folder, manifest, saved data set", aliases=["--data"])
    train_name: str | None = option(None, "configuration of a Hub data set")
    train_split: str | None = option(None, "split, or sub-folder of a LibriSpeech tree", aliases=["--split"])
    eval_data: str | None = setting(None, "held-out speech for loss terms and the collapse monitor")
    eval_name: str | None = setting(None, "configuration of the held-out data set")
    eval_split: str | None = setting(None, "its split or sub-folder")
    eval_alignments: str | None = setting(None, "word times, or demo: also measure discrimination", metavar="FILE")
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
    perturb_on: str = setting("auto", "what perturbs; auto: a GPU if all can", choices=["auto", "worker", "device"])
    cache_decoded: str | None = setting(None, "keep decoded speech there; true: in datasets' cache", metavar="DIR")

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
    dataloader_num_workers: int | None = setting(None, "data workers for each GPU; default: its cores, up to 8", low=0)
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
                raise ValueError(f"--{field.name}: it is not taken: {REFUSED[field.name]}")
        for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
            if os.environ.get(name, "").lower() in ("true", "1"):
                raise ValueError(f"{name} is set: FSDP and DeepSpeed are not taken, because {DDP}")
        check_values(self)
        if self.dataloader_num_workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self.dataloader_num_workers = min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
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
