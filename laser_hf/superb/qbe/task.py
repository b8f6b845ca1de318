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
from ..features import VIEWS, chosen_features, pick_device
from ..features import add_arguments as add_feature_arguments
from . import report, scoring
from .data import GAIN_DB, SPLITS, QbeData, read_data
from .matching import SHORTEST_QUERY
from .scoring import PERTURBED, PRIMARY, Evaluation, evaluate, mean_average_precision
from .search import search_layers

logger = logging.getLogger(__name__)

NAME = "qbe"
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
    views = {}
    if arguments.perturbed:
        views = {
            view: replace(data, split=view, queries=[replace(q, view=view) for q in data.queries]) for view in VIEWS
        }
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
    about |= {"perturbed": arguments.perturbed}
    folder.prepare(recipe | about, arguments.overwrite_output_dir)
    resumed = folder.unfinished
    if resumed:
        logger.info("Going on with what an earlier run left in %s", folder.path / CACHE)
    searches, skipped = search_layers(features, layers, [*sets, *views.values()], folder.path / CACHE, device)

    evaluations: dict[tuple[str, int], Evaluation] = {}
    for layer in layers:
        thresholds = None
        for one in reversed(sets):
            if not (one.targets & one.trials & ~np.isnan(searches[one.split, layer].scores)).any():
                first = ": ".join(next(iter(skipped.values())))
                lost = f"{len(skipped)} recordings cannot be used, the first is {first}"
                raise LaserError(f"no query of {one.split} has a target left: {lost}")
            found = evaluate(one, searches[one.split, layer].scores, layer, thresholds)
            thresholds = {which: found.find("mtwv", which)["threshold"] for which in found.measured}
            evaluations[one.split, layer] = found
        if views:
            average = {
                view: mean_average_precision(np.where(one.trials, searches[view, layer].scores, np.nan), one.targets)
                for view, one in views.items()
            }
            entry = {"metric": PERTURBED, "value": fmean(average.values()), "unit": "fraction", "split": data.split}
            entry |= {"layer": layer, "trials": "subset", "views": average}
            evaluations[data.split, layer].metrics.append(entry)
    chosen = layers[-1]
    if arguments.select_layer == "dev":
        chosen = max(layers, key=lambda layer: evaluations["dev", layer].find(metric, trials)["value"])
    report.print_table(evaluations, (data.split, chosen), trials)

    best = evaluations[data.split, chosen]
    names = [query.name for query in data.queries], [document.name for document in data.documents]
    report.write_scores(folder.path / report.SCORES, best.normalised, *names, data.targets)
    report.write_stdlist(folder.path / report.STDLIST, best.normalised, *names)
    report.write_skipped(folder.path / report.SKIPPED, sets, skipped)
    if len(layers) > 1:
        report.draw_layers(folder.path, {layer: evaluations[data.split, layer] for layer in layers}, arguments.model)
    report.draw(folder.path, data, best, searches[data.split, chosen], chosen, features, trials)

    first = best.find(metric, trials)
    metrics = [m for evaluation in evaluations.values() for m in evaluation.metrics]
    described = {
        one.split: {"source": str(source)}
        | report.describe(one, ~np.isnan(searches[one.split, chosen].scores), skipped)
        for one, source in zip(sets, (arguments.data, arguments.dev_data or arguments.data), strict=False)
    }
    record = new_record(
        NAME,
        protocol=protocol,
        model=model,
        metrics=[first, *(m for m in metrics if m is not first)],
        data={"layout": data.layout, **described.pop(data.split), **described},
        recipe=recipe | {"device": str(device)},
        seed=arguments.seed if arguments.model.startswith("random:") else None,
        wall_seconds=time.time() - began,
        layers={layer: evaluations[data.split, layer].find(metric, trials)["value"] for layer in layers},
        resumed=resumed,
    )
    folder.finish(record)
    shutil.rmtree(folder.path / CACHE, ignore_errors=True)
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
        mend = "--dev_data FOLDER, or QUESST 2014 without --skip_dev"
        raise LaserError(f"--select_layer dev needs a development set: {mend}")
    sets = [data] if dev is None else [data, dev]
    for one in sets:
        without = int((~(one.targets & one.trials).any(1)).sum())
        if without == len(one.queries):
            raise LaserError(f"no query of {one.split} has a target, a document of another speaker that holds its word")
        if without:
            counts = (without, len(one.queries), one.split)
            logger.warning("%d of %d queries of %s have no target; they count in no measure", *counts)
    return sets


def _digest(data: QbeData) -> str:
    """Digest of the task and of the start and size of its files, wherever they lie: a later run must find the same."""
    digest = hashlib.sha256(data.revision().encode())
    for path in dict.fromkeys(utterance.audio for utterance in (*data.queries, *data.documents)):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(2**16))
    return digest.hexdigest()[:12]
