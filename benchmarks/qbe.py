"""Query by example: alignment of many pairs at once against dtw-python pair by pair, on the same distances.

Frames are those of the encoder shipped with laser_hf, of words and recordings of its synthetic demo speech, or of
queries and documents of `--data`. Three things are timed side by side:

* `align`: distances of all pairs are given, float32. dtw-python gets each pair's part of them, scaled row by row with
  NumPy as SUPERB does it, and computes the distance only; laser_hf takes the whole matrix.
* `dtw() alone`: as before, with the scaling of rows left out of the time.
* `from frames`: the same from frames on, SUPERB's way being scipy's `cdist` for each pair.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dtw import dtw
from scipy.spatial.distance import cdist

import laser_hf
from benchmarks import common
from benchmarks.common import save_record, time_side_by_side
from laser_hf.superb.features import Features, Utterance, load_features, read_waveform
from laser_hf.superb.qbe.data import read_data
from laser_hf.superb.qbe.matching import SHORTEST_QUERY, alignment_costs, frame_distances, match, unit_frames

DEMO = Path(laser_hf.__file__).resolve().parent / "demo"
TOLERANCE = 1e-6
TARGET = 30.0


def demo_task() -> tuple[list[Utterance], list[Utterance]]:
    """Held-out words of the demo speech, and the recordings that hold them."""
    audio = {path.stem: path for path in sorted((DEMO / "speech" / "heldout").rglob("*.opus"))}
    with (DEMO / "speech" / "words.tsv").open(newline="", encoding="utf-8") as file:
        words = [row for row in csv.DictReader(file, delimiter="\t") if row["utterance"] in audio]
    queries = [
        Utterance(f"q{n}", audio[w["utterance"]], float(w["start_seconds"]), float(w["duration_seconds"]))
        for n, w in enumerate(words)
    ]
    return queries, [Utterance(name, path) for name, path in audio.items()]


def load_frames(
    features: Features, queries: list[Utterance], documents: list[Utterance]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Unit-norm frames of the last layer, normalised over all of them."""
    last = [features.layers - 1]
    frames = [features([read_waveform(u, features.shortest)], last)[0][0] for u in (*queries, *documents)]
    everything = torch.cat(frames).double()
    mean, deviation = everything.mean(0).numpy(), everything.std(0).numpy()
    units = [unit_frames(one, mean, deviation) for one in frames]
    found = [one for one in units[: len(queries)] if len(one) >= SHORTEST_QUERY]
    return found, units[len(queries) :]


def scaled(part: np.ndarray) -> np.ndarray:
    low, high = part.min(1, keepdims=True), part.max(1, keepdims=True)
    return (part - low) / np.clip(high - low, 1e-9, None)


def by_dtw_python(part: np.ndarray) -> float:
    return dtw(part, step_pattern="asymmetric", open_begin=True, open_end=True, distance_only=True).normalizedDistance


def contestants(
    queries: list[torch.Tensor], documents: list[torch.Tensor]
) -> dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]:
    """Peer and laser_hf by name of what is timed; each returns costs (queries, documents)."""
    rows, columns = [len(query) for query in queries], [len(document) for document in documents]
    distance = frame_distances(torch.cat(queries), torch.cat(documents))
    parts = [
        [np.ascontiguousarray(part) for part in np.split(band, np.cumsum(columns)[:-1], axis=1)]
        for band in np.split(distance.double().numpy(), np.cumsum(rows)[:-1])
    ]
    ready = [[scaled(part) for part in band] for band in parts]
    pairs = [[query.double().numpy() for query in queries], [document.double().numpy() for document in documents]]

    def ours() -> np.ndarray:
        return alignment_costs(distance, rows, columns).numpy()

    return {
        "align": (lambda: np.array([[by_dtw_python(scaled(p)) for p in band] for band in parts]), ours),
        "dtw() alone": (lambda: np.array([[by_dtw_python(p) for p in band] for band in ready]), ours),
        "from frames": (
            lambda: np.array(
                [[by_dtw_python(scaled(np.exp(cdist(q, d, "cosine")) - 1)) for d in pairs[1]] for q in pairs[0]]
            ),
            lambda: -match(queries, documents).numpy(),
        ),
    }


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark; return its record's content.

    Raises:
        SystemExit: scores that differ by more than 1e-6.
    """
    parser = common.build_parser("qbe", __doc__, "four queries, six documents, one repetition", device=None)
    parser.add_argument("--data", type=Path, help="task to take queries and documents from (default: demo speech)")
    parser.add_argument("--model", default=str(DEMO / "encoder"), help="encoder id or folder, mfcc, logmel")
    parser.add_argument("--queries", type=int, default=40, help="at most")
    parser.add_argument("--documents", type=int, default=40, help="at most")
    parser.add_argument("--repeats", type=int, default=5)
    options = common.parse_options(parser, argv)
    if options.quick:
        options.queries, options.documents, options.repeats = 4, 6, 1
    if options.data is None:
        queries, documents = demo_task()
    else:
        data = read_data(options.data)
        queries, documents = data.queries, data.documents
    # Evenly over the lists, so that all speakers are in.
    queries = [queries[i] for i in np.unique(np.linspace(0, len(queries) - 1, options.queries).astype(int))]
    documents = [documents[i] for i in np.unique(np.linspace(0, len(documents) - 1, options.documents).astype(int))]
    query_frames, document_frames = load_frames(load_features(options.model), queries, documents)
    cells = sum(map(len, query_frames)) * sum(map(len, document_frames))
    print(f"{len(query_frames)} queries x {len(document_frames)} documents, {cells / 1e6:.1f} million pairs of frames")
    results = {}
    for name, (peer, ours) in contestants(query_frames, document_frames).items():
        difference = float(np.abs(peer() - ours()).max())
        times = time_side_by_side({"dtw-python": peer, "laser_hf": ours}, options.repeats)
        ratio = times["dtw-python"].median / times["laser_hf"].median
        results[name] = {**times, "ratio": ratio, "largest_difference": difference}
        print(f"{name}: dtw-python {times['dtw-python']}")
        print(f"{' ' * len(name)}  laser_hf   {times['laser_hf']}")
        print(f"{' ' * len(name)}  {ratio:.0f} times as fast, scores differ by at most {difference:.1e}")
        if difference > TOLERANCE:
            raise SystemExit(f"scores differ by {difference:.1e}, more than {TOLERANCE:.0e}")
    content = {
        "task": {
            "source": options.data.name if options.data else "laser_hf demo speech",
            "queries": len(query_frames),
            "documents": len(document_frames),
            "query_frames": sum(map(len, query_frames)),
            "document_frames": sum(map(len, document_frames)),
            "dim": query_frames[0].shape[1],
        },
        "results": results,
        "target_ratio": TARGET,
        "tolerance": TOLERANCE,
    }
    print(f"record: {save_record('qbe', content, peers=('dtw-python', 'scipy'), path=options.output)}")
    return content


if __name__ == "__main__":
    main()
