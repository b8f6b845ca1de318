"""Optimiser and schedule that `transformers` does not have ready: those of Spin's released recipe."""

from __future__ import annotations

import torch
from torch import nn
from transformers import get_scheduler

from .arguments import LaserTrainingArguments


def coupled_adam(model: nn.Module, args: LaserTrainingArguments) -> torch.optim.Adam:
    """Adam whose weight decay is an L2 term of the gradient, over all trained parameters, biases and norms included."""
    return torch.optim.Adam(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )


def linear_from_minimum(optimizer: torch.optim.Optimizer, args: LaserTrainingArguments, num_training_steps: int):
    """Linear warm-up from `min_learning_rate` to the peak and linear decay back to it."""
    warm_up = args.get_warmup_steps(num_training_steps)
    return get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=warm_up,
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs={
            "num_decay_steps": num_training_steps - warm_up,
            "decay_type": "linear",
            "min_lr_ratio": args.min_learning_rate / args.learning_rate,
        },
    )
