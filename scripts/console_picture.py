"""Draws what `make demo` printed as a picture for the README.

    make demo > docs/records/demo_console.txt
    python scripts/console_picture.py

Long lines are broken as a terminal breaks them. Lines of evaluations and commands to copy have colours of their own.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRINTED = ROOT / "docs" / "records" / "demo_console.txt"
PICTURE = ROOT / "docs" / "figures" / "demo.svg"
COLUMNS = 120
WIDTH, HEIGHT, MARGIN = 7.8, 18, 16
"""Of a character in pixels, and around the text."""
COLOURS = {
    r"held-out|Held-out": "#e5c07b",
    r"  \S*laser-hf": "#98c379",
    r"(COLLAPSE|No collapse)": "#61afef",
}
TEXT, BACKGROUND = "#d7dae0", "#1e2127"


def picture(printed: str) -> str:
    """An SVG of the text, one element a row."""
    rows = []
    for line in printed.rstrip().splitlines():
        colour = next((colour for start, colour in COLOURS.items() if re.match(start, line)), TEXT)
        rows += [(line[first : first + COLUMNS], colour) for first in range(0, max(len(line), 1), COLUMNS)]
    width, height = round(COLUMNS * WIDTH + 2 * MARGIN), len(rows) * HEIGHT + 2 * MARGIN
    texts = [
        f'<text x="{MARGIN}" y="{MARGIN + HEIGHT * place + 13}" fill="{colour}" textLength="{len(row) * WIDTH:.1f}" '
        f'xml:space="preserve">{escape(row)}</text>'
        for place, (row, colour) in enumerate(rows)
        if row.strip()
    ]
    font = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{font}" font-size="13">',
            f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
            *texts,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(PRINTED.read_text(encoding="utf-8")), encoding="utf-8")
    print(PICTURE)
