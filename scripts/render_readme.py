"""Fill the README's tables from committed records: `python scripts/render_readme.py [--check]`.

A table stands between `<!-- record: NAME -->` and `<!-- end -->`; nothing in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs" / "records"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def demo_table() -> str:
    """`make demo`: words of held-out voices before and after."""
    words, run = read(RECORDS / "demo" / "results" / "words.json"), read(RECORDS / "demo" / "laser_config.json")
    before, after = words["before"], words["after"]
    names = {
        "same_distance": "mean distance, same word",
        "different_distance": "mean distance, different words",
        "ratio": "same / different (lower is better)",
        "average_precision": "average precision (higher is better)",
    }
    rows = [[label, f"{before[key]:.3f}", f"{after[key]:.3f}"] for key, label in names.items()]
    note = (
        f"\n\n{run['updates']} updates, {run['processed_hours']:.2f} hours of speech processed, "
        f"{run['wall_time_seconds']:.0f} s of training on {run['hardware']['cores']} cores "
        f"({run['hardware']['processor']}); average precision by chance is {before['chance']:.3f}."
    )
    return table(["words of six synthetic voices kept out of training", "shipped encoder", "after LASER"], rows) + note


def collapse_table() -> str:
    """Held-out loss terms and collapse statistics, first and last."""
    rows = []
    for name, label in (("laser", "LASER, alpha 0.15"), ("soft_dtw", "soft-DTW alone, alpha 0")):
        run = read(RECORDS / name / "laser_config.json")
        first, last, fired = run["first"], run["last"], run["collapse"]["fired_at"]

        def change(key: str, digits: int, first=first, last=last) -> str:
            return f"{first[key]['value']:.{digits}f} → {last[key]['value']:.{digits}f}"

        rows.append(
            [
                label,
                change("eval_loss", 1),
                change("eval_soft_dtw", 1),
                change("eval_idm", 0),
                change("eval_frame_cosine", 2),
                change("eval_effective_rank", 1),
                f"update {fired}" if fired is not None else "no",
            ]
        )
    run = read(RECORDS / "laser" / "laser_config.json")
    note = (
        f"\n\nEach: {run['updates']} updates of 8 pairs, {run['processed_hours']:.2f} hours of source speech, seed "
        f"{run['seed']}, one run."
    )
    header = ["held-out", "loss", "soft-DTW", "IDM", "mean cosine of frames", "effective rank", "collapse alarm"]
    return table(header, rows) + note


def qbe_table() -> str:
    """Query-by-example of the shipped encoder and of what fine-tuning makes of it, best last."""
    systems = (
        read(ROOT / "laser_hf" / "demo" / "encoder" / "qbe.json")["systems"] + read(RECORDS / "qbe.json")["systems"]
    )
    rows = [
        [s["name"].replace("this encoder", "the shipped encoder"), str(s["layer"]), f"{s['value']:.3f}"]
        for s in sorted(systems, key=lambda s: s["value"])
    ]
    return table(["features", "layer", "mean average precision"], rows)


def full_size_table() -> str:
    """Memory and time of full-size updates."""
    rows = []
    for preset in ("hubert-base", "wavlm-base"):
        run = read(RECORDS / f"full_size_{preset}.json")
        rows.append(
            [
                preset,
                f"{run['parameters'] / 1e6:.1f} M",
                run["precision"],
                str(len(run["steps"])),
                f"{run['training_seconds'] / len(run['steps']):.0f} s",
                f"{run['peak_memory_gib']:.1f} GiB",
            ]
        )
    return table(["preset", "parameters", "precision", "updates", "time an update", "peak memory"], rows)


TABLES = {"demo": demo_table, "collapse": collapse_table, "qbe": qbe_table, "full-size": full_size_table}


def render(text: str) -> str:
    """README text with every table filled in.

    Raises:
        KeyError: a table that no function here makes.
    """

    def fill(match: re.Match) -> str:
        return f"<!-- record: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- record: ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether the README is up to date")
    options = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text()
    rendered = render(text)
    if options.check and rendered != text:
        sys.exit("README.md does not match its records; run python scripts/render_readme.py")
    if not options.check:
        path.write_text(rendered)


if __name__ == "__main__":
    main()
