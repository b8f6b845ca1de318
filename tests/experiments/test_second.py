"""Record, tests and tables of the second round, from the files that its runs leave."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import second, words
from experiments.run import DONE
from laser_hf.records import read_json, write_json

ABOUT = {
    "schema_version": 2, "recipe": {}, "data": {}, "seed": 1, "wall_seconds": 1.0, "command": "python",
    "commit": "c" * 40, "versions": {"torch": "2"}, "hardware": {"processor": "X", "cores": 2},
}  # fmt: skip
SPEAKERS, WORDS = [f"s{i}" for i in range(6)], [f"w{i}" for i in range(8)]
QUERIES = [(f"q-{s}-{w}", w, s) for s in SPEAKERS for w in WORDS]


def leave_qbe(where, precision):
    """One target and three other documents a query; `precision` (1, 1/2, 1/3 or 1/4) is where the target ranks."""
    lines = ["query\tdocument\tscore\ttarget"]
    for query, value in precision.items():
        rank = round(1 / value)
        scores = [0.8, 0.6, 0.4]
        lines += [f"{query}\ta\t{0.9 - 0.2 * (rank - 1):.2f}\t1"]
        lines += [f"{query}\t{name}\t{score}\t0" for name, score in zip("bcd", scores, strict=True)]
    (where / "qbe").mkdir(parents=True)
    (where / "qbe" / "scores.tsv").write_text("\n".join(lines) + "\n")
    metric = {"metric": "mean_average_precision", "split": "test", "layer": 4, "value": 0.5, "unit": "fraction"}
    write_json(where / DONE["qbe"], ABOUT | {"task": "qbe", "protocol": "quick", "metrics": [metric]})


def leave_sid(where, right):
    metrics = [
        {"metric": name, "value": value, "unit": "percent", "split": split}
        for name, value, split in (
            ("accuracy", 70.0, "x"),
            ("last_layer_accuracy", 60.0, "x"),
            ("accuracy", 1.0, "dev"),
        )
    ]
    counts = {speaker: [count, 10] for speaker, count in zip(SPEAKERS, right, strict=True)}
    record = {"task": "sid", "protocol": "quick", "metrics": metrics, "last_layer_right": counts, "chance": 10.0}
    write_json(where / DONE["sid"], ABOUT | record)


@pytest.fixture
def folder(tmp_path):
    """LASER is better than the encoder and than IDM alone on every query, and no better than with equal views."""
    lines = ["query\taudio\tspeaker\tword"]
    lines += [f"{query}\t../L/test-other-100/{speaker}/x.flac\t{speaker}\t{word}" for query, word, speaker in QUERIES]
    lines.append("other\t../L/heldout-clean-5/9/x.flac\t9\tw0")
    (tmp_path / "queries.tsv").write_text("\n".join(lines) + "\n")
    names = [query for query, *_ in QUERIES]
    for seed in (1, 2, 3):
        ranks = {"shipped-laser-1-perturbed": 1 / 2, "shipped-laser-1-equal": 1 / 2, "shipped-idm-1-perturbed": 1 / 3}
        for name, value in ranks.items():
            found = dict.fromkeys(names, value)
            if name.endswith("equal"):  # half of the words better, half worse
                found = {query: 1.0 if word in WORDS[:3] else 1 / 4 for query, word, _ in QUERIES}
            leave_qbe(tmp_path / name / f"seed-{seed}", found | {"other": 1.0})
        leave_sid(tmp_path / "shipped-laser-1-perturbed" / f"seed-{seed}", [5, 5, 6, 5, 4, 5])
        leave_sid(tmp_path / "shipped" / f"seed-{seed}", [7, 7, 8, 7, 6, 7])
    leave_qbe(tmp_path / "shipped" / "seed-1", dict.fromkeys([*names, "other"], 1 / 4))
    return tmp_path


def test_a_run_is_measured_on_test_other_and_chosen_on_the_other_queries(folder):
    record = second.collect(folder, folder / "queries.tsv")
    assert len(record["queries"]) == len(QUERIES)
    found = second.runs_of(record, "shipped-laser-1-perturbed", "qbe")
    assert sorted(found) == [1, 2, 3]
    assert (found[2]["report"], found[2]["choose"]) == (0.5, 1.0)
    assert found[2]["precisions"] == [0.5] * len(QUERIES)
    sid = second.runs_of(record, "shipped", "sid")[3]
    assert (sid["weighted"], sid["last_layer"]) == (70.0, 60.0)
    assert record["commits"] == ["c" * 40]


def test_the_tests_are_those_of_the_plan(folder):
    record = second.collect(folder, folder / "queries.tsv")
    t1, t2, t3, t4 = record["tests"]
    assert [one["test"] for one in record["tests"]] == ["T1", "T2", "T3", "T4"]
    assert (t1["effect"], t1["low"], t1["high"]) == pytest.approx((0.25, 0.25, 0.25))
    assert t3["effect"] == pytest.approx(1 / 2 - 1 / 3, abs=1e-5)
    assert t4["effect"] == pytest.approx(-20)
    assert [one["holds"] for one in record["tests"]] == [True, False, True, True]
    # The bootstrap is that of words.compare, and four tests that were not made count in Holm's correction.
    apart = np.array([[0.5 - (1.0 if word in WORDS[:3] else 0.25) for _, word, _ in QUERIES]] * 3)
    witness = words.compare(apart, [speaker for *_, speaker in QUERIES], [word for _, word, _ in QUERIES])
    assert (t2["effect"], t2["low"], t2["high"], t2["p"]) == pytest.approx(tuple(vars(witness).values()))
    assert t1["holm"] == pytest.approx(8 * t1["p"])
    assert t2["holm"] == 1.0
    assert {one["seeds"] for one in record["tests"]} == {3}


def test_a_wrong_sign_holds_nothing(folder):
    """Speaker accuracy that rises is significant, and not what T4 claims."""
    for seed in (1, 2, 3):
        leave_sid(folder / "shipped-laser-1-perturbed" / f"seed-{seed}", [9, 9, 9, 9, 9, 9])
    t4 = second.collect(folder, folder / "queries.tsv")["tests"][3]
    assert (t4["effect"], t4["holds"]) == (pytest.approx(20), False)
    assert t4["holm"] < 0.05


def test_tables(folder, tmp_path, capsys):
    second.main([str(folder), "--qbe", str(folder), "--record", str(tmp_path / "r.json")])
    record = read_json(tmp_path / "r.json")
    text = second.tests_table(record)
    assert text in capsys.readouterr().out
    assert "| +0.2500 (+0.2500 … +0.2500) |" in text
    assert "-20.0 points (-20.0 … -20.0)" in text.splitlines()[-1]
    base, laser, equal, idm = second.design_table(record, "shipped").splitlines()[2:]
    assert base.startswith("| the encoder as it is |  | 0.2500 |  |")
    assert laser.startswith("| LASER, alpha 1 | perturbed | 0.5000 ± 0.0000 | +0.2500 (+0.2500 … +0.2500) | 1.0000")
    assert "| equal |" in equal
    assert idm.endswith("| 3 |")
    assert second.design_table(record, "plain").count("\n") == 1  # nothing was run
    assert "Not run: `plain`, " in second.how(record)
    assert "`shipped-laser-1-equal`" not in second.how(record)
    for make in second.TABLES.values():
        assert make(record)
    with pytest.raises(SystemExit, match="nothing is finished"):
        second.main([str(tmp_path / "none"), "--qbe", str(folder)])


def test_rates_are_compared_with_the_encoder_as_it_is(folder):
    names = [query for query, *_ in QUERIES]
    for point, value in (("plain", 1 / 4), ("plain-rate-0.0002-60", 1 / 2)):
        leave_qbe(folder / point / "seed-1", dict.fromkeys(names, value) | {"other": 1.0})
    (row,) = second.rates_table(second.collect(folder, folder / "queries.tsv")).splitlines()[2:]
    assert row == "| 0.0002 | 60 | 1.0000 | 0.5000 | +0.2500 (+0.2500 … +0.2500) |"


def test_training_is_relative_to_its_start(folder):
    where = folder / "shipped-laser-1-perturbed" / "seed-1" / "encoder"
    config = {
        "task": "training",
        "method": "laser",
        "updates": 60,
        "processed_hours": 0.5,
        "collapse": {"fired_at": None},
    }
    write_json(where / "laser_config.json", ABOUT | config | {"data": {"skipped": {}}})
    for start, shown in ((40.0, "0.25"), (1e-6, "")):  # SCORE's views are alike at first if both are one waveform
        log = [{"step": step, "eval_soft_dtw": value, "eval_idm": 1.0} for step, value in ((0, start), (60, 10.0))]
        write_json(where / "training_log.json", {"log": log})
        record = second.collect(folder, folder / "queries.tsv")
        assert f"| {shown} | 1.00 | no | 3 |" in second.design_table(record, "shipped")
