"""What a point is worth: one number for the last layer of a fine-tuned encoder, from a task of `laser_hf.superb`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LaserError
from ..records import TRAINING_RECORD, located, plain, read_json, read_record
from ..runs import CONTENT, RECIPE_NAME, differences
from ..superb import find_task

QBE_METRICS = {"map": "mean_average_precision", "mtwv": "mtwv"}


@dataclass(frozen=True)
class Score:
    """The measure that a search chooses by."""

    task: str  # `discrimination` or `qbe`
    options: list[str]  # of the task, as its command line takes them
    metric: dict[str, str]  # entries of the metric in the task's record, `metric` (its name) first
    title: str  # the metric in words
    chosen_on: str  # the data in words
    data: dict[str, Any]  # where they are and how much of them is used
    digest: str  # SHA-256 over what is compared; another digest is another score

    def definition(self) -> dict[str, Any]:
        """What decides the value, wherever the data lie."""
        return {"score": self.task, **self.metric, "data_digest": self.digest}

    def measure(self, model: Path, output_dir: Path, device: str) -> float:
        """The score of an exported encoder in the folder `model`; the task's record goes to `output_dir`."""
        task, parser = find_task(self.task), argparse.ArgumentParser()
        task.add_arguments(parser)
        given = ["--model", str(model), "--layer=-1", "--device", device]
        given += ["--output_dir", str(output_dir), "--overwrite_output_dir"]  # what a killed search left
        record = task.run(parser.parse_args([*given, *map(located, self.options)]))
        return next(metric["value"] for metric in record["metrics"] if self.metric.items() <= metric.items())

    def train_and_measure(self, argv: Sequence[str], folder: Path) -> float:
        """Train or resume a run, if it is not finished; score it and delete its checkpoints.

        `LaserError` from training, for a finished run of another recipe, or a score that is not a number.
        """
        from ..training import parse_options, run_training

        options = parse_options(argv)
        if not (folder / TRAINING_RECORD).is_file():
            run_training(options)
        read_record(folder / TRAINING_RECORD)
        recipe = read_or_empty(folder / RECIPE_NAME)
        if changed := differences(recipe, plain(options.recipe())):
            raise LaserError(f"{folder} holds a finished run of another recipe ({'; '.join(changed)}); move it away")
        check_content(recipe, folder.parent)
        value = self.measure(folder, folder / "score", "cpu" if options.training.use_cpu else "auto")
        if not math.isfinite(value):
            raise LaserError("the score is not a number: do all frames of the encoder look alike?")
        for checkpoint in folder.glob("checkpoint-*"):  # nothing resumes a finished run
            shutil.rmtree(checkpoint)
        return value


def read_or_empty(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing if it is missing or damaged."""
    with contextlib.suppress(ValueError, TypeError):
        return dict(read_json(path))
    return {}


def check_content(recipe: Mapping[str, Any], runs: Path) -> None:
    """`LaserError` if the same options gave another run in `runs` another base model or other speech."""
    for path in sorted(runs.glob(f"*/{RECIPE_NAME}")):
        other = read_or_empty(path)
        ours, theirs = recipe.get(CONTENT, {}), other.get(CONTENT, {})
        options = differences({**other, CONTENT: {}}, {**recipe, CONTENT: {}})
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name] and not any(one.startswith(f"--{name} ") for one in options):
                raise LaserError(f"the content of --{name} has changed since {path.parent.name} was trained")


def discrimination_score(data: str | None, alignments: str | None, split: Sequence[str] | None) -> Score:
    """Word discrimination as `laser-hf train --eval_alignments` measures it, so curves and tables show one quantity.

    Without `data`, on the held-out voices of the shipped speech. `LaserError` for speech that cannot be used.
    """
    from ..superb.discrimination import load_aligned_speech
    from ..training.speech import DEMO_SPEECH, SETTINGS

    if (data is None) != (alignments is None):
        raise LaserError("--score discrimination takes --alignments and --data together, or neither of them")
    if data is None and split:
        raise LaserError("--split names sub-folders of --data, which is not given")
    chosen_on = f"aligned speech in {data}" + (f" ({', '.join(split)})" if split else "")
    if data is None:
        data, alignments, split = DEMO_SPEECH, f"{DEMO_SPEECH}/words.tsv", ["heldout"]
        chosen_on = "the held-out voices of the shipped speech"
    speech = load_aligned_speech(located(data), located(alignments), split, SETTINGS)
    said_by = {(token.label, token.speaker) for token in speech.words}
    if len(said_by) == len({label for label, _ in said_by}):
        raise LaserError(f"of the words selected from {alignments} no two speakers share one; give more speech")
    settings = {name: value for name, value in asdict(SETTINGS).items() if name != "seed"}
    options = ["--data", data, "--alignments", alignments, *(f"--{name}={value}" for name, value in settings.items())]
    options += ["--split", *split] if split else []
    compared = [(t.utterance, t.label, round(t.start, 3), round(t.duration, 3)) for t in speech.words]
    digest = hashlib.sha256(repr((settings, compared)).encode())
    for name in sorted({token.utterance for token in speech.words}):
        digest.update(np.ascontiguousarray(speech.waveforms[name]))
    title = "average precision of word discrimination across speakers"
    used = {"source": data, "alignments": alignments, "splits": split, **speech.counts()}
    return Score("discrimination", options, {"metric": "word_ap_across"}, title, chosen_on, used, digest.hexdigest())


def qbe_score(data: str, metric: str) -> Score:
    """Query by example on the development queries of QUESST 2014, or on three tables; `LaserError` for neither."""
    from ..superb.qbe.data import read_data

    task = read_data(data, "dev")
    is_quesst = task.layout == "quesst2014"
    tables = f"the tables in {data}, which do not say whether they are a development or a test set"
    chosen_on = "the development queries of QUESST 2014" if is_quesst else tables
    title = {"map": "mean average precision", "mtwv": "maximum term-weighted value"}[metric]
    # SUPERB reports MTWV over the full lists of QUESST 2014.
    entries = {"metric": QBE_METRICS[metric], "trials": "superb" if is_quesst and metric == "mtwv" else "subset"}
    used = {"source": data, "layout": task.layout, "queries": len(task.queries), "documents": len(task.documents)}
    options = ["--data", data, "--split=dev", "--skip_dev"]
    return Score("qbe", options, entries, title, chosen_on, used, task.revision())
