"""Pictures of a run that has just ended, from the models it has in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..data import SpeechSourceError
from ..encoders import SpeechEncoder
from ..plots import ViewPair, draw_pictures, held_out_words, run_title, source_name
from .micro_batches import perturb_pairs
from .options import Options
from .probe import plot_probe
from .trainer import LaserTrainer

logger = logging.getLogger(__name__)


def draw_finished_run(
    options: Options, trainer: LaserTrainer, before: SpeechEncoder, record: dict[str, Any], folder: Path
) -> list[Path]:
    """Loss terms, alignment and self-similarity of one utterance, map of words, and the probe if there was one.

    Args:
        options: of the run.
        trainer: holds the encoder after training, the log and the pairs.
        before: the encoder as it was, on the CPU.
        record: of the run.
        folder: made if it is not there.
    """
    held_out = trainer.eval_dataset is not None
    pairs = trainer.eval_dataset if held_out else trainer.train_dataset
    pair = next((item for item in pairs if not item["skip"]), None)
    if pair is not None:
        if pair["perturbed"] is None:
            (pair,) = perturb_pairs([pair], trainer.perturbation)
        source = source_name(options.data.eval_data if held_out else options.data.train_data)
        pair = ViewPair(pair["id"], pair["clean"], pair["perturbed"], pair["drawn"], source)
    try:
        words = held_out_words(options.data.eval_data)
    except (SpeechSourceError, FileNotFoundError, ValueError) as error:
        logger.warning("no map of words: %s", error)
        words = None
    title = run_title(record)
    drawn = draw_pictures(
        folder,
        {Path(options.training.output_dir).resolve().name: trainer.state.log_history},
        title,
        before=before,
        after=trainer.model.encoder.cpu(),
        pair=pair,
        words=words,
        gamma=options.objective.gamma,
    )
    if plot_probe(trainer.state.log_history, folder / "probe.png", f"{title}, last layer"):
        drawn.append(folder / "probe.png")
    return drawn
