"""`laser-hf plots RUN ...`: the pictures of finished runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import cli
from ..errors import LaserError

CURVES = "curves.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Draw each run, and the curves of several runs in one picture; `LaserError` if nothing could be drawn."""
    parser = argparse.ArgumentParser(
        prog="laser-hf plots",
        formatter_class=cli.HelpFormatter,
        description="Draw finished runs: curves, and before and after fine-tuning the same words by several speakers, "
        "how far aligned frames are from where they belong, and the self-similarity of an utterance. What cannot be "
        "drawn is left out and named. The curves of several runs are also drawn into one picture.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="output folder of laser-hf train")
    add("--output_dir", type=Path, metavar="DIR", help="pictures go to DIR/NAME OF RUN (default: RUN/plots)")
    curves = f"the curves of all runs in one picture (default for several runs: {CURVES} in --output_dir, or here)"
    add("--output", type=Path, metavar="PNG", help=curves)
    add("--title", default="", help="above the curves of all runs")
    add("--base", metavar="MODEL", help="encoder before fine-tuning (default: what the run started from)")
    add("--data", metavar="DIR", help="speech to draw (default: the run's held-out speech, else the shipped one)")
    add("--alignments", type=Path, metavar="FILE", help="word times (default: words.tsv or alignments.tsv near --data)")
    add("--splits", nargs="+", metavar="NAME", help="sub-folders of --data to use (default: all)")
    add("--utterance", metavar="ID", help="utterance to draw (default: the one whose views differ most in duration)")
    options = parser.parse_args(argv)
    if options.splits and options.data is None:
        parser.error("--splits names sub-folders of --data, which is not given")

    from ..figures import save
    from ..records import read_json
    from .curves import training_figure
    from .run import HISTORY, attempt, curve_marks, draw_run, objective_of, read_run

    records = {run: read_run(run) for run in options.runs}
    names = {run: run.resolve().name for run in options.runs}
    if len(set(names.values())) < len(names):
        names = {run: run.as_posix().strip("/") for run in options.runs}
    drawn = []
    how = {name: getattr(options, name) for name in ("base", "data", "alignments", "splits", "utterance")}
    for run, name in names.items():
        folder = options.output_dir and options.output_dir / name.replace("/", "-")
        drawn += draw_run(run, folder, **how)
    if options.output or len(names) > 1:
        path = options.output or (options.output_dir or Path()) / CURVES
        labels = {term: label for one in records.values() for term, label in objective_of(one).term_labels.items()}
        marks = curve_marks([*records.values()])
        logs = attempt(path.name, lambda: {name: read_json(run / HISTORY)["log"] for run, name in names.items()})
        together = logs and attempt(path.name, lambda: training_figure(logs, labels, *marks))
        drawn += [save(together, path, options.title)] if together else []
    if not drawn:
        raise LaserError("nothing could be drawn; the warnings above say why")
    for path in drawn:
        print(path)


if __name__ == "__main__":
    cli.run(main)
