"""What a point is worth: one number for the last layer of a fine-tuned encoder; higher is better.

`discrimination` is the average precision of word discrimination across speakers (seconds), `qbe` query by example as
SUPERB measures it (what the LASER paper chose its values by). Both leave a record beside the run.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import LaserError
from ..records import RESULTS, describe_model, located, new_record, write_json

QBE_METRICS = {
    "map": ("mean_average_precision", "mean average precision"),
    "mtwv": ("mtwv", "maximum term-weighted value"),
}


@dataclass(frozen=True)
class Score:
    """The measure that a search chooses by.

    Attributes:
        kind: `discrimination` or `qbe`.
        metric: its name in records.
        title: its name in words.
        chosen_on: the data in words.
        digest: SHA-256 over what is compared; another digest is another score.
        source: where the data are and how much of them is used.
        settings: what else decides the value.
    """

    kind: str
    metric: str
    title: str
    chosen_on: str
    digest: str
    source: dict[str, Any]
    settings: dict[str, Any]

    def definition(self) -> dict[str, Any]:
        """What decides the value, wherever the data lie."""
        settings = {f"{self.kind}_{name}": value for name, value in self.settings.items()}
        return {"score": self.kind, "metric": self.metric, "data_digest": self.digest, **settings}

    def measure(self, model: Path, output_dir: Path, device: str, do_normalize: bool = False) -> float:
        """The score of an exported encoder.

        Args:
            model: its folder.
            output_dir: for the record.
            device: to encode on.
            do_normalize: whether the encoder takes waveforms scaled to zero mean and unit variance.
        """
        if self.kind == "qbe":
            return _measure_qbe(self, model, output_dir, device)
        return _measure_words(self, model, output_dir, device, do_normalize)


def discrimination_score(
    data: str | None = None, alignments: str | None = None, splits: Sequence[str] | None = None
) -> Score:
    """Word discrimination as `train.py --eval_alignments` measures it, so that curves and tables show one quantity.

    Args:
        data: folder of speech; the held-out voices of the shipped speech if not given.
        alignments: tab-separated words with their times in that speech.
        splits: sub-folders of `data`; all of it if not given.

    Raises:
        LaserError: speech that cannot be used.
    """
    from ..training.evaluation import DEMO_SPEECH, SETTINGS

    if (data is None) != (alignments is None):
        raise LaserError("--score discrimination takes --alignments and --data together, or neither of them")
    where = "the held-out voices of the shipped speech"
    if data is not None:
        where = f"aligned speech in {data}" + (f" ({', '.join(splits)})" if splits else "")
    elif splits:
        raise LaserError("--splits are sub-folders of --data, which is not given")
    else:
        data, alignments, splits = DEMO_SPEECH, f"{DEMO_SPEECH}/words.tsv", ["heldout"]
    source = {"data": data, "alignments": alignments, "splits": list(splits) if splits else None}
    speech = _load_speech(source)
    speakers: dict[str, set[str]] = {}
    digest = hashlib.sha256()
    for token in speech.words:
        speakers.setdefault(token.label, set()).add(token.speaker)
        digest.update(f"{token.utterance} {token.label} {token.start:.3f} {token.duration:.3f}\n".encode())
    if len(speakers) < 2 or all(len(said_by) < 2 for said_by in speakers.values()):
        raise LaserError(
            f"--score discrimination compares words of several speakers, and of the {len(speakers)} words selected "
            f"from {alignments} no two speakers share one; give more speech"
        )
    title = "average precision of word discrimination across speakers"
    source |= speech.counts()
    return Score("discrimination", "word_ap_across", title, where, digest.hexdigest(), source, asdict(SETTINGS))


def _load_speech(source: dict[str, Any]):
    from ..superb.discrimination import load_aligned_speech
    from ..training.evaluation import SETTINGS

    return load_aligned_speech(located(source["data"]), located(source["alignments"]), source["splits"], SETTINGS)


def _measure_words(score: Score, model: Path, output_dir: Path, device: str, do_normalize: bool) -> float:
    from ..encoders import load_encoder
    from ..superb.discrimination import word_average_precision
    from ..training.evaluation import SETTINGS

    began = time.time()
    encoder = load_encoder(str(model), do_normalize=do_normalize).to(device)
    value = word_average_precision(encoder, _load_speech(score.source), -1, SETTINGS)
    split = "+".join(score.source["splits"] or ["all"])
    record = new_record(
        "discrimination",
        protocol="quick",
        model=describe_model(str(model), weights=encoder.model.state_dict()),
        metrics=[{"metric": score.metric, "value": value, "unit": "fraction", "split": split, "layer": -1}],
        recipe=score.settings,
        data=score.source,
        seed=SETTINGS.seed,
        wall_seconds=time.time() - began,
    )
    write_json(output_dir / RESULTS, record)
    return value


def qbe_score(data: str, metric: str = "map") -> Score:
    """Query by example, `python -m laser_hf.superb qbe --layer -1`, on the development queries of QUESST 2014.

    Args:
        data: QUESST 2014, or a folder with three tables.
        metric: one of `QBE_METRICS`.

    Raises:
        LaserError: no query-by-example task in `data`.
    """
    from ..superb.qbe.data import read_data

    task = read_data(data, "dev")
    quesst = task.layout == "quesst2014"
    where = f"the tables in {data}, which do not say whether they are a development or a test set"
    if quesst:
        where = "the development queries of QUESST 2014"
    source = {"data": data, "layout": task.layout, "queries": len(task.queries), "documents": len(task.documents)}
    # SUPERB reports MTWV over the full lists of QUESST 2014.
    settings = {"trials": "superb" if quesst and metric == "mtwv" else "subset"}
    return Score("qbe", *QBE_METRICS[metric], where, task.revision(), source, settings)


def _measure_qbe(score: Score, model: Path, output_dir: Path, device: str) -> float:
    from ..superb.qbe import task

    parser = argparse.ArgumentParser()
    task.add_arguments(parser)
    given = ["--model", str(model), "--data", score.source["data"], "--output_dir", str(output_dir), "--device", device]
    if (output_dir / RESULTS).exists():  # of another measure
        given.append("--overwrite_output_dir")
    record = task.run(parser.parse_args([*given, "--layer=-1", "--split=dev", "--skip_dev"]))
    wanted = score.metric, score.settings["trials"]
    return next(m["value"] for m in record["metrics"] if (m["metric"], m["trials"]) == wanted)
