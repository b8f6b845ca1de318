"""`python -m laser_hf.search`: train every point of a grid, or points drawn by TPE, and rank them by the last layer."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import SearchError
from .options import Typed, check_fixed, parse, shared_recipe
from .plan import SAMPLERS, Plan
from .report import PICTURE, RECORD, TABLE, best_of, table, write_record, write_table
from .run import run_search
from .score import QBE_METRICS, ProbeScore, QbeScore, Score, to_job
from .space import parse_over
from .study import SharedStudy

_DESCRIPTION = """\
Search over options of train.py, such as LASER's sigma, alpha and margin: train every point, measure the last layer of
each, and tell which is best."""

_EXAMPLES = """\
examples:
  # No network, minutes: four points on the shipped encoder and speech, scored on its held-out voices.
  python -m laser_hf.search --preset demo --over sigma=1,2 alpha=0.15,0.4 --score probe --output_dir outputs/search

  # The paper's way: query by example of the last layer. On QUESST 2014 the dev queries are used.
  python -m laser_hf.search --preset hubert-base --over sigma=1,2,5 alpha=0.15,0.4 margin=1.0,1.1 \\
      --score qbe --metric mtwv --qbe_data quesst14Database --output_dir outputs/search -- --bf16

  # Ranges instead of lists: 20 points drawn by TPE, each trained with three seeds.
  python -m laser_hf.search --preset demo --sampler tpe --trials 20 --seeds 1 2 3 \\
      --over sigma=1:5 alpha=0.01:1:log margin=0.8:1.5 --output_dir outputs/tpe

All other options are train.py's and hold for every point; write them behind -- where they could be mistaken.

An interrupted search goes on when the same command is given again: finished points are kept, the one in work resumes
from its checkpoint. The same command started several times at once (one for each GPU, say, with CUDA_VISIBLE_DEVICES)
shares the points. A grid may be given further values later."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m laser_hf.search",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --over name=v1,v2,... [name=low:high[:log] ...] [options] [-- options of train.py]",
    )
    search = parser.add_argument_group("search")
    add = search.add_argument
    add(
        "--over",
        nargs="+",
        required=True,
        metavar="NAME=VALUES",
        help="options of train.py to vary: sigma=1,2,5 (values), alpha=0.01:1 (a range, --sampler tpe only), "
        "alpha=0.01:1:log (the same on a logarithmic scale)",
    )
    add("--output_dir", type=Path, default=Path("outputs/search"), help="study, runs and tables (%(default)s)")
    add("--preset", default="demo", help="recipe that all points start from (%(default)s)")
    add("--seeds", nargs="+", type=int, default=[], help="train each point with each seed and score the mean")
    add(
        "--sampler",
        choices=SAMPLERS,
        default="grid",
        help="grid: all combinations; tpe: --trials points, the later ones near good ones (%(default)s)",
    )
    add("--trials", type=int, help="points that --sampler tpe draws")
    add("--sampler_seed", type=int, default=0, help="of the points that --sampler tpe draws (%(default)s)")
    add("--retry_failed", action="store_true", help="train again what failed before")
    add("--keep_checkpoints", action="store_true", help="leave the checkpoints of finished runs; they take much room")
    score = parser.add_argument_group("score of a point, always of the last layer")
    add = score.add_argument
    add(
        "--score",
        choices=(ProbeScore.kind, QbeScore.kind),
        default=ProbeScore.kind,
        help="probe: word discrimination across speakers (seconds); qbe: query by example (more); default %(default)s",
    )
    add("--data", help="probe: folder of speech; default: the held-out voices of the shipped speech")
    add("--alignments", help="probe: tab-separated words with their times in that speech")
    add("--splits", nargs="+", help="probe: sub-folders of --data to use")
    add("--qbe_data", help="qbe: QUESST 2014 (quesst14Database), or queries.tsv, documents.tsv and targets.tsv")
    add("--metric", choices=tuple(QBE_METRICS), help="qbe: mean average precision (map, the default) or MTWV")
    add(
        "--score_on_test",
        action="store_true",
        help="qbe: choose on the eval queries of QUESST 2014 instead of dev. The test set is then spent: its results "
        "for the chosen point are too good",
    )
    return parser


def build_plan(argv: Sequence[str]) -> Plan:
    """The search that the command line asks for, checked as far as that goes before anything trains.

    Raises:
        SearchError: options that do not fit; the message says how to mend it.
    """
    argv = list(argv)
    behind = argv[argv.index("--") + 1 :] if "--" in argv else []
    arguments, fixed = build_parser().parse_known_args(argv[: argv.index("--")] if "--" in argv else argv)
    fixed = [*fixed, *behind]
    for word in behind:
        name = word.partition("=")[0].removeprefix("--")
        if name == "preset":
            raise SearchError("--preset is an option of the search; write it before --")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SearchError(
            "a search trains each point in one process; to use several GPUs start the same command once for each, "
            "with CUDA_VISIBLE_DEVICES"
        )
    if arguments.seeds and any(word.partition("=")[0] == "--seed" for word in fixed):
        raise SearchError("--seed and --seeds are both given; leave out --seed")
    check_fixed(fixed)
    base = ["--preset", arguments.preset, *fixed]
    options = parse(base)
    typed = Typed(base)
    over = parse_over(arguments.over, typed)
    typed.check_effect()
    check_fixed(fixed, [dimension.name for dimension in over])
    score = _score(arguments)
    if isinstance(score, QbeScore) and options.model.do_normalize:
        raise SearchError("--score qbe feeds waveforms as they are, and --do_normalize trains with scaled ones")
    plan = Plan(
        folder=arguments.output_dir,
        preset=arguments.preset,
        fixed=tuple(fixed),
        over=over,
        score=to_job(score),
        scored={},
        recipe=shared_recipe(options, [dimension.name for dimension in over]),
        sampler=arguments.sampler,
        trials=arguments.trials,
        seeds=tuple(arguments.seeds),
        sampler_seed=arguments.sampler_seed,
        retry_failed=arguments.retry_failed,
        keep_checkpoints=arguments.keep_checkpoints,
    )
    plan.scored.update(score.describe())  # last: it reads speech
    return plan


def _score(arguments: argparse.Namespace) -> Score:
    of_probe = ("data", "alignments", "splits")
    of_qbe = ("qbe_data", "metric", "score_on_test")
    for name in of_qbe if arguments.score == ProbeScore.kind else of_probe:
        if getattr(arguments, name):
            raise SearchError(f"--{name} has no meaning with --score {arguments.score}")
    if arguments.score == ProbeScore.kind:
        return ProbeScore(arguments.data, arguments.alignments, tuple(arguments.splits) if arguments.splits else None)
    if not arguments.qbe_data:
        raise SearchError("--score qbe needs --qbe_data: QUESST 2014, or a folder with three tables")
    return QbeScore(arguments.qbe_data, arguments.metric or "map", arguments.score_on_test)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a search to its end and print its table."""
    plan = build_plan(sys.argv[1:] if argv is None else argv)
    print(f"{plan.size} points over {', '.join(plan.names)}, chosen on {plan.scored['chosen_on']}", flush=True)

    # Imported here: matplotlib takes a second that --help and errors need not wait for.
    from .figure import draw

    def enter(study: SharedStudy) -> None:
        with study.locked():
            results = study.results()
            write_table(plan, results)
            if study.finished:
                write_record(plan, results)
                draw(plan, results, plan.folder / PICTURE)

    results = run_search(plan, after_each=enter)
    print("\n" + table(plan, results))
    if best_of(results) is None:
        raise SearchError("no point has a score; the table says why")
    print(", ".join(str(plan.folder / name) for name in (TABLE, RECORD, PICTURE)))


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        main()
    except (OSError, ValueError) as error:
        # What a user can mend says how; a traceback would bury it.
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with the search.", file=sys.stderr)
        sys.exit(130)
