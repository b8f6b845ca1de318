"""`laser-hf superb table`: the LASER paper's tables, values of `published.json` beside measured ones of records.

Numbers of protocol "quick" have a table of their own and never stand in a column of SUPERB numbers.
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
from ..records import RESULTS, TRAINING_RECORD, read_json
from . import TASKS
from .table_records import BASES, Number, Row, find_records, read_numbers

logger = logging.getLogger(__name__)

HELP = "the paper's Tables 1, 2 and 3 from records, beside the published values"

# ContentVec is no method of ours. LASER, the first objective, stands last as in the paper.
METHODS = {"base": "", "contentvec": "ContentVec", **{name: OBJECTIVES[name].title for name in reversed(OBJECTIVES)}}
"""Titles of what was done to an encoder, in the order of the tables."""
COSTS = {"processed_hours": "processed speech, h", "time": "fine-tuning time, h"}
METRICS = {"asr": "wer", "pr": "per", "qbe": "mtwv"}
SCORES = {"wer": "WER, %", "per": "PER, %", "mtwv": "QbE MTWV x 100"}
GAINS = {"wer_gain": "ASR gain, %", "per_gain": "PR gain, %", "mtwv_gain": "QbE gain, %"}
TABLES = {
    "Table 1. Cost of fine-tuning": COSTS,
    "Table 2. SUPERB: speech recognition (WER), phone recognition (PER) and query by example": SCORES | GAINS,
    "Table 3. What the regulariser does": SCORES,
}
NOTES = (
    "Published times are on one GPU where nothing else is said, measured ones on the hardware in the record.",
    "A gain is relative to the base encoder; measured ones are computed from the measured cells.",
    "",
)
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
    "ks accuracy": "keyword spotting, %",
    "ks last_layer_accuracy": "keyword spotting on the last layer, %",
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
class Table:
    """Rows by name, each with its cells by column: (key, origin). Origins are published, measured and quick.

    A cell has a `value` and what is known of it: `standard_deviation`, `runs`, `source`, `evidence`, `record`.
    """

    title: str
    columns: dict[tuple[str, str], str]  # their titles
    rows: list[Row]
    note: str
    cells: dict[tuple[Row, str, str], dict[str, Any]] = field(default_factory=dict)

    def put(self, row: Row, key: str, origin: str, cell: dict[str, Any]) -> None:
        """Enter a cell; raises `LaserError` if there is another value already."""
        before = self.cells.setdefault((row, key, origin), cell)
        if before["value"] != cell["value"]:
            both = f"{before.get('record')} and {cell.get('record')}"
            raise LaserError(f"two records for {row_name(row)}, {key}: {both}; give one, or --row NAME=PATH")


def build_tables(numbers: Sequence[Number], published: dict[str, Any]) -> list[Table]:
    """Table 1 (cost), 2 (SUPERB), 3 (ablation), and one of the quick numbers if there are any."""
    training = [number for number in numbers if number.task == "training"]
    superb = [number for number in numbers if number.protocol == "superb" and number.task in METRICS]
    quick = [number for number in numbers if number.protocol == "quick"]
    measured = [number.row for number in superb]
    places = ({number.row for number in training}, {row for row in measured if row.method != "soft_dtw"})
    places += ({row for row in measured if row.method in ABLATION},)
    for entry in published["values"]:
        places[entry["table"] - 1].add(Row(entry["base"], entry["method"]))
    tables = []
    for (title, names), rows, note in zip(TABLES.items(), places, NOTES, strict=True):
        columns = {(key, o): f"{name}, {o}" for key, name in names.items() for o in ("published", "measured")}
        tables.append(Table(title, columns, _ordered(rows), note))
    for entry in published["values"]:
        cell = {name: entry[name] for name in ("value", "source", "evidence")}
        tables[entry["table"] - 1].put(Row(entry["base"], entry["method"]), entry["column"], "published", cell)
    for number in training:
        tables[0].put(number.row, number.entry["metric"], "measured", _cell(number))
    shown = {number.record: number for number in reversed(superb) if _is_superbs(number)}  # of several layers the first
    for number in shown.values():
        for table in tables[1:]:
            if number.row in table.rows:
                cell = _cell(number, 1 if number.entry["unit"] == "percent" else 100)
                table.put(number.row, number.entry["metric"], "measured", cell)
    for record, task in sorted({(number.record, number.task) for number in superb if number.record not in shown}):
        logger.warning("%s has no %s on SUPERB's test data; it is not in the tables", record, METRICS[task])
    for (row, key, origin), own in list(tables[1].cells.items()):  # relative to the base encoder
        base = tables[1].cells.get((Row(row.base, "base"), key, "measured"))
        if origin == "measured" and row.method != "base" and base and base["value"]:
            gain = (own["value"] / base["value"] - 1) * (100 if key == "mtwv" else -100)
            tables[1].put(row, f"{key}_gain", "measured", {"value": gain, "record": own["record"]})
    return tables + ([_quick_table(quick)] if quick else [])


def _is_superbs(number: Number) -> bool:
    """Whether it is a number of SUPERB's: its metric, on its test set, and with its trials."""
    entry = number.entry
    on_test = entry["split"] == "test-clean" or (number.task == "qbe" and entry["split"] != "dev")
    return on_test and entry["metric"] == METRICS[number.task] and entry.get("trials") in (None, "superb")


def _cell(number: Number, scale: float = 1, **more: Any) -> dict[str, Any]:
    cell = {"value": number.entry["value"] * scale, "record": number.record, "protocol": number.protocol, **more}
    if (deviation := number.entry.get("standard_deviation")) is not None:
        cell |= {"standard_deviation": deviation * scale, "runs": number.runs}
    return cell


def _quick_table(numbers: Sequence[Number]) -> Table:
    """One column for each task, metric and split, of the layer that the record reports."""
    columns: dict[tuple[int, str], str] = {}
    rows = _ordered({number.row for number in numbers})
    table = Table("Quick. Protocol quick: small corpora, no SUPERB numbers", {}, rows, _QUICK_NOTE)
    for number in numbers:
        metric, split = number.entry["metric"], number.entry["split"]
        named = QUICK_TITLES.get(f"{number.task} {metric}", QUICK_TITLES.get(metric))
        if (named or number.first) and number.reported and split != "dev":
            key, title = f"{number.task} {metric} {split}", f"{named or metric}, {split} (quick)"
            shipped = number.task in TASKS  # these have no metric in common
            place = list(TASKS).index(number.task) if shipped else len(TASKS)
            columns[place, key] = title if shipped else f"{number.task}: {title}"
            cell = _cell(number, decimals=2 if number.entry["unit"] == "percent" else 4)
            table.put(number.row, key, "quick", cell)
    table.columns = {(key, "quick"): title for (_, key), title in sorted(columns.items())}
    return table


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """Encoders of the paper first; of each the base, then the methods in the order of `METHODS`."""
    rank = {name: place for place, name in enumerate([*BASES.values(), *METHODS])}
    last = len(rank)
    return sorted(rows, key=lambda row: (rank.get(row.base, last), row.base, rank.get(row.method, last), row.method))


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    value, decimals = cell["value"], cell.get("decimals", 2)
    text = value if isinstance(value, str) else f"{value:.{decimals}f}"
    if "standard_deviation" in cell:
        text += f" ± {cell['standard_deviation']:.{decimals}f} ({cell['runs']} runs)"
    return text + (" †" if cell.get("evidence") == "second-hand" else "")


def _plain(text: str) -> str:
    """A foreign name as it stands, whatever Markdown or HTML it looks like."""
    return re.sub(r"([\\`|<>\[\]*])", r"\\\1", " ".join(text.split()))


def to_markdown(tables: list[Table], published: dict[str, Any]) -> str:
    """All tables as Markdown, with sources and records below."""
    lines = []
    for table in tables:
        rows = [["encoder", *map(_plain, table.columns.values())]]
        for row in table.rows:
            rows.append([_plain(row_name(row)), *(_text(table.cells.get((row, *column))) for column in table.columns)])
        head, *rest = (f"| {' | '.join(row)} |" for row in rows)
        lines += [f"### {table.title}", "", head, "|---" * len(rows[0]) + "|", *rest, ""]
        lines += [table.note, ""] if table.note else []
    cells = [cell for table in tables for cell in table.cells.values()]
    lines += [_NOTE, "", "Sources of published values:", ""]
    used = {cell.get("source") for cell in cells}
    lines += [f"- [{s['title']}]({s['url']})" for name, s in published["sources"].items() if name in used]
    if records := sorted({cell["record"] for cell in cells if "record" in cell}):
        lines += ["", "Records of measured values:", ""]
        lines += ["- `" + " ".join(record.split()).replace("`", "'") + "`" for record in records]
    return "\n".join(lines) + "\n"


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


def run(arguments: argparse.Namespace) -> list[Table]:
    """Render the tables; `LaserError` names a record that cannot be read, or two with values for one cell."""
    places: list[tuple[Path, Row | None]] = [(path, None) for path in arguments.runs]
    for entry in arguments.row:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise LaserError(f"--row expects NAME=PATH, got {entry!r}")
        places.append((Path(path), parse_row(name)))
    files = [(file, row) for path, row in places for file in find_records(path)]
    output, published = arguments.output, published_values()
    if output and output.resolve() in [file.resolve() for file, _ in files]:
        raise LaserError(f"--output {output} is one of the records; give a file of its own")
    tables = build_tables(read_numbers(files), published)
    markdown = to_markdown(tables, published)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(markdown, encoding="utf-8")
    else:
        print(markdown, end="")
    return tables
