"""A corpus of many files: seconds and memory until a run knows them, against `find` on the same tree.

The tree has LibriSpeech's depth, `train/speaker/chapter/speaker-chapter-utterance.opus` with transcripts, and is made
of hard links to a few files of the demo speech. Each measurement is a process of its own, and they take turns:

* `find`: `find TREE -name '*.opus'`; `find with sizes`: the same with `-printf '%s %T@'`, which asks for every file.
* `first`: `load_speech` without anything kept. `second`: once more.
* `files asked`: size and time of change of every file, as each start of a run does before it takes kept lengths.
* `manifest`: `load_speech` of a kept manifest, with the fingerprint of all ids, sizes and durations.
* `headers`: lengths of some of the files, read for the first time.

What the machine did beside is in the record as its load before and after.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

import laser_hf
from benchmarks import common
from benchmarks.common import peak_mib, save_record
from laser_hf.data import PairDataset, PairTransform, SpeedPitch, load_speech
from laser_hf.data.files import find_audio_files
from laser_hf.data.listing import write_manifest
from laser_hf.data.pair_sets import file_states, read_headers

DEMO = Path(laser_hf.__file__).resolve().parent / "demo" / "speech"
CHAPTERS, UTTERANCES, SOURCES, WAIT = 8, 45, 24, 2.5
TARGETS = {"first_seconds": 20, "first_mib": 600, "second_seconds": 2}


def build_tree(root: Path, files: int) -> int:
    """Make the tree of so many files, and return the number of its folders."""
    sources = []
    (root / "sources").mkdir(parents=True)
    for number, path in enumerate(find_audio_files(DEMO)[:SOURCES]):
        sources.append(shutil.copy(path, root / "sources" / f"{number}{path.suffix}"))
    made = folders = 0
    while made < files:
        speaker, chapter = divmod(folders, CHAPTERS)
        place = root / "tree" / "train" / str(speaker) / str(1000 + chapter)
        place.mkdir(parents=True)
        names = [f"{speaker}-{1000 + chapter}-{n:04d}" for n in range(min(UTTERANCES, files - made))]
        for name in names:
            os.link(sources[made % len(sources)], place / f"{name}.opus")
            made += 1
        lines = "".join(f"{name} THE WORDS OF AN UTTERANCE ARE ABOUT AS MANY AS THESE\n" for name in names)
        (place / f"{speaker}-{1000 + chapter}.trans.txt").write_text(lines)
        folders += 1
    return folders


def measured(function: Callable[..., Any], cache: Path, *arguments: Any) -> dict[str, float]:
    """Seconds, processor seconds with those of children, and peaks of memory of a call in a fresh process."""
    return common.in_a_process(_measure, function, cache, arguments)


def _measure(sender, function, cache, arguments) -> None:
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    before, times, began = peak_mib(), os.times(), time.perf_counter()
    function(*arguments)
    seconds, after = time.perf_counter() - began, os.times()
    used = sum(after[:4]) - sum(times[:4])
    sender.send({"seconds": seconds, "cpu_seconds": used, "peak_mib": peak_mib(), "added_mib": peak_mib() - before})


def listed(tree: Path) -> None:
    load_speech(tree, "train")


def asked(tree: Path) -> None:
    file_states(load_speech(tree, "train"))


def by_manifest(path: Path) -> None:
    PairDataset(load_speech(path), PairTransform(SpeedPitch())).fingerprint()


def headers(tree: Path, count: int) -> None:
    read_headers(load_speech(tree, "train").select(range(count)))


def found(tree: Path, *more: str) -> dict[str, float]:
    """Seconds of `find`."""
    times, began = os.times(), time.perf_counter()
    subprocess.run(["find", str(tree), "-name", "*.opus", *more], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": sum(after[2:4]) - sum(times[2:4])}


def make_manifest(root: Path) -> Path:
    """The tree's manifest; lengths and sizes are those of the files that it links to."""
    write_manifest(root / "sources", root / "sources.tsv")
    known = {}
    for line in (root / "sources.tsv").read_text().splitlines()[1:]:
        path, *_, samples, size, crc = line.split("\t")
        known[os.stat(root / path).st_ino] = f"{samples}\t{size}\t{crc}"
    with (root / "manifest.tsv").open("w") as file:
        file.write("path\tsamples\tbytes\tcrc\n")
        for path in find_audio_files(root / "tree"):
            file.write(f"{path}\t{known[os.stat(path).st_ino]}\n")
    return root / "manifest.tsv"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return its record's content."""
    parser = common.build_parser("corpus", __doc__, "3,000 files, one round", device=None)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--headers", type=int, default=20_000, help="files whose headers are read")
    parser.add_argument("--folder", type=Path, help="where the tree goes; default: a temporary folder")
    options = common.parse_options(parser, argv)
    if options.quick:
        options.files, options.rounds, options.headers = 45_000, 1, 500
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="corpus-") as place:
        root = Path(place)
        folders = build_tree(root, options.files)
        tree, manifest = root / "tree", make_manifest(root)
        time.sleep(WAIT)  # what has just changed is listed once more
        rounds: dict[str, list[dict[str, float]]] = {}

        def note(name: str, result: dict[str, float]) -> None:
            rounds.setdefault(name, []).append(result)
            print(name, " ".join(f"{key} {value:.2f}" for key, value in result.items()), flush=True)

        by_manifest_cache = root / "cache-manifest"
        note("manifest, first", measured(by_manifest, by_manifest_cache, manifest))
        for number in range(options.rounds):
            cache = root / f"cache-{number}"
            note("find", found(tree))
            note("first", measured(listed, cache, tree))
            note("find with sizes", found(tree, "-printf", "%s %T@\\n"))
            note("second", measured(listed, cache, tree))
            note("files asked", measured(asked, cache, tree))
            note("manifest", measured(by_manifest, by_manifest_cache, manifest))
            if number == 0:
                note("headers", measured(headers, cache, tree, options.headers))
    medians = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in rounds.items()
    }
    ratios = {
        name: {key: statistics.median(a[key] / b[key] for a, b in zip(rounds[name], rounds[peer], strict=True))
               for key in ("seconds", "cpu_seconds")}
        for name, peer in (
            ("first", "find"), ("second", "find"), ("files asked", "find with sizes"), ("manifest", "find"),
        )
    }  # fmt: skip
    content = {
        "files": options.files,
        "folders": folders,
        "headers": options.headers,
        "rounds": rounds,
        "medians": medians,
        "ratio_to_find": ratios,
        "load": {"before": load_before, "after": os.getloadavg()[0]},
        "targets": TARGETS,
    }
    print(f"record: {save_record('corpus', content, path=options.output)}")
    return content


if __name__ == "__main__":
    main()
