"""Command-line options of `train.py`, as dataclasses with the paper's HuBERT recipe as defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from ..objectives import OBJECTIVES


@dataclass
class ModelArguments:
    """Which encoder is fine-tuned, and how much of it."""

    model_name_or_path: str = field(
        default="facebook/hubert-base-ls960",
        metadata={"help": "encoder: hub id or folder (HuBERT, WavLM, wav2vec 2.0, data2vec-audio)"},
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the encoder"})
    trainable_layers: int = field(default=2, metadata={"help": "Transformer layers trained, counted from the top"})
    train_encoder_layer_norm: bool = field(
        default=False,
        metadata={
            "help": "also train the LayerNorm behind the positional convolution, as the released code does "
            "(gradients then run through all layers: slower, more memory)"
        },
    )
    projection_dim: int = field(default=256, metadata={"help": "dimension of the projection the loss sees"})
    projection_layers: int = field(
        default=1, metadata={"help": "linear layers of the projection, with ReLU between two (SCORE's WavLM has 2)"}
    )
    do_normalize: bool = field(
        default=False,
        metadata={"help": "scale every waveform to zero mean and unit variance (the paper does not)"},
    )
    hidden_dropout: float = field(default=0.1, metadata={"help": "dropout of the Transformer while training"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of the attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout inside the feed-forward blocks"})
    feat_proj_dropout: float = field(default=0.1, metadata={"help": "dropout of the input of the Transformer"})

    def dropouts(self) -> dict[str, float]:
        """The four dropout rates by their config names."""
        names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
        return {name: getattr(self, name) for name in names}


@dataclass
class ObjectiveArguments:
    """The loss: LASER (Eq. 1 to 4), soft-DTW alone, SCORE or Spin."""

    objective: str = field(
        default="laser",
        metadata={
            "help": "laser; soft_dtw (LASER without its regulariser: it collapses); score (against a frozen twin of "
            "the encoder); spin (swapped prediction of codes; needs views of the same duration)",
            "choices": list(OBJECTIVES),
        },
    )
    gamma: float = field(default=0.1, metadata={"help": "laser, soft_dtw, score: smoothing of soft-DTW"})
    alpha: float = field(
        default=0.4, metadata={"help": "laser: weight of the regulariser; 0 is soft-DTW alone, which collapses"}
    )
    sigma: int = field(default=1, metadata={"help": "laser: window of the regulariser in frames"})
    margin: float = field(default=1.1, metadata={"help": "laser: distance beyond which far frames no longer repel"})
    distance: str = field(
        default="euclidean",
        metadata={
            "help": "laser: distance of the regulariser: euclidean (released code, published results) or sqeuclidean "
            "(the paper's equation)",
            "choices": ["euclidean", "sqeuclidean"],
        },
    )
    reference_frames: int | None = field(
        default=None,
        metadata={
            "help": "laser: weigh frames in the regulariser as if every utterance had so many frames; default: by "
            "their distance in frames, as published, so that the weights grow with the square of the length"
        },
    )
    twin_dropout: bool = field(
        default=True, metadata={"help": "score: dropout in the frozen twin too while training, as released"}
    )
    codes: int = field(default=256, metadata={"help": "spin: size of the codebook (128 to 2048 in the paper)"})
    temperature: float = field(default=0.1, metadata={"help": "spin: temperature of the predictions"})
    epsilon: float = field(default=0.02, metadata={"help": "spin: entropy weight of the Sinkhorn targets"})
    iterations: int = field(default=3, metadata={"help": "spin: Sinkhorn iterations"})

    def used(self) -> dict[str, Any]:
        """`name` and the options that this objective reads."""
        read = [option.dest for option in OBJECTIVES[self.objective].options]
        return {"name": self.objective} | {name: getattr(self, name) for name in read}


@dataclass
class DataArguments:
    """Speech and how its second view is made."""

    train_data: str = field(
        default="openslr/librispeech_asr",
        metadata={"help": "training speech: hub id, LibriSpeech tree, folder of audio, or saved data set"},
    )
    train_name: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    train_split: str | None = field(default=None, metadata={"help": "split, or sub-folder of a LibriSpeech tree"})
    eval_data: str | None = field(
        default=None, metadata={"help": "held-out speech for the loss terms and the collapse monitor"}
    )
    eval_name: str | None = field(default=None, metadata={"help": "configuration of the held-out data set"})
    eval_split: str | None = field(default=None, metadata={"help": "its split or sub-folder"})
    eval_probe: str | None = field(
        default=None,
        metadata={
            "help": "tab-separated word (and phone) times, or demo for those of the shipped speech: every evaluation "
            "also measures word discrimination and an ABX-like phone error of the last layer"
        },
    )
    eval_probe_data: str | None = field(
        default=None, metadata={"help": "folder of the speech that --eval_probe names; default: --eval_data"}
    )
    eval_probe_splits: list[str] | None = field(default=None, metadata={"help": "its sub-folders to use"})
    audio_column: str = field(default="audio", metadata={"help": "audio column of a data set"})
    streaming: bool | None = field(
        default=None, metadata={"help": "read while training instead of before; default: only from the Hub"}
    )
    shuffle_buffer: int = field(default=1000, metadata={"help": "utterances shuffled at a time when streaming"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use only so many utterances"})
    max_eval_samples: int | None = field(default=64, metadata={"help": "held-out utterances used"})
    min_seconds: float = field(default=0.1, metadata={"help": "shorter utterances are skipped and counted"})
    crop_seconds: float | None = field(
        default=None, metadata={"help": "of longer utterances a random piece of this length is taken (Spin: 17)"}
    )
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "longer ones are left out beforehand (of a stream: skipped on the way, so that updates get "
            "smaller); default: none is too long, as in the paper"
        },
    )
    perturbations: list[str] = field(
        default_factory=lambda: ["speed_pitch"],
        metadata={
            "help": "what makes the second view, one after the other: speed_pitch, noise (needs --noise_dir), voice "
            "(formants and pitch by Praat; needs praat-parselmouth), equalizer"
        },
    )
    speed_factors: list[float] = field(
        default_factory=lambda: [0.9, 1.0, 1.1], metadata={"help": "speed_pitch: speed factors, one drawn per pair"}
    )
    pitch_steps: list[float] = field(
        default_factory=lambda: [-2.0, 2.0],
        metadata={"help": "speed_pitch: pitch shifts in semitones, one drawn per pair"},
    )
    noise_dir: str | None = field(default=None, metadata={"help": "noise: folder of noise recordings"})
    noise_snrs: list[float] = field(
        default_factory=lambda: [20.0, 10.0, 5.0],
        metadata={"help": "noise: signal-to-noise ratios in dB, one drawn per pair"},
    )
    speaker_f0: str | None = field(
        default=None,
        metadata={
            "help": "voice: tab-separated speaker, floor and ceiling of its pitch in Hz; default: from each utterance"
        },
    )
    perturb_on: str = field(
        default="worker",
        metadata={
            "help": "where the second view is made: worker (processes that load the data) or device (where the model "
            "is, all pairs of an update at once, so that a GPU does not wait for CPU cores); the draws are the same",
            "choices": ["worker", "device"],
        },
    )
    cache_decoded: str | None = field(
        default=None,
        metadata={
            "help": "folder that keeps decoded utterances (115 to 230 MB an hour), so that each file is decoded once; "
            "'true' for one in the cache of datasets; not for streams"
        },
    )


@dataclass
class LaserTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's values and the size of an update in pairs."""

    output_dir: str | None = field(
        default="outputs/laser", metadata={"help": "where checkpoints, encoder, records and plots go"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "start over: delete what an earlier run left in output_dir"}
    )
    pairs_per_update: int = field(
        default=8,
        metadata={
            "help": "pairs of one optimiser step over all processes; gradient accumulation follows from it, "
            "per_device_train_batch_size and the number of processes"
        },
    )
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "pairs in memory at once; no effect on the result but through dropout"}
    )
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "held-out pairs in memory at once"})
    max_steps: int = field(default=3600, metadata={"help": "optimiser steps"})
    warmup_steps: float = field(default=1000, metadata={"help": "steps of linear warm-up"})
    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate; linear decay to 0"})
    adam_epsilon: float = field(default=1e-7, metadata={"help": "epsilon of AdamW (as S3PRL's)"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay of AdamW"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    seed: int = field(default=1337, metadata={"help": "seed of data order, perturbation, dropout and head"})
    logging_steps: float = field(default=25, metadata={"help": "steps between two lines of the log"})
    logging_first_step: bool = field(default=True, metadata={"help": "log step 1 too"})
    eval_steps: float | None = field(default=200, metadata={"help": "steps between two looks at held-out pairs"})
    save_steps: float = field(default=200, metadata={"help": "steps between two checkpoints"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    report_to: str | None = field(default="tensorboard", metadata={"help": "where to log: tensorboard, wandb, none"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "processes that decode and perturb"})
    collapse_cosine_fraction: float = field(
        default=0.5,
        metadata={"help": "collapse alarm: share of the way to 1 that the mean cosine of frames has covered"},
    )
    collapse_rank_fraction: float = field(
        default=0.5, metadata={"help": "collapse alarm: effective rank below this share of its start"}
    )
    plots: bool = field(default=True, metadata={"help": "draw loss terms and an alignment at the end"})
    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "publish the finished run on the Hub, with a card that says that it is not evaluated yet "
            "(push_to_hub.py adds results later)"
        },
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "repository to publish to: ORG/NAME"})
    hub_private_repo: bool = field(default=False, metadata={"help": "create that repository as a private one"})
    torch_compile: bool = field(
        default=False,
        metadata={"help": "compile the Transformer layers with torch.compile (a C++ compiler is needed on the CPU)"},
    )
    profile_updates: int = field(
        default=0,
        metadata={
            "help": "profile so many updates (after two of warm-up): shares of decoding, perturbing, encoding, loss, "
            "backward, optimiser and waiting go to profile.json in output_dir"
        },
    )

    seconds_per_update: float | None = field(
        default=None,
        metadata={
            "help": "instead of --pairs_per_update: fill an update with utterances of like length up to so many "
            "seconds of source speech over all processes (Spin: 256); not for streams"
        },
    )
    per_device_train_seconds: float | None = field(
        default=None,
        metadata={"help": "with --seconds_per_update: source speech in memory at once; default: this process's share"},
    )
    min_learning_rate: float = field(
        default=0.0, metadata={"help": "where the linear warm-up starts and the linear decay ends"}
    )
    coupled_weight_decay: bool = field(
        default=False, metadata={"help": "Adam with L2 regularisation of all parameters instead of AdamW (Spin)"}
    )

    def __post_init__(self):
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps follows from --pairs_per_update, --per_device_train_batch_size and the "
                "number of processes; set those instead"
            )
        # The Trainer would upload its checkpoints; what is published is the finished run.
        self.publish, self.push_to_hub = self.push_to_hub, False
        if self.publish:
            if not self.hub_model_id:
                raise ValueError(
                    "--push_to_hub needs --hub_model_id ORG/NAME; a finished run can also be published later, with "
                    "push_to_hub.py"
                )
            validate_repo_id(self.hub_model_id)
        super().__post_init__()
        if self.torch_compile:
            # Meant for accelerate, which would compile the model as a whole: LaserTrainer compiles its layers.
            for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
                os.environ.pop(name, None)
        if not 0 <= self.min_learning_rate < self.learning_rate:
            raise ValueError(
                f"--min_learning_rate must be at least 0 and below --learning_rate {self.learning_rate:g}, got "
                f"{self.min_learning_rate:g}"
            )
        if self.min_learning_rate and self.lr_scheduler_type != "linear":
            raise ValueError(f"--min_learning_rate is for the linear schedule, not for {self.lr_scheduler_type}")
        for name in ("seconds_per_update", "per_device_train_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be positive, got {value}")
        if self.per_device_train_seconds and not self.seconds_per_update:
            raise ValueError("--per_device_train_seconds goes with --seconds_per_update")
        # Every trained parameter takes part in every loss; and those of an objective are used outside the forward
        # call, where the search for unused ones would not see them.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        # The collator's keys are not the model's argument names; the loss stops on NaN itself, with the ids.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False


def precision(args: TrainingArguments) -> str:
    """Number format of the forward pass: fp32, bf16 or fp16."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


OPTION_GROUPS = (ModelArguments, ObjectiveArguments, DataArguments, LaserTrainingArguments)
