"""Fill the tables of the pages from committed records and presets: `python scripts/render_tables.py [--check]`.

A table stands between `<!-- record: NAME -->` and `<!-- end -->`; nothing in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments import agreement, second, tables  # noqa: E402
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


def _contest(title: str, cases: dict) -> str:
    """Times and ratios of every contestant that ran, a column for each case."""
    measured = [case for case, rows in cases.items() if any("memory_mib" in row for row in rows.values())]
    names = dict.fromkeys(name for rows in cases.values() for name, row in rows.items() if "time" in row)
    rows = []
    for name in names:
        cells = []
        for contestants in cases.values():
            row = contestants.get(name, {})
            shown = f"{milliseconds(row['time']['median'])} ({row['ratio']:.1f}x)" if "time" in row else "not run"
            cells.append(shown)
        memory = [cases[case].get(name, {}).get("memory_mib") for case in measured]
        errors = [c[name]["gradient_error"] for c in cases.values() if "gradient_error" in c.get(name, {})]
        shown = " / ".join("-" if value is None else f"{value:.0f}" for value in memory)
        rows.append([name, *cells, *([shown] if measured else []), f"{max(errors):.0e}"])
    header = [title, *cases, *(["MiB, " + " / ".join(measured)] if measured else []), "gradient error"]
    return table(header, rows)


def soft_dtw_table() -> str:
    """Medians and ratios of the divergence, every contestant."""
    record = read(BENCHMARKS / "soft_dtw-cpu.json")
    return _contest("normalised soft-DTW", record["divergence"]) + (
        "\n\nMedians; in brackets, times what laser_hf takes. Not run: minutes a call, or to compile. Gradient error: "
        f"largest difference from float64. MiB: growth of the process's peak. {measured_on(record)}."
    )


def soft_dtw_more_table() -> str:
    """The divergence on one thread, the whole loss, and how the time depends on the alignment."""
    record = read(BENCHMARKS / "soft_dtw-cpu.json")
    parts = [_contest("LASER loss, with the IDM term", record["loss"])]
    if "divergence_one_thread" in record:
        parts.insert(0, _contest("normalised soft-DTW, one thread", record["divergence_one_thread"]))
    rows = [row for cases in (record["divergence"], record["loss"]) for row in cases.values()]
    failed = {name: row["failed"] for contestants in rows for name, row in contestants.items() if "failed" in row}
    missing = {name: why.removeprefix("Unavailable: ") for name, why in failed.items() if "left out" not in why}
    parts.append("; ".join(f"{name} takes no part: {why}" for name, why in missing.items()))
    if "dense" in record:
        shown = [
            f"{milliseconds(record['dense'][name]['time']['median'])} with {record['dense'][name]['cells_in_use']:.1%}"
            for name in ("as above", "dense")
        ]
        parts.append(
            "The gradient leaves out cells that no alignment passes. The ragged pairs take "
            f"{shown[0]} of the cells in use, as above, and {shown[1]} (gamma {record['dense']['gamma']:g})."
        )
    return "\n\n".join(part for part in parts if part)


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
        more = "" if same is None else f", {same:.2f}x with the same parameters trained"
        updates = f"{record['settings']['updates']} update(s) of {record['settings']['pairs']} pairs each"
        notes.append(f"{record['model']}{more}: {updates} after a warm-up, {measured_on(record)}")
    header = ["model", "way", "an update", "ratio", "encode", "loss", "backward", "peak memory"]
    return table(header, rows) + f"\n\n{'; '.join(notes)}."


def epoch_table() -> str:
    """The predicted epoch, step by step; nothing before its record is there."""
    path = BENCHMARKS / "epoch-hubert-base-predicted-cpu.json"
    if not path.exists():
        return "No record yet."
    record = read(path)
    steps = [f"* {line}" for line in record["prediction"]["arithmetic"]]
    return "\n".join(steps) + f"\n\nNot in it: {record['prediction']['not_in_it']}. {measured_on(record)}."


def kernels_table() -> str:
    """What the compiler says of the CUDA kernels, and the model of their time."""
    record = read(BENCHMARKS / "kernel_model-none.json")
    rows = [
        [
            one["gpu"],
            one["kernel"] + (f", {one['frames']} frames" if "frames" in one else ""),
            str(one["registers"]),
            f"{one['spill_stores'] + one['spill_loads']} bytes",
            f"{one['shared_bytes'] / 1024:.0f} KiB",
            str(one["loop_instructions"] or "no loop"),
            f"{one['sweep_ms']:.2f} ms" if "sweep_ms" in one else "",
            f"{one['traffic_ms']:.2f} ms" if "traffic_ms" in one else "",
        ]
        for one in record["kernels"]
    ]
    header = ["GPU", "kernel", "registers", "spills", "shared memory", "instructions of a step", "model: both sweeps"]
    note = f"{record['problems']} problems at once, Triton {record['peers']['triton']}. Times are a model."
    return table([*header, "model: memory traffic"], rows) + f"\n\n{note}"


def memory_table() -> str:
    """Peak of a micro-batch, and what fits on a GPU by arithmetic."""
    record = read(BENCHMARKS / "memory-hubert-base-cpu.json")
    weights = 4 * record["parameters"] / 2**20
    # Top two layers: gradients and two moments of Adam in fp32 for 2 of 12 layers, 14 of 94 million parameters.
    state = 3 * 4 * 14.2e6 / 2**20
    rows = []
    for name, found in record["variants"].items():
        left = [(size * 1e9 - record["reserved_gb"] * 1e9) / 2**20 - weights - state for size in record["gpus_gb"]]
        seconds = [max(0.0, mib - found["mib_besides"]) / found["mib_per_second"] for mib in left]
        rows.append([name, f"{found['mib_per_second']:.0f} MiB", *(f"{one:.0f} s" for one in seconds)])
    header = ["trained", "a second of speech", *(f"{size} GB" for size in record["gpus_gb"])]
    notes = (
        "Arithmetic, far beyond what was measured: peaks of micro-batches of 10 to 38 s of speech, in utterances of at",
        "most 20 s, on a CPU in fp32 (HuBERT base, random weights). The columns are seconds of speech, both views",
        f"counted, that fit into a micro-batch beside {weights:.0f} MiB of weights, {state:.0f} MiB of gradients and",
        f"Adam's moments, and {record['reserved_gb']} GB that are left free. Not yet measured on a GPU, nor in bf16.",
        f"{measured_on(record)}.",
    )
    return table(header, rows) + f"\n\n{' '.join(notes)}"


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


def layers_table() -> str:
    """What `superb` measures of the shipped encoder at each layer."""
    found: dict[str, dict[int, str]] = {}
    for record, names in (
        ("qbe", {"mean_average_precision": "QbE", "perturbed_mean_average_precision": "QbE, perturbed"}),
        (
            "discrimination",
            {
                "word_ap_across": "words",
                "perturbed_word_ap_across": "words, perturbed",
                "view_distance": "view distance",
                "abx_across": "ABX-like",
            },
        ),
        (
            "zerospeech",
            {"zerospeech_abx_across": "ZeroSpeech ABX", "zerospeech_abx_within": "ZeroSpeech ABX, within speakers"},
        ),
        ("sid", {"layer_accuracy": "speakers, %"}),
    ):
        found |= {title: {} for title in names.values()}
        for metric in read_record(RECORDS / "superb" / f"{record}.json")["metrics"]:
            if metric["metric"] in names and metric.get("trials", "subset") == "subset":
                shown = f"{metric['value']:.{1 if metric['unit'] == 'percent' else 3}f}"
                found[names[metric["metric"]]][metric["layer"]] = shown
    layers = sorted({layer for column in found.values() for layer in column})
    sid = read_record(RECORDS / "superb" / "sid.json")
    note = f"\n\nWeighted sum of all layers: {sid['value']:.1f} % of {sid['data']['speakers']} speakers are told apart."
    rows = [[str(layer), *(column.get(layer, "") for column in found.values())] for layer in layers]
    return table(["layer", *found], rows) + note


def heads_table() -> str:
    """Quick ASR and PR of the shipped encoder."""
    rows = []
    for task in ("asr", "pr"):
        record = read_record(RECORDS / "superb" / f"{task}.json")
        for name in {"asr": ("cer", "wer"), "pr": ("per", "per_2021")}[task]:
            values = {m["split"]: f"{m['value']:.1f}" for m in record["metrics"] if m["metric"] == name}
            rows.append([f"{name}, %", *values.values(), f"{record['data']['train']['utterances']}"])
            splits = list(values)
    return table(["", *splits, "utterances in training"], rows)


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


def second_round(name: str) -> str:
    """A table of the second round of experiments."""
    return second.TABLES[name](read(second.RECORD))


TABLES = {
    "demo": demo_table,
    "qbe": qbe_table,
    "soft-dtw": soft_dtw_table,
    "soft-dtw-more": soft_dtw_more_table,
    "update": update_table,
    "epoch": epoch_table,
    "perturbation": perturbation_table,
    "kernels": kernels_table,
    "memory": memory_table,
    "matching": matching_table,
    "presets": presets_table,
    "superb-layers": layers_table,
    "superb-heads": heads_table,
    "corpus": corpus_table,
    "two_hosts": two_hosts_table,
    "experiments-collapse": experiment("collapse"),
    "experiments-methods": experiment("methods"),
    "experiments-gains": experiment("gains"),
    "experiments-sensitivity": experiment("sensitivity"),
    "experiments-words": experiment("words"),
    "experiments-how": experiment("how"),
    "evaluation-set": lambda: agreement.draw(read(agreement.RECORD)),
    **{f"second-{name}": partial(second_round, name) for name in second.TABLES},
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
