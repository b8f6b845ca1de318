"""What all pictures share: no display, colours that colour-blind readers tell apart, one resolution."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Paul Tol, "Colour Schemes" (SRON/EPS/TN/09-002, 2021): bright for lines, muted for points.
LINE_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
POINT_COLOURS = ("#332288", "#CC6677", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 110
_CHARACTERS_AN_INCH = 10.5  # of a title, at most


def save(figure: Figure, path: str | Path, title: str = "") -> None:
    """Write `figure` as a PNG with `title` above all panels, its lines broken to fit, and free it."""
    if title:
        width = int(figure.get_figwidth() * _CHARACTERS_AN_INCH)
        lines = [part for line in title.splitlines() for part in textwrap.wrap(line, width)]
        figure.suptitle("\n".join(lines), fontsize=11)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
