"""`laser-hf search`: train every point of a grid, or points drawn by TPE, and rank them by the last layer."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import cli
from ..errors import LaserError
from ..plugins import Option
from ..runs import RunFolder
from .plan import PICTURE, RECORD, TABLE, Plan, Value, parse_over
from .report import best_of
from .score import QBE_METRICS, discrimination_score, qbe_score
from .study import SharedStudy, run_search

_EPILOG = """\
examples:
  laser-hf search --preset demo --over sigma=1,2 alpha=0.15,0.4 --output_dir outputs/search
  # The paper's way: query by example of the last layer. On QUESST 2014 the dev queries are used.
  laser-hf search --preset hubert-base --over sigma=1,2,5 alpha=0.15,0.4 margin=1.0,1.1 \\
      --score qbe --metric mtwv --qbe_data quesst14Database --output_dir outputs/search -- --bf16
  # Ranges instead of lists: 20 points drawn by TPE, each trained with three seeds.
  laser-hf search --preset demo --sampler tpe --trials 20 --seeds 1 2 3 \\
      --over sigma=1:5 alpha=0.01:1:log margin=0.8:1.5 --output_dir outputs/tpe

All other options are laser-hf train's and hold for every point; write them behind -- where they could be mistaken.
The same command continues an interrupted search. Started several times at once (for each GPU, with
CUDA_VISIBLE_DEVICES) it shares the points; --jobs trains several side by side."""

RESERVED = {
    **dict.fromkeys(("preset", "overwrite_output_dir"), "it is an option of the search; write it before --"),
    "output_dir": "every run has its own folder below the --output_dir of the search",
    "seed": "give seeds as --seeds 1 2 3, they are averaged",
    "resume_from_checkpoint": "interrupted runs resume by themselves",
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "publish the best run with laser-hf push"),
}
"""Options of laser-hf train that a search sets or has no use for, and why."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="laser-hf search",
        description="Search over options of laser-hf train: train every point, measure its last layer, tell the best.",
        epilog=_EPILOG,
        formatter_class=cli.HelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --over name=v1,v2,... [name=low:high[:log] ...] [options] [-- options of laser-hf train]",
    )
    add = parser.add_argument_group("search").add_argument
    values = "options of laser-hf train with values (sigma=1,2,5) or, for tpe, a range (alpha=0.01:1, alpha=0.01:1:log)"
    add("--over", nargs="+", required=True, metavar="NAME=VALUES", help=values)
    add("--output_dir", default="outputs/search", help="study, runs and tables")
    add("--overwrite_output_dir", action="store_true", help="delete what an earlier search left there")
    add("--preset", default="demo", help="recipe that all points start from")
    seed = Option("seed", 0, "", low=0, high=2**32 - 1)
    add("--seeds", nargs="+", type=seed, default=[], help="train each point with each seed and score the mean")
    add("--sampler", choices=("grid", "tpe"), default="grid", help="all combinations, or draw near good ones")
    add("--trials", type=Option("trials", 1, "", low=1), help="points that --sampler tpe draws")
    add("--jobs", type=Option("jobs", 1, "", low=1), default=1, help="points trained side by side on this machine")
    add("--retry_failed", action="store_true", help="train again what failed before")
    add = parser.add_argument_group("score of a point, always of the last layer").add_argument
    add("--score", choices=("discrimination", "qbe"), default="discrimination", help="task")
    add("--data", help="discrimination: folder of speech; default: the held-out voices of the shipped speech")
    add("--alignments", help="discrimination: tab-separated words with their times in that speech")
    add("--split", nargs="+", help="discrimination: sub-folders of --data to use")
    add("--qbe_data", help="qbe: QUESST 2014 (quesst14Database), or queries.tsv, documents.tsv and targets.tsv")
    add("--metric", choices=tuple(QBE_METRICS), help="qbe: mean average precision (map, the default) or MTWV")
    return parser


def build_plan(arguments: argparse.Namespace, fixed: Sequence[str]) -> Plan:
    """The search that the command line asks for, with `fixed` options of laser-hf train; `LaserError` if it is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaserError("start a search as one process; for each GPU one more, with CUDA_VISIBLE_DEVICES")
    given = {word[2:].partition("=")[0].replace("-", "_") for word in fixed if word.startswith("--")}
    for name in given & set(RESERVED):
        raise LaserError(f"--{name} cannot be given to the runs of a search: {RESERVED[name]}")
    base = ["--preset", arguments.preset, *fixed]
    options, recipes = _parse(base), {}
    if options.model.do_normalize:
        raise LaserError("the scores take waveforms as they are, and --do_normalize trains with scaled ones")
    read = {f"--{name}": getattr(arguments, name) for name in ("data", "alignments", "qbe_data")}
    read |= {f"--{name}": getattr(options.data, name) for name in ("train_data", "eval_data")}
    RunFolder(arguments.output_dir, RECORD).protect(read | {"--model": options.model.model_name_or_path})

    def typed(name: str, text: str) -> Value:
        if name in RESERVED:
            raise LaserError(RESERVED[name])
        if name in given:
            raise LaserError(f"--{name} is given as a fixed option too; leave one out")
        options = _parse([*base, f"--{name}={text}"])
        recipes.setdefault(name, []).append(options.recipe())
        value = None
        with contextlib.suppress(KeyError):  # of an objective or perturbation that is not in use
            value = options.value(name)
        if isinstance(value, list | tuple):
            raise LaserError(f"only options with a single value can be varied, this one has {value}")
        return text if value is None else value

    over = parse_over(arguments.over, typed)
    for name, found in recipes.items():
        if len(found) > 1 and all(recipe == found[0] for recipe in found):
            raise LaserError(f"--over {name}: it does not change what is trained here, so all points would be alike")
    for name in ("qbe_data", "metric") if arguments.score == "discrimination" else ("data", "alignments", "split"):
        if getattr(arguments, name):
            raise LaserError(f"--{name} has no meaning with --score {arguments.score}")
    if arguments.score == "discrimination":
        score = discrimination_score(arguments.data, arguments.alignments, arguments.split)
    elif arguments.qbe_data:
        score = qbe_score(arguments.qbe_data, arguments.metric or "map")
    else:
        raise LaserError("--score qbe needs --qbe_data: QUESST 2014, or a folder with three tables")
    besides = (*over, "seed")
    recipe = {kind: {k: v for k, v in group.items() if k not in besides} for kind, group in options.recipe().items()}
    how = arguments.sampler, arguments.trials, tuple(arguments.seeds)
    return Plan(Path(arguments.output_dir), arguments.preset, tuple(fixed), over, score, recipe, *how)


def _parse(argv: Sequence[str]):
    """`parse_options` of laser-hf train, with a `LaserError` instead of the end of the process."""
    from ..training import parse_options

    try:
        with contextlib.redirect_stderr(io.StringIO()) as messages:
            return parse_options(argv)
    except SystemExit as error:
        if not error.code:
            raise  # --help
        raise LaserError(messages.getvalue().strip().rpartition("error: ")[2]) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run a search to its end and print its table; `LaserError` for wrong options or folders, or without any score."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, fixed = build_parser().parse_known_args(argv[:end])
    plan = build_plan(arguments, [*fixed, *argv[end + 1 :]])
    print(f"{plan.size} points over {', '.join(plan.over)}, chosen on {plan.score.chosen_on}", flush=True)
    study = SharedStudy(plan, arguments.retry_failed, arguments.overwrite_output_dir)
    print("\n" + run_search(study, arguments.jobs))
    failed = [trial.user_attrs["reason"] for trial in study.trials() if trial.state.name == "FAIL"]
    if best_of(study.trials()) is None:
        reasons = "; ".join(dict.fromkeys(failed))
        raise LaserError(f"no point has a score ({reasons}). Mend it and give the command again with --retry_failed")
    if failed:
        print(f"{len(failed)} of {plan.size} points failed; --retry_failed trains them again")
    print(", ".join(str(plan.folder / name) for name in (TABLE, RECORD, PICTURE)))


if __name__ == "__main__":
    cli.run(main)
