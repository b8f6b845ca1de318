"""`python -m laser_hf.plots RUN ...`: the pictures of finished runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..records import read_json
from .curves import plot_training
from .run import HISTORY, UnfinishedRun, draw_run, read_record

logger = logging.getLogger("laser_hf.plots")
CURVES = "curves.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Draw each run, and the curves of several runs in one picture; print the files.

    Exits with status 2 where a folder is no finished run, and with 1 if nothing could be drawn.
    """
    parser = argparse.ArgumentParser(
        prog="python -m laser_hf.plots",
        description="Draw finished runs: loss terms, soft-DTW alignment and self-similarity of an utterance, and the "
        "same words by several speakers, before and after fine-tuning. What cannot be drawn is left out and named. "
        "The curves of several runs are also drawn into one picture.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of train.py")
    parser.add_argument(
        "--output_dir", type=Path, metavar="DIR", help="pictures go to DIR/NAME OF RUN (default: RUN/plots)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PNG",
        help=f"the curves of all runs in one picture (default for several runs: {CURVES} in --output_dir, or here)",
    )
    parser.add_argument("--title", default="", help="above the curves of all runs")
    parser.add_argument(
        "--base", metavar="MODEL", help="encoder before fine-tuning (default: what the run started from)"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="speech for the pictures (default: the run's held-out speech, else the shipped one)",
    )
    parser.add_argument(
        "--alignments",
        type=Path,
        metavar="FILE",
        help="word times (default: words.tsv or alignments.tsv near the data)",
    )
    parser.add_argument("--splits", nargs="+", metavar="NAME", help="sub-folders of --data to use (default: all)")
    parser.add_argument("--utterance", metavar="ID", help="utterance to draw (default: the first)")
    options = parser.parse_args(argv)
    if options.splits and options.data is None:
        parser.error("--splits names sub-folders of --data, which is not given")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)

    names = _names(options.runs)
    try:
        for run in options.runs:
            read_record(run)
    except UnfinishedRun as error:
        parser.error(str(error))
    drawn = []
    for run, name in names.items():
        drawn += draw_run(
            run,
            options.output_dir / name.replace("/", "-") if options.output_dir else None,
            base=options.base,
            data=options.data,
            alignments=options.alignments,
            splits=options.splits,
            utterance=options.utterance,
        )
    if options.output or len(names) > 1:
        drawn += _draw_together(names, options.output or (options.output_dir or Path()) / CURVES, options.title)
    for path in drawn:
        print(path)
    if not drawn:
        sys.exit(1)


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """A name for every run: that of its folder, or the whole path where two folders have one name."""
    folders = [run.resolve().name for run in runs]
    return {
        run: name if folders.count(name) == 1 else run.as_posix().strip("/")
        for run, name in zip(runs, folders, strict=True)
    }


def _draw_together(names: dict[Path, str], path: Path, title: str) -> list[Path]:
    try:
        histories = {name: read_json(run / HISTORY)["log"] for run, name in names.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_training(histories, path, title)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("Not drawn: %s (%s)", path, error)
        return []
    return [path]


if __name__ == "__main__":
    main()
