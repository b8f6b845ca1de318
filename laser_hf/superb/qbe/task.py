"""`laser-hf superb qbe`: options, and the run from audio to record."""

from __future__ import annotations

import argparse
import hashlib
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ...errors import LaserError
from ...records import RESULTS, new_record
from ...runs import RunFolder
from ..features import VIEWS, chosen_features, pick_device, plot_layers
from ..features import add_arguments as add_feature_arguments
from . import report, scoring
from .data import GAIN_DB, SPLITS, QbeData, read_data
from .matching import SHORTEST_QUERY
from .scoring import PRIMARY, evaluate, mean_average_precision, normalise_scores
from .search import search_layers

logger = logging.getLogger(__name__)

HELP = "query by example: find recordings that hold a spoken word; MTWV and mean average precision"
CACHE = "cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser)
    add = parser.add_argument
    add("--perturbed", action="store_true", help="measure invariance too: words with another speed or pitch")
    layouts = (
        "QUESST 2014 (quesst14Database): protocol superb, judged by MTWV; or a folder with queries.tsv, documents.tsv "
        "and targets.tsv: protocol quick, judged by mean average precision"
    )
    add("--data", type=Path, required=True, help=layouts)
    add("--split", choices=SPLITS, default="eval", help="queries of QUESST 2014 to report on")
    which = "which of several layers is reported: the last one named (LASER), or the best on dev (SUPERB)"
    add("--select_layer", choices=("last", "dev"), default="last", help=which)
    add("--dev_data", type=Path, help="development set as three tables: gives the threshold of act_twv and the layer")
    add("--skip_dev", action="store_true", help="leave out the dev queries of QUESST 2014")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, or go on with an interrupted run, leave the files in `output_dir`, return the record."""
    began = time.time()
    folder = RunFolder(arguments.output_dir, RESULTS, progress=(CACHE,), owned=report.FILES)
    data, *_ = sets = _read_sets(arguments)
    perturbed = VIEWS if arguments.perturbed else ()
    views = {v: replace(data, split=v, queries=[replace(q, view=v) for q in data.queries]) for v in perturbed}
    device = pick_device(arguments.device)
    features, layers = chosen_features(arguments)
    model = features.describe(arguments.model)
    protocol = "superb" if data.layout == "quesst2014" else "quick"
    metric, trials = PRIMARY[protocol]
    recipe = {"layers": layers, "select_layer": arguments.select_layer, "shortest_query_frames": SHORTEST_QUERY}
    recipe |= {"beta": scoring.BETA, "trials": trials}
    if data.layout == "quesst2014":
        recipe |= {"gain_db": GAIN_DB, "default_score": scoring.DEFAULT_SCORE}
    about = {"model": (model["weights_sha256"] or arguments.model)[:12], "data": [_digest(one) for one in sets]}
    folder.prepare(recipe | about | {"perturbed": arguments.perturbed}, arguments.overwrite_output_dir)
    resumed, cache = folder.unfinished, folder.path / CACHE
    if resumed:
        logger.info("Going on with what an earlier run left in %s", cache)
    searches, skipped = search_layers(features, layers, [*sets, *views.values()], cache, device)

    evaluations: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for layer in layers:
        thresholds = None
        for one in reversed(sets):
            scores = searches[one.split, layer].scores
            if not (one.targets & one.trials & ~np.isnan(scores)).any():
                first = ": ".join(next(iter(skipped.values())))
                lost = f"{len(skipped)} recordings cannot be used, the first is {first}"
                raise LaserError(f"no query of {one.split} has a target left: {lost}")
            found = evaluations[one.split, layer] = evaluate(one, scores, layer, thresholds)
            thresholds = {entry["trials"]: entry["threshold"] for entry in found if entry["metric"] == "mtwv"}
        if views:
            average = {
                view: mean_average_precision(np.where(one.trials, searches[view, layer].scores, np.nan), one.targets)
                for view, one in views.items()
            }
            entry = {"metric": "perturbed_mean_average_precision", "value": fmean(average.values()), "unit": "fraction"}
            entry |= {"split": data.split, "layer": layer, "trials": "subset", "views": average}
            evaluations[data.split, layer].append(entry)
    primary = {
        key: next(entry for entry in found if (entry["metric"], entry["trials"]) == (metric, trials))
        for key, found in evaluations.items()
    }
    for (split, layer), found in sorted(evaluations.items()):
        said = (f"{entry['metric']} ({entry['trials']}) {entry['value']:.4f}" for entry in found)
        print(f"{split}, layer {layer}: {', '.join(said)}")
    by_dev = arguments.select_layer == "dev"
    chosen = max(layers, key=lambda layer: primary["dev", layer]["value"]) if by_dev else layers[-1]
    best = searches[data.split, chosen]
    normalised = normalise_scores(np.where(data.trials, best.scores, np.nan))
    names = [query.name for query in data.queries], [document.name for document in data.documents]
    report.write_scores(folder.path / report.SCORES, normalised, *names, data.targets)
    report.write_stdlist(folder.path / report.STDLIST, normalised, *names)
    report.write_skipped(folder.path / report.SKIPPED, sets, skipped)
    if len(layers) > 1:
        every = [entry for layer in layers for entry in evaluations[data.split, layer]]
        plot_layers(report.PANELS, every, folder.path / report.LAYERS, arguments.model)
    report.draw(folder.path, data, normalised, best, chosen, features)

    first = primary[data.split, chosen]
    metrics = [entry for found in evaluations.values() for entry in found if entry is not first]
    described = {}
    for one, source in zip(sets, (arguments.data, arguments.dev_data or arguments.data), strict=False):
        counts = report.describe(one, ~np.isnan(searches[one.split, chosen].scores), skipped)
        described[one.split] = {"source": str(source), **counts}
    record = new_record(
        "qbe",
        protocol=protocol,
        model=model,
        metrics=[first, *metrics],
        data={"layout": data.layout, **described.pop(data.split), **described},
        recipe=recipe | {"device": str(device)},
        seed=arguments.seed if arguments.model.startswith("random:") else None,
        wall_seconds=time.time() - began,
        layers={layer: primary[data.split, layer]["value"] for layer in layers},
        resumed=resumed,
    )
    folder.finish(record)
    shutil.rmtree(cache, ignore_errors=True)
    print(f"{metric} {first['value']:.4f} ({protocol} protocol, layer {chosen}); record in {folder.path}")
    return record


def _read_sets(arguments: argparse.Namespace) -> list[QbeData]:
    """The set to report on, and the development set if there is one; their splits have different names."""
    data = read_data(arguments.data, arguments.split)
    dev = None
    if arguments.dev_data is not None:
        dev = replace(read_data(arguments.dev_data, "dev"), split="dev")
        if "quesst2014" in (data.layout, dev.layout):
            raise LaserError("--dev_data is for tables; QUESST 2014 has dev queries of its own")
    elif data.layout == "quesst2014" and data.split != "dev" and not arguments.skip_dev:
        dev = read_data(arguments.data, "dev")
    if arguments.select_layer == "dev" and dev is None:
        raise LaserError("--select_layer dev needs a development set: --dev_data, or QUESST 2014 without --skip_dev")
    sets = [data] if dev is None else [data, dev]
    for one in sets:
        if not (one.targets & one.trials).any():
            raise LaserError(f"no query of {one.split} has a target, a document of another speaker that holds its word")
    return sets


def _digest(data: QbeData) -> str:
    """Digest of the task and of the start and size of its files, wherever they lie."""
    digest = hashlib.sha256(data.revision().encode())
    for path in dict.fromkeys(utterance.audio for utterance in (*data.queries, *data.documents)):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(2**16))
    return digest.hexdigest()[:12]
