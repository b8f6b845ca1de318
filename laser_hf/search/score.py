"""What a point is worth: one number for the last layer of a fine-tuned encoder, from a task of `laser_hf.superb`.

`discrimination` is the average precision of word discrimination across speakers (seconds), `qbe` query by example (what
the LASER paper chose its values by). Higher is better.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import LaserError
from ..records import RESULTS, located
from ..superb import find_task

QBE_METRICS = {
    "map": ("mean_average_precision", "mean average precision"),
    "mtwv": ("mtwv", "maximum term-weighted value"),
}


@dataclass(frozen=True)
class Score:
    """The measure that a search chooses by.

    Attributes:
        task: `discrimination` or `qbe`.
        options: of the task, as its command line takes them.
        metric: entries of the metric in the task's record, `metric` (its name) first.
        title: the metric in words.
        chosen_on: the data in words.
        data: where they are and how much of them is used.
        digest: SHA-256 over what is compared; another digest is another score.
    """

    task: str
    options: list[str]
    metric: dict[str, str]
    title: str
    chosen_on: str
    data: dict[str, Any]
    digest: str

    def definition(self) -> dict[str, Any]:
        """What decides the value, wherever the data lie."""
        return {"score": self.task, **self.metric, "data_digest": self.digest}

    def measure(self, model: Path, output_dir: Path, device: str) -> float:
        """The score of an exported encoder in the folder `model`; the task's record goes to `output_dir`."""
        task = find_task(self.task)
        parser = argparse.ArgumentParser()
        task.add_arguments(parser)
        given = ["--model", str(model), "--layer=-1", "--device", device, "--output_dir", str(output_dir)]
        if (output_dir / RESULTS).exists():  # a search that was killed before it entered the result
            given.append("--overwrite_output_dir")
        record = task.run(parser.parse_args([*given, *map(located, self.options)]))
        return next(metric["value"] for metric in record["metrics"] if self.metric.items() <= metric.items())


def discrimination_score(
    data: str | None = None, alignments: str | None = None, split: Sequence[str] | None = None
) -> Score:
    """Word discrimination as `train.py --eval_alignments` measures it, so that curves and tables show one quantity.

    Args:
        data: folder of speech; the held-out voices of the shipped speech if not given.
        alignments: tab-separated words with their times in that speech.
        split: sub-folders of `data`; all of it if not given.

    Raises:
        LaserError: speech that cannot be used.
    """
    from ..superb.discrimination import load_aligned_speech
    from ..training.speech import DEMO_SPEECH, SETTINGS

    if (data is None) != (alignments is None):
        raise LaserError("--score discrimination takes --alignments and --data together, or neither of them")
    chosen_on = "the held-out voices of the shipped speech"
    if data is not None:
        chosen_on = f"aligned speech in {data}" + (f" ({', '.join(split)})" if split else "")
    elif split:
        raise LaserError("--split names sub-folders of --data, which is not given")
    else:
        data, alignments, split = DEMO_SPEECH, f"{DEMO_SPEECH}/words.tsv", ["heldout"]
    speech = load_aligned_speech(located(data), located(alignments), split, SETTINGS)
    speakers: dict[str, set[str]] = {}
    for token in speech.words:
        speakers.setdefault(token.label, set()).add(token.speaker)
    if len(speakers) < 2 or all(len(said_by) < 2 for said_by in speakers.values()):
        raise LaserError(
            f"--score discrimination compares words of several speakers, and of the {len(speakers)} words selected "
            f"from {alignments} no two speakers share one; give more speech"
        )
    settings = {name: value for name, value in asdict(SETTINGS).items() if name != "seed"}
    options = ["--data", data, "--alignments", alignments, *(["--split", *split] if split else [])]
    options += [f"--{name}={value}" for name, value in settings.items()]
    compared = [(t.utterance, t.label, round(t.start, 3), round(t.duration, 3)) for t in speech.words]
    return Score(
        "discrimination",
        options,
        {"metric": "word_ap_across"},
        "average precision of word discrimination across speakers",
        chosen_on,
        {"source": data, "alignments": alignments, "splits": split, **speech.counts()},
        hashlib.sha256(repr((settings, compared)).encode()).hexdigest(),
    )


def qbe_score(data: str, metric: str = "map") -> Score:
    """Query by example, `python -m laser_hf.superb qbe`, on the development queries of QUESST 2014.

    Args:
        data: QUESST 2014, or a folder with three tables.
        metric: one of `QBE_METRICS`.

    Raises:
        LaserError: no query-by-example task in `data`.
    """
    from ..superb.qbe.data import read_data

    task = read_data(data, "dev")
    chosen_on = f"the tables in {data}, which do not say whether they are a development or a test set"
    if task.layout == "quesst2014":
        chosen_on = "the development queries of QUESST 2014"
    name, title = QBE_METRICS[metric]
    # SUPERB reports MTWV over the full lists of QUESST 2014.
    trials = "superb" if task.layout == "quesst2014" and metric == "mtwv" else "subset"
    return Score(
        "qbe",
        ["--data", data, "--split=dev", "--skip_dev"],
        {"metric": name, "trials": trials},
        title,
        chosen_on,
        {"source": data, "layout": task.layout, "queries": len(task.queries), "documents": len(task.documents)},
        task.revision(),
    )
