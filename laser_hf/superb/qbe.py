"""Query by example: rank spoken documents by how well a spoken word aligns with some part of them.

The matching is SUPERB's (S3PRL `quesst14_dtw`, as LASER and SCORE report it): frames of one hidden layer,
normalised over all frames of all queries and documents; exponential cosine distance; every query frame's
distances to a document scaled to [0, 1]; asymmetric dynamic time warping with open begin and open end.
Nothing is trained.

The data of protocol "quick" is a folder with three tab-separated tables, each with a header line:

* `queries.tsv`: query, audio, start_seconds, duration_seconds, speaker, word
* `documents.tsv`: document, audio, speaker
* `targets.tsv`: query, document (the document holds the word)

Audio paths are relative to the folder. Documents of the query's own speaker are no trials, so only matches
across speakers count. The metric is mean average precision, a fraction.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..encoders import SAMPLE_RATE, SpeechEncoder, load_encoder
from ..records import portable, provenance, read_json, write_json

HELP = "query by example on spoken words: mean average precision across speakers"
SHORTEST_QUERY = 5  # frames; shorter queries score 0 everywhere, as in SUPERB

Frontend = Callable[[torch.Tensor], list[torch.Tensor]]
"""Maps a waveform (samples,) to its layers, each (frames, dim)."""


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Query:
    """A spoken word: `start` and `duration` in seconds of the file `audio`."""

    name: str
    audio: Path
    start: float
    duration: float
    speaker: str


@dataclass(frozen=True)
class Document:
    """A recording that may hold the word."""

    name: str
    audio: Path
    speaker: str


@dataclass(frozen=True)
class QbeData:
    """Queries, documents, and two (queries, documents) bool matrices: which pairs are targets and trials."""

    queries: list[Query]
    documents: list[Document]
    targets: torch.Tensor
    trials: torch.Tensor


def _read_table(path: Path, columns: set[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = columns - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}")
        return list(reader)


def read_data(folder: Path) -> QbeData:
    """Read the three tables of `folder`.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a column is missing, or `targets.tsv` names an unknown query or document.
    """
    folder = Path(folder)
    queries = [
        Query(
            r["query"],
            folder / r["audio"],
            float(r["start_seconds"]),
            float(r["duration_seconds"]),
            r["speaker"],
        )
        for r in _read_table(folder / "queries.tsv", {"query", "audio", "start_seconds", "duration_seconds", "speaker"})
    ]
    documents = [
        Document(r["document"], folder / r["audio"], r["speaker"])
        for r in _read_table(folder / "documents.tsv", {"document", "audio", "speaker"})
    ]
    rows = {query.name: index for index, query in enumerate(queries)}
    columns = {document.name: index for index, document in enumerate(documents)}
    targets = torch.zeros(len(queries), len(documents), dtype=torch.bool)
    for entry in _read_table(folder / "targets.tsv", {"query", "document"}):
        if entry["query"] not in rows or entry["document"] not in columns:
            raise ValueError(f"targets.tsv names an unknown query or document: {entry}")
        targets[rows[entry["query"]], columns[entry["document"]]] = True
    trials = torch.tensor([[query.speaker != document.speaker for document in documents] for query in queries])
    return QbeData(queries, documents, targets, trials)


def read_audio(path: Path, start: float = 0.0, duration: float | None = None) -> torch.Tensor:
    """Samples of a 16 kHz mono file, float32 (samples,), optionally `duration` seconds from `start`.

    Raises:
        ValueError: another sampling rate, or more than one channel.
    """
    first = round(start * SAMPLE_RATE)
    count = -1 if duration is None else round(duration * SAMPLE_RATE)
    samples, rate = soundfile.read(path, frames=count, start=first, dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise ValueError(f"{path}: expected 16 kHz mono, got {rate} Hz with shape {samples.shape}")
    return torch.from_numpy(samples)


# ------------------------------------------------------------------------------------------------ frontends


def spectral_frontend(kind: str, frames_per_second: int = 100, deltas: int = 1) -> Frontend:
    """13 MFCCs ("mfcc") or 23 log mel energies ("logmel") of 25 ms, with `deltas` orders of differences.

    Raises:
        ValueError: an unknown kind.
    """
    mel = {"n_fft": 400, "hop_length": SAMPLE_RATE // frames_per_second, "n_mels": 23, "center": False}
    if kind == "mfcc":
        transform = torchaudio.transforms.MFCC(SAMPLE_RATE, 13, melkwargs=mel)
    elif kind == "logmel":
        spectrum = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **mel)

        def transform(waveform: torch.Tensor) -> torch.Tensor:
            return spectrum(waveform).clamp_min(1e-10).log()
    else:
        raise ValueError(f"unknown features {kind!r}; expected 'mfcc' or 'logmel'")

    def frontend(waveform: torch.Tensor) -> list[torch.Tensor]:
        orders = [transform(waveform)]
        for _ in range(deltas):
            orders.append(torchaudio.functional.compute_deltas(orders[-1]))
        return [torch.cat(orders).T]

    return frontend


def encoder_frontend(encoder: SpeechEncoder) -> Frontend:
    """All hidden states of `encoder`, one utterance at a time."""

    def frontend(waveform: torch.Tensor) -> list[torch.Tensor]:
        output = encoder(waveform[None], torch.tensor([len(waveform)]), output_hidden_states=True)
        return [state[0] for state in output.hidden_states]

    return frontend


def load_frontend(model: str, seed: int = 0, frames_per_second: int = 100, deltas: int = 1) -> Frontend:
    """`mfcc`, `logmel`, `random:MODEL` (MODEL's architecture, fresh weights), or an encoder id or folder."""
    if model in ("mfcc", "logmel"):
        return spectral_frontend(model, frames_per_second, deltas)
    if not model.startswith("random:"):
        return encoder_frontend(load_encoder(model).eval())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        like = load_encoder(model.removeprefix("random:"))
        fresh = type(like.model)(like.base_config)
    return encoder_frontend(SpeechEncoder(fresh, like.base_config, like.do_normalize).eval())


# ------------------------------------------------------------------------------------------------- matching


def normalise_globally(utterances: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Zero mean and unit (unbiased) standard deviation of each dimension over all frames of `utterances`."""
    frames = torch.cat(list(utterances))
    mean, deviation = frames.mean(0), frames.std(0).clamp_min(1e-9)
    return [(utterance - mean) / deviation for utterance in utterances]


def distances(query: torch.Tensor, frames: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Exponential cosine distances of query frames (n, dim) to document frames (sum(lengths), dim).

    `exp(1 - cosine) - 1`, whose constant cancels as each row is then mapped to [0, 1] within each document
    (denominator at least 1e-9). Both inputs have frames of unit norm. Returns (n, sum(lengths)).
    """
    distance = (query @ frames.T).neg_().add_(1).exp_()
    for part in distance.split(lengths, dim=1):  # views: scaled in place
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        part.sub_(low).div_((high - low).clamp_min(1e-9))
    return distance


def subsequence_costs(distance: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Cost of the best alignment of a query with a part of each document: (documents,).

    Asymmetric dynamic time warping with open begin and end: every step takes one query frame and zero, one or
    two document frames,

        g(0, j) = d(0, j),   g(i, j) = d(i, j) + min(g(i-1, j), g(i-1, j-1), g(i-1, j-2)),

    and the cost is the least g(n-1, j) divided by n. It equals `normalizedDistance` of dtw-python with
    `step_pattern="asymmetric", open_begin=True, open_end=True`.

    Args:
        distance: (n, sum(lengths)), the documents side by side; all documents are advanced at once.
        lengths: frames of each document, at least 1.
    """
    ends = torch.tensor(lengths).cumsum(0)
    starts = ends - torch.tensor(lengths)
    seconds = torch.minimum(starts + 1, ends[-1] - 1)[torch.tensor(lengths) > 1]
    cost = distance[0]
    for row in distance[1:]:
        one, two = cost.roll(1), cost.roll(2)
        one[starts] = two[starts] = two[seconds] = math.inf
        cost = row + torch.minimum(cost, torch.minimum(one, two))
    return torch.stack([part.min() for part in cost.split(lengths)]) / len(distance)


def match(queries: Sequence[torch.Tensor], documents: Sequence[torch.Tensor], progress: str = "") -> torch.Tensor:
    """Scores (queries, documents): minus the alignment cost, 0 for queries of fewer than five frames."""
    count = len(queries)
    normalised = [F.normalize(u, dim=1) for u in normalise_globally([*queries, *documents])]
    frames, lengths = torch.cat(normalised[count:]), [len(document) for document in documents]
    scores = torch.zeros(count, len(lengths))
    for row in tqdm(range(count), desc=progress or "matching", disable=not progress, mininterval=2):
        if len(queries[row]) >= SHORTEST_QUERY:
            scores[row] = -subsequence_costs(distances(normalised[row], frames, lengths), lengths)
    return scores


def normalise_scores(scores: torch.Tensor, trials: torch.Tensor) -> torch.Tensor:
    """Zero mean, unit (population) deviation of each query's scores over its trials; NaN elsewhere."""
    normalised = torch.full_like(scores, math.nan)
    for row, (values, used) in enumerate(zip(scores, trials, strict=True)):
        kept = values[used]
        if len(kept):
            normalised[row, used] = (kept - kept.mean()) / kept.std(correction=0).clamp_min(1e-9)
    return normalised


# ---------------------------------------------------------------------------------------------------- metric


def average_precision(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean, over the targets, of the precision at the rank of each; NaN without targets.

    Of equal scores the targets rank last, so that constant scores earn nothing.

    Args:
        scores: (documents,), higher ranks first.
        targets: (documents,) bool.
    """
    order = sorted(range(len(scores)), key=lambda index: (-float(scores[index]), bool(targets[index])))
    hits = targets[order].double()
    if not hits.any():
        return math.nan
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float(precision[hits.bool()].mean())


def mean_average_precision(scores: torch.Tensor, targets: torch.Tensor, trials: torch.Tensor) -> float:
    """Mean of `average_precision` over queries with a target among their trials; all (queries, documents).

    Raises:
        ValueError: no query has a target.
    """
    values = [average_precision(s[used], t[used]) for s, t, used in zip(scores, targets, trials, strict=True)]
    values = [value for value in values if not math.isnan(value)]
    if not values:
        raise ValueError("no query has a target among its trials")
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------------ task


@torch.inference_mode()
def extract(frontend: Frontend, data: QbeData, layers: list[int] | None) -> list[tuple[int, list, list]]:
    """Frames by layer: [(layer, query frames, document frames)]; `None` for all, negative from the last."""
    waveforms = [read_audio(query.audio, query.start, query.duration) for query in data.queries]
    waveforms += [read_audio(document.audio) for document in data.documents]
    count = len(data.queries)
    utterances = []
    for waveform in tqdm(waveforms, desc="frames", mininterval=2):
        states = frontend(waveform)
        if layers is None:
            layers = list(range(len(states)))
        layers = [layer % len(states) if -len(states) <= layer < len(states) else layer for layer in layers]
        unknown = [layer for layer in layers if layer >= len(states) or layer < 0]
        if unknown:
            raise ValueError(f"the model has layers 0 to {len(states) - 1}, not {unknown[0]}")
        utterances.append([states[layer] for layer in layers])
    by_layer = [list(frames) for frames in zip(*utterances, strict=True)]
    return [(layer, f[:count], f[count:]) for layer, f in zip(layers, by_layer, strict=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="encoder id or folder, random:ID_OR_FOLDER (fresh weights), mfcc or logmel",
    )
    add("--data", type=Path, required=True, help="folder with queries.tsv, documents.tsv and targets.tsv")
    add("--output_dir", type=Path, required=True, help="results.json and scores.tsv go here")
    add(
        "--layer",
        default="-1",
        help="hidden state: 0 is the input of the first layer, -1 the last one; or all",
    )
    add("--seed", type=int, default=0, help="of the weights of random:MODEL")
    add("--frames_per_second", type=int, default=100, help="frame rate of mfcc and logmel")
    add("--deltas", type=int, default=1, help="orders of time differences appended to mfcc and logmel")
    add("--summary", type=Path, help="JSON file in which this record is entered beside those of other systems")
    add("--name", help="what the summary calls this system; the model if not given")


def run(arguments: argparse.Namespace) -> dict:
    """Evaluate, write `results.json` and `scores.tsv` (of the last layer asked for), return the record."""
    began = time.time()
    spectral = arguments.model in ("mfcc", "logmel")
    data = read_data(arguments.data)
    frontend = load_frontend(arguments.model, arguments.seed, arguments.frames_per_second, arguments.deltas)
    layers = None if arguments.layer == "all" else [int(arguments.layer)]
    values = {}
    for layer, queries, documents in extract(frontend, data, layers):
        scores = match(queries, documents, progress=f"layer {layer}")
        values[layer] = mean_average_precision(scores, data.targets, data.trials)
        print(f"layer {layer}: mean average precision {values[layer]:.4f}")
    settings = {"distance": "cosine_exp", "shortest_query_frames": SHORTEST_QUERY}
    if spectral:
        settings |= {"frames_per_second": arguments.frames_per_second, "deltas": arguments.deltas}
    if arguments.model.startswith("random:"):
        settings["seed"] = arguments.seed
    record = {
        "task": "qbe",
        "protocol": "quick",
        "model": portable(arguments.model),
        "metric": "mean_average_precision",
        "unit": "fraction",
        "value": values[layer],
        "layer": layer,
        "layers": values,
        "queries": int((data.targets & data.trials).any(1).sum()),
        "documents": len(data.documents),
        "settings": settings,
        "wall_seconds": round(time.time() - began, 1),
    } | provenance()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "results.json", record)
    write_scores(arguments.output_dir / "scores.tsv", data, scores)
    if arguments.summary:
        enter(arguments.summary, arguments.name or arguments.model, record)
    return record


def enter(summary: Path, name: str, record: dict) -> None:
    """Add `record` to the `systems` of a JSON file, in place of an earlier one of the same name."""
    systems = read_json(summary)["systems"] if summary.exists() else []
    systems = [system for system in systems if system["name"] != name]
    write_json(summary, {"systems": [*systems, {"name": name} | record]})


def write_scores(path: Path, data: QbeData, scores: torch.Tensor) -> None:
    """One line a trial: query, document, score (normalised within the query, 4 decimals), target (0 or 1)."""
    normalised = normalise_scores(scores, data.trials).tolist()
    lines = ["query\tdocument\tscore\ttarget"]
    for row, query in enumerate(data.queries):
        for column in data.trials[row].nonzero()[:, 0].tolist():
            target = int(data.targets[row, column])
            lines.append(f"{query.name}\t{data.documents[column].name}\t{normalised[row][column]:.4f}\t{target}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
