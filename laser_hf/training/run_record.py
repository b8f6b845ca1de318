"""The record of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..encoders import SpeechEncoder
from ..publishing import sample_features
from ..records import portable, provenance
from .arguments import precision
from .options import Options
from .speech_pairs import SpeechPairs
from .trainer import LaserTrainer


def run_record(
    options: Options,
    trainer: LaserTrainer,
    encoder: SpeechEncoder,
    trainable: list[str],
    pairs: SpeechPairs,
    skipped: dict[str, Any],
    own_state: dict[str, Any],
) -> dict[str, Any]:
    """Everything a card, a table or a repeated run needs to know.

    Args:
        trainable: names of the encoder's trained parameters.
        skipped: utterances left out while training (`train`) and while evaluating (`held_out`).
        own_state: `LaserTrainer.own_state`, over all processes.
    """
    args, state = options.training, trainer.state
    model = options.model
    local = Path(model.model_name_or_path).exists()
    return {
        "method": options.objective.objective,
        "preset": options.preset,
        "base_model": {
            "name": Path(model.model_name_or_path).name if local else model.model_name_or_path,
            "local": local,
            "revision": encoder.revision,
            "model_type": encoder.config.model_type,
            "parameters": sum(p.numel() for p in encoder.parameters()),
        },
        "recipe": options.recipe(),
        "trained_parameters": trainable,
        "data": {
            "source": portable(options.data.train_data),
            "local": Path(options.data.train_data).exists(),
            "name": options.data.train_name,
            "split": options.data.train_split,
            "utterances": len(pairs.train) if hasattr(pairs.train, "__len__") else None,
            "left_out": pairs.left_out,
            "skipped": skipped["train"],
            "held_out": portable(options.data.eval_data),
            "held_out_name": options.data.eval_name,
            "held_out_split": options.data.eval_split,
            "held_out_skipped": skipped["held_out"],
        },
        "seed": args.seed,
        "updates": state.global_step,
        "processed_hours": own_state["processed_seconds"] / 3600,
        "wall_time_seconds": round(own_state["trained_seconds"], 1),
        "processes": args.world_size,
        "precision": precision(args),
        "collapse": {"fired_at": trainer.monitor.fired_at, "start": trainer.monitor.start},
        "first": _summary(state.log_history, first=True),
        "last": _summary(state.log_history, first=False),
        "sample_features": sample_features(encoder.model, model.do_normalize),
        **provenance(),
    }


def _summary(history: list[dict[str, Any]], first: bool) -> dict[str, Any]:
    """First or last value of every logged quantity, with its step."""
    summary: dict[str, Any] = {}
    for entry in history if not first else reversed(history):
        summary.update(
            {
                key: {"step": entry["step"], "value": value}
                for key, value in entry.items()
                if key not in ("step", "epoch") and not key.startswith("train_") and key != "total_flos"
            }
        )
    return summary
