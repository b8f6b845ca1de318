"""How two evaluation sets agree: word and phone times, and the query-by-example task.

python -m experiments.agreement evaluation OTHER
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from laser_hf.cli import run
from laser_hf.data import find_audio_files, read_table
from laser_hf.records import read_json, write_json
from laser_hf.superb.discrimination import Token, read_alignments
from laser_hf.superb.qbe.data import TABLES, read_tables

from .tables import table

RECORD = Path(__file__).resolve().parent / "records" / "evaluation_set.json"
NEAR = 0.05  # seconds between the starts of a word in two sets


def paired(here: Sequence[Token], there: Sequence[Token]) -> list[tuple[Token, Token]]:
    """The tokens of one utterance that two sets have in the same order."""
    labels = ([token.label for token in tokens] for tokens in (here, there))
    blocks = SequenceMatcher(None, *labels, autojunk=False).get_matching_blocks()
    return [(here[i + k], there[j + k]) for i, j, count in blocks for k in range(count)]


def compare_times(ours: Path, theirs: Path, wanted: Container[str]) -> dict[str, Any]:
    """How many of the `wanted` utterances, their words and phones are in both, and how close their times are."""
    here, there = (read_alignments(folder / "alignments.tsv") for folder in (ours, theirs))
    names = [{token.utterance for token in one.words if token.utterance in wanted} for one in (here, there)]
    both = sorted(names[0] & names[1])
    result = {"utterances": {"ours": len(names[0]), "theirs": len(names[1]), "in both": len(both)}}
    for kind in ("words", "phones"):
        ones, others = defaultdict(list), defaultdict(list)
        for by_name, one in ((ones, here), (others, there)):
            for token in getattr(one, kind):
                by_name[token.utterance].append(token)
        pairs = [pair for name in both for pair in paired(ones[name], others[name])]
        apart = [abs(gap) for a, b in pairs for gap in (a.start - b.start, a.end - b.end)]
        within = {f"boundaries within {ms} ms": sum(gap < ms / 1000 + 1e-6 for gap in apart) for ms in (0, 20, 50)}
        lost = sum(len(others[name]) for name in both) - len(pairs)
        result[kind] = {"in both": len(pairs), "only theirs": lost, "boundaries": len(apart), **within}
    return result


def compare_tasks(ours: Path, theirs: Path) -> dict[str, Any]:
    """Queries (utterance, word, start within `NEAR`) and their targets that two tasks have in common."""
    queries, targets = [], []
    for folder in (ours, theirs):
        task = read_tables(folder)
        words = [row["word"] for _, row in read_table(folder / TABLES[0], ("word",))]
        queries.append([(one.audio.stem, word, one.start) for one, word in zip(task.queries, words, strict=True)])
        targets.append([{task.documents[j].name for j in row.nonzero()[0]} for row in task.targets])
    common = shared = 0
    for (name, word, start), held in zip(queries[1], targets[1], strict=True):
        same = [i for i, one in enumerate(queries[0]) if one[:2] == (name, word) and abs(one[2] - start) <= NEAR + 1e-6]
        if same:
            common, shared = common + 1, shared + len(targets[0][same[0]] & held)
    return {
        "queries": {"ours": len(queries[0]), "theirs": len(queries[1]), "in both": common},
        "targets": {"ours": sum(map(len, targets[0])), "theirs": sum(map(len, targets[1])), "in both": shared},
        "the same task": read_tables(ours).revision() == read_tables(theirs).revision(),
    }


def draw(record: dict[str, Any]) -> str:
    """The set, and how it agrees with the other, as two Markdown tables: the splits that have times."""
    splits = {split: about for split, about in record["splits"].items() if "aligned" in about}
    agreement = record["agreement"]
    share = "{:.2%}".format

    def row(label: str, cells: Callable[[str], str]) -> list[str]:
        return [label, *(cells(split) for split in splits)]

    def boundaries(kind: str, ms: int) -> list[str]:
        found = {split: agreement[split][kind] for split in splits}
        ratio = {split: one[f"boundaries within {ms} ms"] / one["boundaries"] for split, one in found.items()}
        return row(f"boundaries of {kind} {f'at most {ms} ms apart' if ms else 'equal'}", lambda s: share(ratio[s]))

    reasons = {reason: None for one in splits.values() for reason in one["without times"]}
    size = "{utterances} of {speakers} speakers, {minutes} minutes".format_map
    lost = [row(f"no times: {why}", lambda s, why=why: str(splits[s]["without times"].get(why, 0))) for why in reasons]
    first = [
        row("utterances", lambda s: size(splits[s])),
        row("with times", lambda s: str(splits[s]["aligned"])),
        *lost,
        row("with times here / there / in both", lambda s: " / ".join(map(str, agreement[s]["utterances"].values()))),
        *(boundaries(kind, ms) for kind in ("words", "phones") for ms in (0, 20, 50)),
    ]
    second = [[name, *map(str, agreement["qbe"][name].values())] for name in ("queries", "targets")]
    return f"{table(['', *splits], first)}\n\n{table(['query by example', 'here', 'there', 'in both'], second)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the record of a set that `scripts/make_evaluation_set.py` built, and how it agrees with another."""
    parser = argparse.ArgumentParser(prog="python -m experiments.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("ours", type=Path, help="output folder of scripts/make_evaluation_set.py")
    parser.add_argument("theirs", type=Path, help="folder with alignments.tsv and qbe")
    parser.add_argument("--output", type=Path, default=RECORD, help="record (default: %(default)s)")
    options = parser.parse_args(argv)
    record = read_json(options.ours / "evaluation_set.json", dict)
    agreement = {
        split: compare_times(
            options.ours, options.theirs, {path.stem for path in find_audio_files(options.ours / "LibriSpeech" / split)}
        )
        for split in record["splits"]
    }
    agreement["qbe"] = compare_tasks(options.ours / "qbe", options.theirs / "qbe")
    write_json(options.output, {**record, "agreement": agreement})


if __name__ == "__main__":
    run(main)
