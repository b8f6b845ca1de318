"""What all pictures share. Import it inside the function that draws: matplotlib takes a second."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib

from .errors import LaserError

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# For colour-blind readers too: Paul Tol, "Colour Schemes" (SRON/EPS/TN/09-002, 2021), bright and muted.
LINE_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
POINT_COLOURS = ("#332288", "#CC6677", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 110
_CHARACTERS_PER_INCH = 10.5  # of a title, at most


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options):
    """`plt.subplots` with a constrained layout; `size` is in inches, by default 4.2 x 3.4 for each panel."""
    size = size or (4.2 * columns, 3.4 * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def save(figure: Figure, path: str | Path, title: str = "") -> Path:
    """Write `figure` as a PNG with `title` above all panels, its lines broken to fit; close it and return the path."""
    if title:
        width = int(figure.get_figwidth() * _CHARACTERS_PER_INCH)
        lines = [part for line in title.splitlines() for part in textwrap.wrap(line, width)]
        figure.suptitle("\n".join(lines), fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise LaserError(f"cannot draw {path}: expected a picture's ending, such as .png")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path
