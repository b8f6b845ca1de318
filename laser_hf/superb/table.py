"""`python -m laser_hf.superb table`: the LASER paper's tables, published values beside measured ones.

Rows are an encoder and what was done to it; published values come from `published.json` with their sources, measured
ones from records: `results.json` of the tasks and `laser_config.json` of training runs. A cell without a number stays
empty. Numbers of protocol "quick" have a table of their own and never stand in a column of SUPERB numbers.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..records import read_json, write_json
from .table_records import METHODS, Evaluated, RecordError, Row, Trained, find_records, read_records

logger = logging.getLogger(__name__)

HELP = "the paper's Tables 1, 2 and 3 from result records, beside the published values"

Cell = dict[str, Any]
"""`value` and what is known of it: `standard_deviation`, `runs`, `source`, `place`, `evidence`, `record`."""

METRICS = {"asr": ("wer", "WER, %"), "pr": ("per", "PER, %"), "qbe": ("mtwv", "QbE MTWV x 100")}
GAINS = {"wer": "ASR gain, %", "per": "PR gain, %", "mtwv": "QbE gain, %"}
ABLATION = ("base", "soft_dtw", "laser")
_NOTE = "Empty: not published in a source at hand, or not measured. † quoted as the paper's, its table was not at hand."


@dataclass
class Column:
    """A column: `origin` is published, measured or quick; the two never mix."""

    key: str
    title: str
    origin: str


@dataclass
class Table:
    """Rows by name, each with its cells by column (`key`, `origin`)."""

    number: str
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""
    cells: dict[tuple[Row, str, str], Cell] = field(default_factory=dict)

    def put(self, row: Row, key: str, origin: str, cell: Cell) -> None:
        """Enter a cell.

        Raises:
            RecordError: there is one already.
        """
        before = self.cells.get((row, key, origin))
        if before is not None:
            raise RecordError(
                f"two records for {row.name}, {key}: {before.get('record')} and {cell.get('record')}; give one of "
                "them, or name a row of its own with --row NAME=PATH"
            )
        self.cells[row, key, origin] = cell


def build_tables(evaluated: list[Evaluated], trained: list[Trained], published: dict[str, Any]) -> list[Table]:
    """Table 1 (cost), 2 (SUPERB), 3 (ablation), and one of the quick numbers if there are any.

    Raises:
        RecordError: two records for one cell.
    """
    known = [(entry["table"], Row(entry["base"], entry["method"]), entry) for entry in published["values"]]
    measured = [record.row for record in (*evaluated, *trained)]

    def rows_of(number: int, wanted: Callable[[Row], bool]) -> list[Row]:
        return _ordered({row for n, row, _ in known if n == number} | {row for row in measured if wanted(row)})

    superb = [record for record in evaluated if record.protocol == "superb" and record.task in METRICS]
    quick = [record for record in evaluated if record.protocol == "quick"]
    of_superb = {record.row for record in superb}
    of_trained = {record.row for record in trained}
    both = [("published", "published"), ("measured", "measured")]
    scores = [Column(key, f"{title}, {word}", o) for key, title in METRICS.values() for word, o in both]
    tables = [
        Table(
            "1",
            "Cost of fine-tuning",
            [Column("processed_hours", f"processed speech, h, {word}", o) for word, o in both]
            + [Column("time", f"fine-tuning time, h, {word}", o) for word, o in both],
            rows_of(1, lambda row: row in of_trained),
            "Published times are on one GPU where nothing else is said, measured ones on the hardware in the record.",
        ),
        Table(
            "2",
            "SUPERB: speech recognition (WER), phone recognition (PER) and query by example",
            scores + [Column(f"{key}_gain", f"{title}, {w}", o) for key, title in GAINS.items() for w, o in both],
            rows_of(2, lambda row: row in of_superb and row.method != "soft_dtw"),
            "A gain is relative to the base encoder; measured ones are computed from the measured cells.",
        ),
        Table(
            "3",
            "What the regulariser does",
            list(scores),
            rows_of(3, lambda row: row in of_superb and row.method in ABLATION),
        ),
    ]
    for number, row, entry in known:
        cell = {name: entry[name] for name in ("value", "source", "place", "evidence")}
        tables[number - 1].put(row, entry["column"], "published", cell)
    for run in trained:
        tables[0].put(run.row, "processed_hours", "measured", {"value": run.processed_hours, "record": run.path})
        tables[0].put(run.row, "time", "measured", {"value": run.hours, "record": run.path, "decimals": 2})
    for record in superb:
        key = METRICS[record.task][0]
        cell = record.cell(key)
        if cell is None:
            logger.warning("%s has no %s on SUPERB's test data; it is not in the tables", record.path, key)
        for table in tables[1:]:
            if cell is not None and record.row in table.rows:
                table.put(record.row, key, "measured", cell)
    _put_gains(tables[1])
    if quick:
        tables.append(_quick_table(quick))
    return tables


def _put_gains(table: Table) -> None:
    """Relative gains of the measured cells over their base encoder."""
    for row in table.rows:
        for key in GAINS:
            own = table.cells.get((row, key, "measured"))
            base = table.cells.get((Row(row.base, "base"), key, "measured"))
            if row.method == "base" or own is None or base is None or not base["value"]:
                continue
            change = (own["value"] - base["value"]) / base["value"] * 100
            cell = {"value": change if key == "mtwv" else -change, "record": own["record"]}
            table.put(row, f"{key}_gain", "measured", cell)


def _quick_table(records: list[Evaluated]) -> Table:
    """One column for each metric and split of the quick records."""
    columns: dict[str, Column] = {}
    rows = _ordered({record.row for record in records})
    table = Table(
        "quick",
        "Protocol quick: small corpora, no SUPERB numbers",
        [],
        rows,
        "Comparable down a column at most: the same task, metric and split. Layer: the one of the record.",
    )
    for record in records:
        for key, title, cell in record.quick_cells():
            columns.setdefault(key, Column(key, f"{title} (quick)", "quick"))
            table.put(record.row, key, "quick", cell)
    table.columns = [columns[key] for key in sorted(columns)]
    return table


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """Encoders of the paper first; of each the base, then the methods in the paper's order."""
    bases = ["HuBERT base", "WavLM base"]

    def place(row: Row) -> tuple:
        method = list(METHODS).index(row.method) if row.method in METHODS else len(METHODS)
        return (bases.index(row.base) if row.base in bases else len(bases), row.base, method, row.method)

    return sorted(rows, key=place)


# ------------------------------------------------------------------------------------------------ rendering


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = cell["value"]
    text = value if isinstance(value, str) else f"{value:.{cell.get('decimals', 2)}f}"
    if cell.get("standard_deviation") is not None:
        text += f" ± {cell['standard_deviation']:.{cell.get('decimals', 2)}f}"
        if cell.get("runs"):
            text += f" ({cell['runs']} runs)"
    return text + (" †" if cell.get("evidence") == "second-hand" else "")


def to_markdown(tables: list[Table], published: dict[str, Any]) -> str:
    """All tables as Markdown, with sources and records below."""
    lines = []
    for table in tables:
        heading = f"Table {table.number}" if table.number.isdigit() else "Quick"
        lines += [f"### {heading}. {table.title}", ""]
        lines.append("| " + " | ".join(["encoder", *(column.title for column in table.columns)]) + " |")
        lines.append("|---" * (1 + len(table.columns)) + "|")
        for row in table.rows:
            cells = [_text(table.cells.get((row, column.key, column.origin))) for column in table.columns]
            lines.append("| " + " | ".join([row.name, *cells]) + " |")
        lines.append("")
        if table.note:
            lines += [table.note, ""]
    lines += [_NOTE, "", "Sources of published values:", ""]
    used = {cell["source"] for table in tables for cell in table.cells.values() if "source" in cell}
    lines += [f"- [{s['title']}]({s['url']})" for name, s in published["sources"].items() if name in used]
    records = sorted({cell["record"] for table in tables for cell in table.cells.values() if "record" in cell})
    if records:
        lines += ["", "Records of measured values:", "", *(f"- `{record}`" for record in records)]
    return "\n".join(lines) + "\n"


def to_json(tables: list[Table], published: dict[str, Any]) -> dict[str, Any]:
    """The same as plain data; an empty cell is `None`."""
    return {
        "tables": [
            {
                "table": table.number,
                "title": table.title,
                "columns": [vars(column) for column in table.columns],
                "rows": [
                    {
                        "encoder": row.name,
                        "base": row.base,
                        "method": row.method,
                        "cells": [table.cells.get((row, column.key, column.origin)) for column in table.columns],
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
        "sources": published["sources"],
    }


def published_values() -> dict[str, Any]:
    """The content of `published.json`."""
    return read_json(Path(str(resources.files(__package__) / "published.json")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUNS", help="results.json, laser_config.json, or folders with them")
    add(
        "--row",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="put the records of PATH into the row NAME, such as 'HuBERT base + LASER' or a name of your own; "
        "may be repeated",
    )
    add("--output", type=Path, help="Markdown file to write; default: print")
    add("--json", type=Path, help="JSON file to write")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Render the tables; a record that cannot be read ends the command with its name and what is wrong."""
    published = published_values()
    try:
        places = [(path, None) for path in arguments.runs]
        for entry in arguments.row:
            name, equals, path = entry.partition("=")
            if not (name and equals and path):
                raise RecordError(f"--row expects NAME=PATH, got {entry!r}")
            places.append((Path(path), Row.parse(name)))
        evaluated, trained = read_records([(file, row) for path, row in places for file in find_records(path)])
        tables = build_tables(evaluated, trained, published)
    except RecordError as error:
        raise SystemExit(f"error: {error}") from error
    markdown, data = to_markdown(tables, published), to_json(tables, published)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(markdown, encoding="utf-8")
    else:
        print(markdown, end="")
    if arguments.json:
        write_json(arguments.json, data)
    return data
