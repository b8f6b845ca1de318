"""`python -m laser_hf.superb qbe`: options, the run from audio to record, and what is left behind."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..results import describe_model, write_results
from . import scoring
from .data import QbeData, QbeDataError, read_data
from .evaluate import PRIMARY, TRIALS, Evaluation, count, evaluate
from .frontends import SPECTRAL, EncoderFrontend, choose_layers, load_frontend
from .matching import DISTANCES, SHORTEST_QUERY
from .quesst import GAIN_DB
from .report import count_skipped, draw, enter, print_table, write_skipped
from .stdlist import STDLIST, write_scores, write_stdlist
from .sweep import open_cache, search_all

logger = logging.getLogger(__name__)

HELP = "query by example: find recordings that hold a spoken word; MTWV and mean average precision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="encoder id or folder, random:ID_OR_FOLDER (fresh weights), mfcc or logmel")
    add("--model_revision", help="branch, tag or commit of a model on the Hub")
    add(
        "--data",
        type=Path,
        required=True,
        help="QUESST 2014 (quesst14Database), or a folder with queries.tsv, documents.tsv and targets.tsv",
    )
    add("--output_dir", type=Path, required=True, help="results.json, scores.tsv, benchmark.stdlist.xml, plots")
    add(
        "--protocol",
        choices=("superb", "quick"),
        help="superb needs QUESST 2014 and is judged by MTWV; quick takes any data and is judged by mean average "
        "precision; the default is superb on QUESST 2014, quick on tables",
    )
    add("--layer", default="-1", help="hidden state: 0 is the input of the first layer, -1 the last; 3,6,9; or all")
    add(
        "--select_layer",
        choices=("last", "dev"),
        default="last",
        help="which of several layers is reported: the last one named (LASER), or the best on dev (SUPERB)",
    )
    add("--split", choices=("eval", "dev"), default="eval", help="queries of QUESST 2014 to report on")
    add("--dev_data", type=Path, help="development set as three tables: gives the threshold of act_twv and the layer")
    add("--skip_dev", action="store_true", help="leave out the dev queries of QUESST 2014")
    add(
        "--trials",
        choices=TRIALS,
        help="trials of the reported MTWV: superb, the full term list and collection with -10 for what is not "
        "searched (default on QUESST 2014), or subset, only the pairs that are searched; the record has both",
    )
    add("--distance", choices=DISTANCES, default=DISTANCES[0], help="between frames")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")
    add("--batch_seconds", type=float, default=60.0, help="padded audio that is encoded at a time")
    add("--block_documents", type=int, default=128, help="documents that are matched at a time")
    add("--cache_gib", type=float, default=64.0, help="disk for frames; more layers than fit are encoded in turns")
    add("--keep_cache", action="store_true", help="leave frames in OUTPUT_DIR/cache, for another --distance")
    add("--seed", type=int, default=0, help="of the weights of random:MODEL")
    add("--frames_per_second", type=int, default=100, help="frame rate of mfcc and logmel")
    add("--deltas", type=int, default=1, help="orders of time differences appended to mfcc and logmel")
    add("--summary", type=Path, help="JSON file in which this record is entered beside those of other systems")
    add("--name", help="what the summary calls this system; the model if not given")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, leave the files in `output_dir`, return the record.

    A run that was interrupted goes on where it stopped when it is started again in the same way.

    Raises:
        QbeDataError, ValueError: data or options that do not fit; the message says how to mend it.
    """
    began = time.time()
    data, dev = _read_sets(arguments)
    protocol, trials = _choose_protocol(arguments, data)
    device = torch.device(arguments.device if arguments.device != "auto" else _best_device())
    frontend = load_frontend(
        arguments.model,
        revision=arguments.model_revision,
        seed=arguments.seed,
        frames_per_second=arguments.frames_per_second,
        deltas=arguments.deltas,
        device=device,
    )
    layers = choose_layers(arguments.layer, frontend.layers)
    model = describe_model(arguments.model, frontend.encoder if isinstance(frontend, EncoderFrontend) else None)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    sets = [data] if dev is None else [data, dev]
    utterances = list(dict.fromkeys(u for one in sets for u in (*one.queries, *one.documents)))
    cache = open_cache(arguments, model, utterances, data.gain, layers)
    resumed = (cache / "skipped.json").exists() or any(cache.rglob("journal.jsonl"))
    if resumed:
        print(f"going on with what an earlier run left in {cache}")
    searches, skipped = search_all(arguments, frontend, layers, sets, utterances, cache, device)

    evaluations: dict[tuple[str, int], Evaluation] = {}
    for layer in layers:
        thresholds = None
        if dev is not None:
            evaluations["dev", layer] = evaluate(dev, searches[1, layer].scores, layer)
            thresholds = evaluations["dev", layer].thresholds()
        evaluations["main", layer] = evaluate(data, searches[0, layer].scores, layer, thresholds)
    metric = PRIMARY[protocol]
    of_metric = trials if metric == "mtwv" else "subset"
    chosen = layers[-1]
    if arguments.select_layer == "dev":
        chosen = max(layers, key=lambda layer: evaluations["dev", layer].value(metric, of_metric))
    print_table(evaluations, layers, chosen, trials)

    best = evaluations["main", chosen]
    queries, documents = [query.name for query in data.queries], [document.name for document in data.documents]
    write_scores(arguments.output_dir / "scores.tsv", best.normalised, queries, documents, data.targets)
    write_stdlist(arguments.output_dir / STDLIST, best.normalised, queries, documents)
    write_skipped(arguments.output_dir / "skipped.tsv", sets, skipped)
    draw(arguments.output_dir, data, best, searches[0, chosen], chosen, frontend, arguments.distance, trials)

    metrics = [m for (_, layer), e in evaluations.items() for m in e.metrics]
    first = next(m for m in best.metrics if m["metric"] == metric and m["trials"] == of_metric)
    metrics = [first, *(m for m in metrics if m is not first)]
    described = {
        "source": str(arguments.data),
        "layout": data.layout,
        **count(data, ~np.isnan(searches[0, chosen].scores)),
        "skipped": count_skipped(data, skipped),
    }
    if dev is not None:
        described["dev"] = {
            "source": str(arguments.dev_data or arguments.data),
            **count(dev, ~np.isnan(searches[1, chosen].scores)),
            "skipped": count_skipped(dev, skipped),
        }
    random = arguments.model.startswith("random:")
    record = write_results(
        arguments.output_dir,
        task="qbe",
        protocol=protocol,
        model=model,
        metrics=metrics,
        data=described,
        hyper_parameters=_hyper_parameters(arguments, data, trials, device),
        seed=arguments.seed if random else None,
        wall_seconds=time.time() - began,
        layers={layer: evaluations["main", layer].value(metric, of_metric) for layer in layers},
        resumed=resumed,
    )
    if not arguments.keep_cache:
        shutil.rmtree(arguments.output_dir / "cache", ignore_errors=True)
    if arguments.summary:
        enter(arguments.summary, arguments.name or arguments.model, record)
    print(f"{metric} {first['value']:.4f} ({protocol} protocol, layer {chosen}); record in {arguments.output_dir}")
    return record


def _read_sets(arguments: argparse.Namespace) -> tuple[QbeData, QbeData | None]:
    """The set to report on, and the development set if there is one."""
    data = read_data(arguments.data, arguments.split)
    dev = None
    if arguments.dev_data is not None:
        dev = replace(read_data(arguments.dev_data, "dev"), split="dev")
        if dev.layout != data.layout:
            raise QbeDataError(f"--dev_data is laid out as {dev.layout}, --data as {data.layout}")
    elif data.layout == "quesst2014" and data.split != "dev" and not arguments.skip_dev:
        dev = read_data(arguments.data, "dev")
    if arguments.select_layer == "dev" and dev is None:
        raise QbeDataError(
            "--select_layer dev needs a development set: --dev_data FOLDER with three tables, or QUESST 2014 with "
            "--split eval and without --skip_dev"
        )
    for one in (data,) if dev is None else (data, dev):
        without = int((~(one.targets & one.trials).any(1)).sum())
        if without:
            logger.warning(
                "%d of %d queries of %s have no target; they count in no measure", without, len(one.queries), one.split
            )
    return data, dev


def _choose_protocol(arguments: argparse.Namespace, data: QbeData) -> tuple[str, str]:
    quesst = data.layout == "quesst2014"
    if not quesst and (arguments.protocol == "superb" or arguments.trials == "superb"):
        option = "--protocol superb" if arguments.protocol == "superb" else "--trials superb"
        raise QbeDataError(f"{option} is defined on QUESST 2014 only, and {arguments.data} holds tables")
    default = "superb" if quesst else "quick"
    return arguments.protocol or default, arguments.trials or ("superb" if quesst else "subset")


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _hyper_parameters(
    arguments: argparse.Namespace, data: QbeData, trials: str, device: torch.device
) -> dict[str, Any]:
    values = {
        "layer": arguments.layer,
        "select_layer": arguments.select_layer,
        "distance": arguments.distance,
        "shortest_query_frames": SHORTEST_QUERY,
        "beta": scoring.BETA,
        "trials": trials,
        "batch_seconds": arguments.batch_seconds,
        "block_documents": arguments.block_documents,
        "device": str(device),
    }
    if data.layout == "quesst2014":
        values |= {"gain_db": GAIN_DB, "default_score": scoring.DEFAULT_SCORE}
    if arguments.model in SPECTRAL:
        values |= {"frames_per_second": arguments.frames_per_second, "deltas": arguments.deltas}
    return values
