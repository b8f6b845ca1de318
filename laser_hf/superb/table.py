"""`laser-hf superb table`: the LASER paper's tables, published values beside measured ones.

Rows are an encoder and what was done to it. Published values come from `published.json` with their sources, measured
ones from records. A cell without a number stays empty. Numbers of protocol "quick" have a table of their own and never
stand in a column of SUPERB numbers.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LaserError
from ..objectives import OBJECTIVES
from ..records import RESULTS, TRAINING_RECORD, read_json, write_json
from . import TASKS
from .table_records import BASES, Number, Row, find_records, read_numbers

logger = logging.getLogger(__name__)

HELP = "the paper's Tables 1, 2 and 3 from records, beside the published values"

Cell = dict[str, Any]
"""`value` and what is known of it: `standard_deviation`, `runs`, `layer`, `source`, `place`, `evidence`, `record`."""

# ContentVec is no method of ours. LASER, the first objective, stands last as in the paper.
METHODS = {"base": "", "contentvec": "ContentVec", **{name: OBJECTIVES[name].title for name in reversed(OBJECTIVES)}}
"""Titles of what was done to an encoder, in the order of the tables."""
METRICS = {"asr": ("wer", "WER, %"), "pr": ("per", "PER, %"), "qbe": ("mtwv", "QbE MTWV x 100")}
GAINS = {"wer": "ASR gain, %", "per": "PR gain, %", "mtwv": "QbE gain, %"}
ABLATION = ("base", "soft_dtw", "laser")
QUICK_TITLES = {
    "wer": "WER, %",
    "cer": "CER, %",
    "per": "PER, %",
    "mean_average_precision": "QbE mean average precision",
    "perturbed_mean_average_precision": "QbE mean average precision, perturbed queries",
    "perturbed_word_ap_across": "word discrimination AP, perturbed words",
    "view_distance": "distance of a word from its perturbed copy",
    "word_ap_across": "word discrimination AP, across speakers",
    "abx_across": "ABX-like error, across speakers",
    "abx_within": "ABX-like error, within speakers",
    "zerospeech_abx_across": "triphone ABX error, across speakers",
    "zerospeech_abx_within": "triphone ABX error, within speakers",
    "sid accuracy": "speaker identification, %",
    "sid last_layer_accuracy": "speaker identification on the last layer, %",
}
_QUICK_NOTE = "Comparable down a column at most: the same task, metric and split. Layer: the one of the record."
_NOTE = "Empty: no published value found, or not measured. † quoted as the paper's, not checked in its table."


def row_name(row: Row) -> str:
    """A row's name in the tables, such as `HuBERT base + LASER`; a method of your own is called as its class."""
    title = METHODS.get(row.method, row.method.rpartition(":")[2])
    return f"{row.base} + {title}" if title else row.base


def parse_row(name: str) -> Row:
    """The row of a name in the tables; a name of your own is an encoder of its own."""
    base, plus, method = (part.strip() for part in name.partition("+"))
    for key, title in METHODS.items():
        if plus and title.lower() == method.lower():
            return Row(base, key)
    return Row(name.strip(), "base")


@dataclass
class Column:
    """A column: `origin` is published, measured or quick; the three never mix."""

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
        """Enter a cell; raises `LaserError` if there is another value already."""
        before = self.cells.setdefault((row, key, origin), cell)
        if before["value"] != cell["value"]:
            both = f"{before.get('record')} and {cell.get('record')}"
            raise LaserError(f"two records for {row_name(row)}, {key}: {both}; give one, or --row NAME=PATH")

    def cells_of(self, row: Row) -> list[Cell | None]:
        """The cells of a row, one for each column."""
        return [self.cells.get((row, column.key, column.origin)) for column in self.columns]


def build_tables(numbers: Sequence[Number], published: dict[str, Any]) -> list[Table]:
    """Table 1 (cost), 2 (SUPERB), 3 (ablation), and one of the quick numbers if there are any."""
    known = [(entry["table"], Row(entry["base"], entry["method"]), entry) for entry in published["values"]]
    training = [number for number in numbers if number.task == "training"]
    superb = [number for number in numbers if number.protocol == "superb" and number.task in METRICS]
    quick = [number for number in numbers if number.protocol == "quick"]

    def rows_of(table: int, measured: Iterable[Row]) -> list[Row]:
        return _ordered({row for place, row, _ in known if place == table} | set(measured))

    def columns_of(titles: Iterable[tuple[str, str]]) -> list[Column]:
        return [Column(key, f"{title}, {word}", word) for key, title in titles for word in ("published", "measured")]

    scores = columns_of(METRICS.values())
    cost = Table(
        "1",
        "Cost of fine-tuning",
        columns_of([("processed_hours", "processed speech, h"), ("time", "fine-tuning time, h")]),
        rows_of(1, (number.row for number in training)),
        "Published times are on one GPU where nothing else is said, measured ones on the hardware in the record.",
    )
    full = Table(
        "2",
        "SUPERB: speech recognition (WER), phone recognition (PER) and query by example",
        scores + columns_of((f"{key}_gain", title) for key, title in GAINS.items()),
        rows_of(2, (number.row for number in superb if number.row.method != "soft_dtw")),
        "A gain is relative to the base encoder; measured ones are computed from the measured cells.",
    )
    ablation = rows_of(3, (number.row for number in superb if number.row.method in ABLATION))
    tables = [cost, full, Table("3", "What the regulariser does", scores, ablation)]
    for place, row, entry in known:
        cell = {name: entry[name] for name in ("value", "source", "place", "evidence")}
        tables[place - 1].put(row, entry["column"], "published", cell)
    for number in training:
        cost.put(number.row, number.metric, "measured", _cell(number))
    shown = {number.record: number for number in reversed(superb) if _is_superbs(number)}  # of several layers the first
    for number in shown.values():
        for table in tables[1:]:
            if number.row in table.rows:
                cell = _cell(number, 1 if number.unit == "percent" else 100)
                table.put(number.row, number.metric, "measured", cell)
    for record, task in sorted({(number.record, number.task) for number in superb if number.record not in shown}):
        logger.warning("%s has no %s on SUPERB's test data; it is not in the tables", record, METRICS[task][0])
    _put_gains(full)
    return tables + ([_quick_table(quick)] if quick else [])


def _is_superbs(number: Number) -> bool:
    """Whether it is a number of SUPERB's: its metric, on its test set, and with its trials."""
    on_test = number.split == "test-clean" or (number.task == "qbe" and number.split != "dev")
    measured = number.metric == METRICS[number.task][0] and number.value is not None
    return measured and on_test and number.trials in (None, "superb")


def _cell(number: Number, scale: float = 1, **more: Any) -> Cell:
    cell: Cell = {"value": number.value * scale, "record": number.record, **more}
    cell |= {"protocol": number.protocol} if number.protocol else {}
    if number.deviation is not None:
        cell |= {"standard_deviation": number.deviation * scale, "runs": number.runs}
    return cell if number.layer is None else cell | {"layer": number.layer}


def _put_gains(table: Table) -> None:
    """Relative gains of the measured cells over their base encoder."""
    for (row, key, origin), own in list(table.cells.items()):
        base = table.cells.get((Row(row.base, "base"), key, "measured"))
        if origin == "measured" and row.method != "base" and base and base["value"]:
            change = (own["value"] - base["value"]) / base["value"] * 100
            cell = {"value": change if key == "mtwv" else -change, "record": own["record"]}
            table.put(row, f"{key}_gain", "measured", cell)


def _quick_table(numbers: Sequence[Number]) -> Table:
    """One column for each task, metric and split, of the layer that the record reports."""
    columns: dict[tuple[int, str], Column] = {}
    rows = _ordered({number.row for number in numbers})
    table = Table("quick", "Protocol quick: small corpora, no SUPERB numbers", [], rows, _QUICK_NOTE)
    for number in numbers:
        named = QUICK_TITLES.get(f"{number.task} {number.metric}", QUICK_TITLES.get(number.metric))
        if not (named or number.first) or number.value is None or not number.reported or number.split == "dev":
            continue
        key = f"{number.task} {number.metric} {number.split}"
        title = f"{named or number.metric}, {number.split} (quick)"
        shipped = number.task in TASKS  # these have no metric in common
        place = list(TASKS).index(number.task) if shipped else len(TASKS)
        columns[place, key] = Column(key, title if shipped else f"{number.task}: {title}", "quick")
        table.put(number.row, key, "quick", _cell(number, decimals=2 if number.unit == "percent" else 4))
    table.columns = [columns[key] for key in sorted(columns)]
    return table


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """Encoders of the paper first; of each the base, then the methods in the order of `METHODS`."""
    rank = {name: place for place, name in enumerate([*BASES.values(), *METHODS])}
    last = len(rank)
    return sorted(rows, key=lambda row: (rank.get(row.base, last), row.base, rank.get(row.method, last), row.method))


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = cell["value"]
    text = value if isinstance(value, str) else f"{value:.{cell.get('decimals', 2)}f}"
    if "standard_deviation" in cell:
        text += f" ± {cell['standard_deviation']:.{cell.get('decimals', 2)}f} ({cell['runs']} runs)"
    return text + (" †" if cell.get("evidence") == "second-hand" else "")


def _plain(text: str) -> str:
    """A foreign name as it stands, whatever Markdown or HTML it looks like."""
    return re.sub(r"([\\`|<>\[\]*])", r"\\\1", " ".join(text.split()))


def to_markdown(tables: list[Table], published: dict[str, Any]) -> str:
    """All tables as Markdown, with sources and records below."""
    lines = []
    for table in tables:
        heading = f"Table {table.number}" if table.number.isdigit() else "Quick"
        lines += [f"### {heading}. {table.title}", ""]
        lines.append("| " + " | ".join(["encoder", *(_plain(column.title) for column in table.columns)]) + " |")
        lines.append("|---" * (1 + len(table.columns)) + "|")
        for row in table.rows:
            lines.append("| " + " | ".join([_plain(row_name(row)), *map(_text, table.cells_of(row))]) + " |")
        lines += ["", *([table.note, ""] if table.note else [])]
    lines += [_NOTE, "", "Sources of published values:", ""]
    used = {cell["source"] for table in tables for cell in table.cells.values() if "source" in cell}
    lines += [f"- [{s['title']}]({s['url']})" for name, s in published["sources"].items() if name in used]
    records = sorted({cell["record"] for table in tables for cell in table.cells.values() if "record" in cell})
    if records:
        lines += ["", "Records of measured values:", ""]
        lines += ["- `" + " ".join(record.split()).replace("`", "'") + "`" for record in records]
    return "\n".join(lines) + "\n"


def to_json(tables: list[Table], published: dict[str, Any]) -> dict[str, Any]:
    """The same as plain data; an empty cell is `None`."""
    data = []
    for table in tables:
        rows = [{"encoder": row_name(row), **vars(row), "cells": table.cells_of(row)} for row in table.rows]
        columns = [vars(column) for column in table.columns]
        data.append({"table": table.number, "title": table.title, "columns": columns, "rows": rows})
    return {"tables": data, "sources": published["sources"]}


def published_values() -> dict[str, Any]:
    """The content of `published.json`."""
    return read_json(Path(__file__).with_name("published.json"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUNS", help=f"{RESULTS}, {TRAINING_RECORD}, other records, or folders")
    text = "put the records of PATH into the row NAME, such as 'HuBERT base + LASER' or one of your own; repeatable"
    add("--row", action="append", default=[], metavar="NAME=PATH", help=text)
    add("--output", type=Path, help="Markdown file to write; default: print")
    add("--json", type=Path, help="JSON file to write")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Render the tables; `LaserError` names a record that cannot be read, or two with values for one cell."""
    published = published_values()
    places: list[tuple[Path, Row | None]] = [(path, None) for path in arguments.runs]
    for entry in arguments.row:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise LaserError(f"--row expects NAME=PATH, got {entry!r}")
        places.append((Path(path), parse_row(name)))
    files = [(file, row) for path, row in places for file in find_records(path)]
    for option, path in (("output", arguments.output), ("json", arguments.json)):
        if path and path.resolve() in [file.resolve() for file, _ in files]:
            raise LaserError(f"--{option} {path} is one of the records; give a file of its own")
    numbers = read_numbers(files)
    tables = build_tables(numbers, published)
    markdown, data = to_markdown(tables, published), to_json(tables, published)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(markdown, encoding="utf-8")
    else:
        print(markdown, end="")
    if arguments.json:
        write_json(arguments.json, data)
    return data
