"""The evaluation set: rules counted by hand on made-up speech with an aligner that divides it evenly."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, make_waveform

from experiments import agreement, plan
from laser_hf.data import read_table
from laser_hf.errors import LaserError
from laser_hf.superb.discrimination import read_alignments
from laser_hf.superb.qbe.data import read_tables

# What the held-out speakers say, half a second a word.
TEXTS = {32: "the garden of garden", 3664: "GARDEN don't qqqq", 5789: "stone", 6848: "garden"}
SILENCE = "silence"


class Even:
    """Gives all words the same time; stops one word before the end at `cutshort`, and finds nothing at `silence`."""

    name, version = "even", "1"

    def knows(self, word: str) -> bool:
        return word != "qqqq"

    def align(self, samples, words):
        assert np.frombuffer(samples, np.int16).any()
        if words == [SILENCE]:
            return None
        frames = len(samples) // 320
        edges = [frames * i // len(words) for i in range(len(words) + 1)]
        times = [
            script.Timed(word, edge, end - edge, [("SIL", edge, 1), ("AH", edge + 1, end - edge - 1)])
            for word, edge, end in zip(words, edges, edges[1:], strict=False)
        ]
        return [script.Timed("<sil>", 0, 1, [("SIL", 0, 1)]), *(times[:-1] if "cutshort" in words else times)]


def load():
    spec = importlib.util.spec_from_file_location(
        "make_evaluation_set", REPOSITORY / "scripts" / "make_evaluation_set.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load()


def write(folder: Path, name: str, text: str, seconds: float) -> None:
    speaker, chapter, _ = name.split("-")
    folder = folder / speaker / chapter
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}.flac", make_waveform(seconds, seed=len(name)), 16_000)
    with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
        file.write(f"{name} {text}\n")


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """LibriSpeech as it unpacks: all speakers of the rule and one more; eleven of test-other."""
    root = tmp_path_factory.mktemp("public") / "LibriSpeech"
    for speaker in (*script.TRAIN_SPEAKERS, 9999):
        write(root / "train-clean-5", f"{speaker}-7-0000", "garden", 0.5)
    for speaker, text in TEXTS.items():
        write(root / "train-clean-5", f"{speaker}-8-0000", text, 0.5 * len(text.split()))
    for speaker in range(101, 112):
        write(root / "test-other", f"{speaker}-10-0000", "stone", 0.2)
    for number in range(1, 12):  # the last of a chapter with a smaller number
        write(root / "test-other", f"101-{10 if number < 11 else 9}-{number:04d}", "stone cutshort", 0.8)
    write(root / "test-other", "102-10-0001", SILENCE, 0.5)
    write(root / "test-other", "102-10-0002", "garden", 0.25)
    return root


@pytest.fixture(scope="module")
def built(speech, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "evaluation"
    script.main(["--librispeech", str(speech), "--output_dir", str(out)], aligner=Even)
    return out


def test_splits_are_those_of_the_experiments():
    assert script.SPLITS == (plan.TRAIN_SPLIT, plan.DEV_SPLIT, plan.TEST_SPLIT)


def test_which_utterances_are_in_which_split(built):
    record = json.loads((built / "evaluation_set.json").read_text())
    speakers = {split: {path.name for path in (built / "LibriSpeech" / split).iterdir()} for split in script.SPLITS}
    assert speakers["train-clean-5"] == set(map(str, script.TRAIN_SPEAKERS))
    assert speakers["heldout-clean-5"] == {"32", "3664", "5789", "6848"}
    assert speakers["test-other-100"] == {str(number) for number in range(101, 111)}
    first = sorted(path.stem for path in (built / "LibriSpeech/test-other-100/101").rglob("*.flac"))
    assert first == ["101-10-0000", *(f"101-10-{number:04d}" for number in range(1, 9)), "101-9-0011"]
    transcript = (built / "LibriSpeech/heldout-clean-5/3664/8/3664-8.trans.txt").read_text()
    assert transcript == "3664-8-0000 GARDEN DON'T QQQQ\n"
    assert record["times"] == {"aligner": "even", "version": "1", "checked by hand": False}
    test = record["splits"]["test-other-100"]
    assert (test["utterances"], test["speakers"], test["aligned"]) == (10 + 3 + 8, 10, 20)
    assert test["without times"] == {"the aligner finds no path": 1}
    assert len(test["words missing at the end"]) == 9
    assert record["splits"]["heldout-clean-5"]["without times"] == {"a word is not in the dictionary": 1}


def test_times_are_those_of_the_aligner(built):
    words = [token for token in read_alignments(built / "alignments.tsv").words if token.utterance == "32-8-0000"]
    assert [(token.label, token.start, token.duration) for token in words] == [
        ("the", 0.0, 0.5), ("garden", 0.5, 0.5), ("of", 1.0, 0.5), ("garden", 1.5, 0.5)
    ]  # fmt: skip
    phones = read_alignments(built / "alignments.tsv", utterances=["32-8-0000"]).phones
    assert [(token.label, round(token.start, 2)) for token in phones][:2] == [("AH", 0.01), ("AH", 0.51)]


def test_queries_and_targets_as_counted_by_hand(built):
    task = read_tables(built / "qbe")
    words = {row["query"]: row["word"] for _, row in read_table(built / "qbe" / "queries.tsv", ("query", "word"))}
    found = [(one.audio.stem, words[one.name], one.start) for one in task.queries]
    # "stone" is short in 102 to 110; "don't" and "qqqq" are said once; 3664 has no times but is a target.
    expected = [(f"101-10-{number:04d}", "stone", 0.0) for number in range(1, 9)]
    expected += [("101-9-0011", "stone", 0.0), ("102-10-0002", "garden", 0.0)]
    expected += [("32-8-0000", "garden", 0.5), ("32-8-0000", "garden", 1.5), ("5789-8-0000", "stone", 0.0)]
    assert found == [*expected, ("6848-8-0000", "garden", 0.0)]
    held = {task.documents[j].name for j in task.targets[10].nonzero()[0]}
    assert held == {"102-10-0002", "3664-8-0000", "6848-8-0000"}
    assert {one.name for one in task.documents} >= {"3664-8-0000", "102-10-0001"}
    assert all(one.audio.is_file() for one in (*task.queries, *task.documents))


def test_a_list_takes_the_place_of_the_rule(speech, built, tmp_path, capsys):
    listed = (built / "utterances.txt").read_text().split()
    (tmp_path / "list").write_text(
        "\n".join(reversed([name for name in listed if name != "19-7-0000"] + ["9999-7-0000"]))
    )
    command = ["--librispeech", str(speech), "--utterances", str(tmp_path / "list"), "--output_dir"]
    script.main([*command, str(tmp_path / "out")], aligner=Even)
    assert "9999-7-0000" in (tmp_path / "out/utterances.txt").read_text()
    assert not (tmp_path / "out/LibriSpeech/train-clean-5/19").exists()
    assert (tmp_path / "out/qbe/queries.tsv").read_bytes() == (built / "qbe/queries.tsv").read_bytes()
    (tmp_path / "list").write_text("19-7-0000\n1-2-3\n")
    with pytest.raises(LaserError, match="1 of the utterances are neither in train-clean-5 nor in test-other, such as"):
        script.main([*command, str(tmp_path / "other")], aligner=Even)
    with pytest.raises(LaserError, match="out is not empty; give a new --output_dir"):
        script.main([*command, str(tmp_path / "out")], aligner=Even)


def test_what_is_missing_is_named(speech, tmp_path):
    clean, other = (script.read_recordings(speech / part) for part in ("train-clean-5", "test-other"))
    with pytest.raises(LaserError, match="train-clean-5 has no speech of 32; is it"):
        script.choose({name: one for name, one in clean.items() if not name.startswith("32-")}, other)
    with pytest.raises(LaserError, match="test-other has 9 speakers, expected 10 or more"):
        script.choose(clean, {name: one for name, one in other.items() if name[:3] not in ("103", "104")})
    with pytest.raises(LaserError, match=r"no folder .*nowhere"):
        script.read_recordings(tmp_path / "nowhere")
    (tmp_path / "1-2.trans.txt").write_text("1-2-0003 TEXT\n")
    with pytest.raises(LaserError, match=r"1-2.trans.txt, line 1: there is no audio of 1-2-0003"):
        script.read_recordings(tmp_path)


def test_agreement_of_two_sets(built, tmp_path):
    """The other set: 101's words start 30 ms later, one query is gone and one lies elsewhere."""
    (tmp_path / "qbe").mkdir()
    table = []
    for line in (built / "alignments.tsv").read_text().splitlines():
        fields = line.split("\t")
        if fields[0].startswith("101-10") and fields[1] == "stone":
            fields[2] = f"{float(fields[2]) + 0.03:.2f}"
        table.append("\t".join(fields))
    (tmp_path / "alignments.tsv").write_text("\n".join(table) + "\n")
    queries = (built / "qbe/queries.tsv").read_text().replace("\t0.50\t0.50\t32\t", "\t0.60\t0.50\t32\t")
    targets = (built / "qbe/targets.tsv").read_text().splitlines()
    for name, lines in (("queries", queries.splitlines()), ("targets", targets)):
        kept = [line for line in lines if not line.startswith("q0000")]
        (tmp_path / f"qbe/{name}.tsv").write_text("\n".join(kept) + "\n")
    (tmp_path / "qbe/documents.tsv").write_text((built / "qbe/documents.tsv").read_text())
    agreement.main([str(built), str(tmp_path), "--output", str(tmp_path / "record.json")])
    found = json.loads((tmp_path / "record.json").read_text())["agreement"]
    test = found["test-other-100"]
    assert test["utterances"] == {"ours": 20, "theirs": 20, "in both": 20}
    # 101 says nine times "stone" in this chapter; both start and end are 30 ms late.
    assert test["words"] == {
        "in both": 20, "only theirs": 0, "boundaries": 40,
        "boundaries within 0 ms": 22, "boundaries within 20 ms": 22, "boundaries within 50 ms": 40,
    }  # fmt: skip
    assert test["phones"]["boundaries within 0 ms"] == test["phones"]["boundaries"] == 40
    assert found["qbe"]["queries"] == {"ours": 14, "theirs": 13, "in both": 12}
    gone = sum(line.startswith("q0000") for line in targets)
    assert found["qbe"]["targets"] == {
        "ours": len(targets) - 1, "theirs": len(targets) - 1 - gone, "in both": len(targets) - 1 - gone - 3
    }  # fmt: skip
    assert found["qbe"]["the same task"] is False
    assert agreement.compare_tasks(built / "qbe", built / "qbe")["the same task"] is True


def test_pocketsphinx_times_real_speech(shared_speech):
    """The times in `alignments.tsv` beside the speech came from this aligner; state left behind must not matter."""
    pytest.importorskip("pocketsphinx", reason="the aligner is not installed: pip install pocketsphinx==5.1.1")
    if importlib.metadata.version("pocketsphinx") != "5.1.1":
        pytest.skip("times are compared with those of pocketsphinx 5.1.1")
    recordings = script.read_recordings(shared_speech / "heldout-clean-5" / "32")
    aligner = script.PocketSphinx()
    assert aligner.knows("brownie")
    assert not aligner.knows("qqqq")
    rows, counts = script.align(["32-21631-0008", "32-21631-0005", "32-21631-0001"], recordings, aligner)
    assert counts["aligned"] == 2
    assert counts["without times"] == {"the aligner finds no path": 1}
    table = [line.split("\t") for line in (shared_speech.parent / "alignments.tsv").read_text().splitlines()]
    assert rows == [row for name in ("32-21631-0005", "32-21631-0001") for row in table if row[0] == name]
