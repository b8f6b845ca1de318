"""Fill the tables of the pages from committed records and presets: `python scripts/render_tables.py [--check]`.

A table stands between `<!-- record: NAME -->` and `<!-- end -->`; nothing in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments import tables  # noqa: E402
from experiments.tables import table  # noqa: E402
from laser_hf.data import find_perturbation  # noqa: E402
from laser_hf.objectives import find_objective  # noqa: E402
from laser_hf.plugins import Plugin  # noqa: E402
from laser_hf.records import read_record  # noqa: E402

RECORDS = ROOT / "docs" / "records"
BENCHMARKS = ROOT / "benchmarks" / "records"
EXPERIMENTS = ROOT / "experiments" / "records" / "small_encoder.json"
PRESETS = ROOT / "laser_hf" / "presets"
PAGES = (
    "README.md",
    "docs/presets.md",
    "docs/superb.md",
    "docs/clusters.md",
    "benchmarks/README.md",
    "experiments/README.md",
)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def demo_table() -> str:
    """`make demo`: words of held-out voices before and after."""
    words = read_record(RECORDS / "demo" / "results" / "words.json")
    run = read_record(RECORDS / "demo" / "laser_config.json")
    (before,), (after,) = words["base"]["metrics"], words["metrics"]
    names = {
        "same_distance": "mean distance, same word",
        "different_distance": "mean distance, different words",
        "ratio": "same / different (lower is better)",
        "value": "average precision (higher is better)",
    }
    rows = [[label, f"{before[key]:.3f}", f"{after[key]:.3f}"] for key, label in names.items()]
    note = (
        f"\n\n{run['updates']} updates, {run['processed_hours']:.2f} hours of speech processed, "
        f"{run['wall_seconds']:.0f} s of training on {run['hardware']['cores']} cores "
        f"({run['hardware']['processor']}); average precision by chance is {before['chance']:.3f}."
    )
    return table(["words of six synthetic voices kept out of training", "shipped encoder", "after LASER"], rows) + note


def qbe_table() -> str:
    """Query-by-example of the shipped encoder and of what fine-tuning makes of it, best last."""
    record = read(EXPERIMENTS)
    systems = [
        (s["value"], s["name"].replace("this encoder", "the shipped encoder"), s["layer"], f"{s['value']:.3f}")
        for s in read(ROOT / "laser_hf" / "demo" / "encoder" / "qbe.json")["systems"]
    ]
    layer = max(layer for *_, layer, _ in systems)
    for one in tables.POINTS:
        values = tables.values(tables.runs_of(record, one), "qbe", tables.QBE)
        if one.trained and values and {"methods", "collapse"} & set(one.tables):
            systems.append(
                (sum(values) / len(values), f"after {one.method or one.label}", layer, tables.spread(values, 3))
            )
    return table(
        ["features", "layer", "mean average precision"],
        [[name, str(layer), shown] for _, name, layer, shown in sorted(systems)],
    )


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.02 else f"{1000 * seconds:.1f} ms"


def measured_on(record: dict) -> str:
    hardware = record["hardware"]
    return f"{hardware['processor']}, {record['threads']} thread(s) of {hardware['cores']} cores"


def soft_dtw_table() -> str:
    """Medians and ratios of the divergence and of the whole loss, every contestant."""
    record = read(BENCHMARKS / "soft_dtw-cpu.json")
    parts = []
    for kind, title in (("divergence", "normalised soft-DTW"), ("loss", "LASER loss, with the IDM term")):
        cases = record[kind]
        names = list(dict.fromkeys(name for rows in cases.values() for name in rows))
        largest = "8 ragged pairs around 635"
        rows = []
        for name in names:
            cells = []
            for contestants in cases.values():
                row = contestants.get(name, {"failed": ""})
                failed = row.get("failed")
                cells.append(
                    "not run" if failed is not None else f"{milliseconds(row['time']['median'])} ({row['ratio']:.1f}x)"
                )
            errors = [c[name]["gradient_error"] for c in cases.values() if "gradient_error" in c.get(name, {})]
            memory = cases[largest].get(name, {}).get("memory_mib")
            rows.append([name, *cells, "" if memory is None else f"{memory:.0f} MiB", f"{max(errors):.0e}"])
        parts.append(table([title, *cases, f"memory, {largest}", "gradient error"], rows))
    note = (
        "Medians; in brackets, times what laser_hf takes. Not run: minutes a call, or to compile. Gradient error: "
        "largest difference from float64. Memory: "
        f"growth of the process's peak. {measured_on(record)}."
    )
    return "\n\n".join([*parts, note])


def update_table() -> str:
    """One update of full size, ours and the released way."""
    rows, notes = [], []
    for path in sorted(BENCHMARKS.glob("update-*-cpu.json")):
        record = read(path)
        for name, system in record["systems"].items():
            seconds = system["seconds"]
            rows.append(
                [
                    f"{record['model']}, {record['precision']}",
                    name,
                    f"{system['seconds_per_update']:.1f} s",
                    f"{record['ratios'][name]:.2f}x",
                    *(f"{seconds.get(part, 0.0):.1f} s" for part in ("encode", "loss", "backward")),
                    f"{system['peak_memory_gib']:.1f} GiB",
                ]
            )
        same = record["ratio_same_parameters"]
        if same is not None:
            notes.append(f"{record['model']}: {same:.2f}x with the same parameters trained")
    header = ["model", "way", "an update", "ratio", "encode", "loss", "backward", "peak memory"]
    updates = f"{record['settings']['updates']} update(s) each after a warm-up"
    return table(header, rows) + f"\n\n{'; '.join(notes)}. {updates}. {measured_on(record)}."


def perturbation_table() -> str:
    """Pitch shift against torchaudio."""
    record = read(BENCHMARKS / "perturbation-cpu.json")
    rows = []
    for pitch in record["pitch"]:
        times, first = pitch["timings"], pitch["first_call_seconds"]
        rows.append(
            [
                f"{pitch['semitones']:+g} semitones",
                milliseconds(times["laser_hf"]["median"]),
                milliseconds(times["torchaudio"]["median"]),
                f"{pitch['ratios']['torchaudio']:.1f}x",
                f"{first['laser_hf']:.2f} s / {first['torchaudio']:.1f} s",
                f"{pitch['laser_hf_table_mib']:.1f} / {pitch['torchaudio_kernel_mib']:.0f} MiB",
                f"{pitch['max_difference']:.1e}",
            ]
        )
    header = ["shift", "laser_hf", "torchaudio", "ratio", "first call", "table / kernel", "largest difference"]
    return (
        table(header, rows) + f"\n\nDifferences are of full scale, over {record['seconds']:g} s. {measured_on(record)}."
    )


def matching_table() -> str:
    """Query-by-example matching against dtw-python."""
    rows = []
    for path in sorted(BENCHMARKS.glob("qbe*-cpu.json")):
        record = read(path)
        for name, result in record["results"].items():
            rows.append(
                [
                    "LibriSpeech" if record["task"]["source"] == "qbe" else "the demo's",
                    name,
                    f"{result['dtw-python']['median']:.2f} s",
                    f"{result['laser_hf']['median']:.3f} s",
                    f"{result['ratio']:.0f}x",
                    f"{result['largest_difference']:.0e}",
                ]
            )
    task = record["task"]
    note = f"\n\n{task['queries']} queries against {task['documents']} documents. {measured_on(record)}."
    return table(["speech", "timed", "dtw-python", "laser_hf", "ratio", "scores differ by"], rows) + note


def presets_table() -> str:
    """Every preset that ships, by what it sets."""
    rows = []
    for path in sorted(PRESETS.glob("*.json")):
        preset = read(path)
        objective = find_objective(preset.get("objective", "laser"))
        views = [find_perturbation(name) for name in preset.get("perturbations", ["speed_pitch"])]
        size = f"{preset['seconds_per_update']:g} s" if "seconds_per_update" in preset else "8 pairs"
        if "pairs_per_update" in preset:
            size = f"{preset['pairs_per_update']} pairs"
        if "crop_seconds" in preset:
            size += f" (crops of {preset['crop_seconds']:g} s, from {preset['min_seconds']:g} s)"
        rate = f"{preset['learning_rate']:g}"
        if lowest := (preset.get("lr_scheduler_kwargs") or {}).get("min_lr_ratio"):
            lowest = f"{lowest * preset['learning_rate']:g}"
            rate = f"{lowest} → {rate} → {lowest}"
        adam = "Adam" if preset.get("coupled_weight_decay") else "AdamW"
        decay = f", decay {preset['weight_decay']:g}" if preset.get("weight_decay") else ""
        layers = preset.get("projection_layers", 1)
        head = f"{preset['projection_dim']}" + (f", {layers} layers" if layers > 1 else "")
        rows.append(
            [
                f"[`{path.stem}`](../laser_hf/presets/{path.name})",
                preset["model_name_or_path"].replace("{laser_hf}/demo/encoder", "the shipped encoder"),
                objective.name,
                _options(objective, preset),
                head,
                "; then ".join(_view(view, preset) for view in views),
                size,
                f"{preset['max_steps']} ({preset['warmup_steps']} warm-up)",
                f"{adam} {rate}{decay}, clip {preset['max_grad_norm']:g}",
                preset["source"],
            ]
        )
    header = ["preset", "base", "objective", "loss", "projection", "second view", "an update", "updates", "optimiser"]
    return table([*header, "source"], rows)


def _view(perturbation: type[Plugin], preset: dict) -> str:
    options = _options(perturbation, preset)
    return f"{perturbation.name} ({options})" if options else perturbation.name


def _options(plugin: type[Plugin], preset: dict) -> str:
    """The options of a class that a preset sets."""
    set_here = [option.dest for option in plugin.options if option.dest in preset]
    return "; ".join(f"{dest.replace('_', ' ')} {_plain(preset[dest])}" for dest in set_here)


def _plain(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def corpus_table() -> str:
    """A million files: seconds and memory of the first start and of later ones."""
    record = read(BENCHMARKS / "corpus-cpu.json")
    names = {
        "find": "`find`, names",
        "find with sizes": "`find`, names, sizes and times",
        "first": "folder, first start",
        "second": "folder, later starts",
        "files asked": "the same, with size and time of every file",
        "manifest": "manifest, later starts, with the digest of all lengths",
    }
    rows = []
    for key, label in names.items():
        found, ratio = record["medians"][key], record["ratio_to_find"].get(key)
        memory = f"{found['peak_mib']:.0f} MiB ({found['added_mib']:.0f})" if "peak_mib" in found else ""
        ratios = f"{ratio['seconds']:.1f}x ({ratio['cpu_seconds']:.1f}x)" if ratio else ""
        rows.append([label, f"{found['seconds']:.1f} s ({found['cpu_seconds']:.1f})", ratios, memory])
    headers = record["medians"]["headers"]
    load = record["load"]
    note = (
        f"\n\n{record['files']:,} files in {record['folders']:,} folders, medians of {len(record['rounds']['first'])} "
        "rounds; in brackets processor seconds, and memory that was added to what the imports take. The ratio is to "
        "`find` in the same round; where sizes are asked, to `find` with sizes. Headers are read once, at "
        f"{1000 * headers['seconds'] / record['headers']:.2f} ms a file. {measured_on(record)}; load of the machine "
        f"{load['before']:.1f} before and {load['after']:.1f} after."
    )
    return table(["", "time", "to `find`", "peak memory"], rows) + note


def two_hosts_table() -> str:
    """The rehearsal of two hosts: how the processes ended, and whether the result is that of an undisturbed run."""
    record, by_ddp = read(RECORDS / "two_hosts.json"), read(RECORDS / "two_hosts_ddp.json")
    largest = max(run["largest_difference_of_a_weight"] for run in by_ddp["runs"].values())
    rows = [
        [
            name,
            ", ".join(map(str, run["statuses"])),
            "; ".join(f"{', '.join(kept)}" for kept in run["checkpoints"].values()),
            f"differs: {', '.join(run['differs'])}" if run["differs"] else "same weights, log and record",
        ]
        for name, run in record["runs"].items()
    ]
    where = "two network namespaces" if record["namespaces"] else "two folders on one host, without namespaces"
    heads = ["what happened", "exit statuses", "checkpoints on each host", "after the same command again"]
    note = (
        f"\n\n{record['processes']} processes, {record['updates']} updates, {where}; commit `{record['commit']}`. "
        f"With sums in DDP's own order, no weight differed by more than {largest:.0e}."
    )
    return table(heads, rows) + note


def experiment(name: str) -> Callable[[], str]:
    """A table of the experiments."""
    return lambda: tables.TABLES[name](read(EXPERIMENTS))


TABLES = {
    "demo": demo_table,
    "qbe": qbe_table,
    "soft-dtw": soft_dtw_table,
    "update": update_table,
    "perturbation": perturbation_table,
    "matching": matching_table,
    "presets": presets_table,
    "corpus": corpus_table,
    "two_hosts": two_hosts_table,
    "experiments-collapse": experiment("collapse"),
    "experiments-methods": experiment("methods"),
    "experiments-gains": experiment("gains"),
    "experiments-sensitivity": experiment("sensitivity"),
    "experiments-words": experiment("words"),
    "experiments-how": experiment("how"),
}


def render(text: str) -> str:
    """The text of a page with every table filled in.

    Raises:
        KeyError: a table that no function here makes.
    """

    def fill(match: re.Match) -> str:
        return f"<!-- record: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- record: ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether the pages are up to date")
    options = parser.parse_args()
    stale = []
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        rendered = render(text)
        if rendered != text:
            stale.append(name)
            if not options.check:
                path.write_text(rendered)
    if options.check and stale:
        sys.exit(f"{', '.join(stale)}: not as the records say; run python scripts/render_tables.py")


if __name__ == "__main__":
    main()
