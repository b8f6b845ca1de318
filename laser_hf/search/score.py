"""What a point is worth: one number for the last layer of a fine-tuned encoder; higher is better.

`ProbeScore` is the average precision of word discrimination across speakers (seconds), `QbeScore` query by example as
SUPERB measures it (what the LASER paper chose its values by). Both leave a `results.json` of `laser_hf.superb` beside
the run.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..records import located
from .errors import SearchError

QBE_METRICS = {"map": "mean_average_precision", "mtwv": "mtwv"}


@dataclass(frozen=True)
class ProbeScore:
    """Word discrimination on aligned speech, by default the held-out voices of the shipped speech.

    The selection of utterances and words is that of `train.py --eval_probe`, so that the curves of a run and the table
    of a search show the same quantity.
    """

    data: str | None = None
    alignments: str | None = None
    splits: tuple[str, ...] | None = None
    kind: ClassVar[str] = "probe"

    def _load(self):
        from ..superb.probing.diagnostics import load_probe_speech
        from ..training.probe import DEMO_SPEECH, SETTINGS

        if (self.data is None) != (self.alignments is None):
            raise SearchError("--score probe takes --alignments and --data together, or neither for the shipped speech")
        if self.alignments is None:
            if self.splits:
                raise SearchError("--splits are sub-folders of --data, which is not given")
            folder = located(DEMO_SPEECH)
            return load_probe_speech(folder, Path(folder) / "words.tsv", ["heldout"], SETTINGS)
        try:
            return load_probe_speech(self.data, self.alignments, self.splits, SETTINGS)
        except (OSError, ValueError) as error:
            raise SearchError(f"--score probe: {error}") from error

    def describe(self) -> dict[str, Any]:
        """The definition: metric, settings, what was chosen on and a digest of it; `source` names the files.

        Raises:
            SearchError: speech that cannot be used.
        """
        from ..training.probe import DEMO_SPEECH, SETTINGS

        speech = self._load()
        speakers: dict[str, set[str]] = {}
        digest = hashlib.sha256()
        for token in speech.words:
            speakers.setdefault(token.label, set()).add(token.speaker)
            digest.update(f"{token.utterance} {token.label} {token.start:.3f} {token.duration:.3f}\n".encode())
        if not any(len(said_by) > 1 for said_by in speakers.values()) or len(speakers) < 2:
            raise SearchError(
                f"--score probe compares words of several speakers, and of the {len(speakers)} words selected from "
                f"{self.alignments} no two speakers share one; give more speech"
            )
        where = "the held-out voices of the shipped speech"
        if self.data is not None:
            where = f"aligned speech in {self.data}" + (f" ({', '.join(self.splits)})" if self.splits else "")
        return {
            "kind": self.kind,
            "metric": "word_ap_across",
            "name": "average precision of word discrimination across speakers",
            "layer": "last",
            "chosen_on": where,
            "settings": asdict(SETTINGS),
            "revision": digest.hexdigest(),
            "source": {
                "data": self.data or DEMO_SPEECH,
                "alignments": self.alignments or f"{DEMO_SPEECH}/words.tsv",
                "splits": list(self.splits) if self.splits else None if self.data else ["heldout"],
                **speech.counts(),
            },
        }

    def measure(self, model: Path, output_dir: Path, device: str, do_normalize: bool = False) -> float:
        """The score of an exported encoder; its record goes to `output_dir`."""
        from ..encoders import load_encoder
        from ..superb.probing.diagnostics import word_average_precision
        from ..superb.results import describe_model, write_results
        from ..training.probe import SETTINGS

        began = time.time()
        speech = self._load()
        encoder = load_encoder(str(model), do_normalize=do_normalize).to(device)
        value = word_average_precision(encoder, speech, -1, SETTINGS)
        described = self.describe()
        split = "+".join(described["source"]["splits"] or ["all"])
        write_results(
            output_dir,
            task="probe",
            protocol="quick",
            model=describe_model(str(model), encoder),
            metrics=[{"metric": described["metric"], "value": value, "unit": "fraction", "split": split, "layer": -1}],
            data=described["source"],
            hyper_parameters=described["settings"],
            seed=SETTINGS.seed,
            wall_seconds=time.time() - began,
        )
        return value


@dataclass(frozen=True)
class QbeScore:
    """Query by example, `python -m laser_hf.superb qbe --layer -1`.

    QUESST 2014 has development queries, and those are used unless `on_test` asks for the evaluation queries.
    """

    data: str
    metric: str = "map"
    on_test: bool = False
    kind: ClassVar[str] = "qbe"

    def describe(self) -> dict[str, Any]:
        """As `ProbeScore.describe`.

        Raises:
            SearchError: no query-by-example task in `data`, or `on_test` where nothing tells test from development.
        """
        from ..superb.qbe.data import QbeDataError, read_data

        try:
            task = read_data(self.data, self._split)
        except (QbeDataError, OSError) as error:
            raise SearchError(f"--qbe_data {self.data}: {error}") from error
        if task.layout == "quesst2014":
            where = f"the {self._split} queries of QUESST 2014"
            where += ", its TEST set, as --score_on_test asked for" if self.on_test else ""
        elif self.on_test:
            raise SearchError(
                "--score_on_test chooses the eval queries of QUESST 2014; tables hold one set of queries, and only you "
                "know whether it is a test set. Leave the option out"
            )
        else:
            where = f"the tables in {self.data}, which do not say whether they are a development or a test set"
        return {
            "kind": self.kind,
            "metric": QBE_METRICS[self.metric],
            "name": "mean average precision" if self.metric == "map" else "maximum term-weighted value",
            "layer": "last",
            "trials": self._trials(task.layout),
            "chosen_on": where,
            "revision": task.revision(),
            "source": {
                "data": self.data,
                "layout": task.layout,
                "split": self._split if task.layout == "quesst2014" else None,
                "queries": len(task.queries),
                "documents": len(task.documents),
            },
        }

    @property
    def _split(self) -> str:
        return "eval" if self.on_test else "dev"

    def _trials(self, layout: str) -> str:
        """MTWV of QUESST 2014 is over its full lists, as SUPERB reports it."""
        return "superb" if layout == "quesst2014" and self.metric == "mtwv" else "subset"

    def measure(self, model: Path, output_dir: Path, device: str, do_normalize: bool = False) -> float:
        """As `ProbeScore.measure`."""
        from ..superb.qbe import task

        if do_normalize:
            raise SearchError("--score qbe feeds waveforms as they are, and these runs train with --do_normalize")
        parser = argparse.ArgumentParser()
        task.add_arguments(parser)
        given = ["--model", str(model), "--data", self.data, "--output_dir", str(output_dir), "--device", device]
        record = task.run(parser.parse_args([*given, "--layer=-1", "--split", self._split, "--skip_dev"]))
        wanted = QBE_METRICS[self.metric], self._trials(record["data"]["layout"])
        return next(m["value"] for m in record["metrics"] if (m["metric"], m["trials"]) == wanted)


Score = ProbeScore | QbeScore


def to_job(score: Score) -> dict[str, Any]:
    """`score` as JSON."""
    return {"kind": score.kind, **asdict(score)}


def from_job(job: dict[str, Any]) -> Score:
    """The inverse of `to_job`."""
    settings = {key: value for key, value in job.items() if key != "kind"}
    if job["kind"] == QbeScore.kind:
        return QbeScore(**settings)
    return ProbeScore(**{**settings, "splits": tuple(settings["splits"]) if settings["splits"] else None})
