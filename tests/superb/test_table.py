"""The paper's tables from records: golden text, what stays empty, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES
from laser_hf.records import describe_model, new_record
from laser_hf.superb import table
from laser_hf.superb.__main__ import main
from laser_hf.superb.table import parse_row, row_name
from laser_hf.superb.table_records import Row, find_records, read_numbers

GOLDEN = Path(__file__).with_name("golden_table.md")
HUBERT = "facebook/hubert-base-ls960"


def write(path: Path, record) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


FRAME = {"schema_version": 2, "recipe": {}, "data": {}, "seed": None, "wall_seconds": 1.0}


def result(task: str, metric: str, value: float | None, protocol="superb", split="test-clean", **more) -> dict:
    model, unit, runs = more.pop("model", HUBERT), more.pop("unit", "percent"), more.pop("runs", [])
    first = {"metric": metric, "value": value, "unit": unit, "split": split, **more}
    return {**FRAME, "task": task, "protocol": protocol, "model": model, "metrics": [first], "runs": runs}


def trained(base: str = HUBERT, method: str = "laser", alpha: float = 0.4) -> dict:
    return {
        **FRAME,
        "task": "training",
        "method": method,
        "base_model": {"name": base},
        "recipe": {"objective": {"alpha": alpha}},
        "processed_hours": 101.4,
        "wall_seconds": 5400.0,
    }


@pytest.fixture
def records(tmp_path, monkeypatch) -> Path:
    """A base encoder, LASER and soft-DTW alone on it, and a small encoder by the quick protocol."""
    monkeypatch.chdir(tmp_path)
    write(Path("laser/laser_config.json"), trained())
    write(Path("soft/laser_config.json"), trained(alpha=0))
    write(Path("evals/base/asr/results.json"), result("asr", "wer", 6.42))
    write(
        Path("evals/laser/asr/results.json"),
        result("asr", "wer", 6.18, model="laser", standard_deviation=0.04, runs=[{}] * 5),
    )
    write(Path("evals/laser/asr/seed-1/results.json"), result("asr", "wer", 99.0, model="laser"))  # within a summary
    qbe = {"unit": "", "split": "eval", "trials": "superb", "layer": 12}
    write(Path("evals/base/qbe/results.json"), result("qbe", "mtwv", 0.0736, **qbe))
    write(Path("evals/soft/qbe/results.json"), result("qbe", "mtwv", 0.0512, model="soft", **qbe))
    # Beside the model it was made from, not in the current folder.
    write(Path("laser/results/per/results.json"), result("pr", "per", 31.4, "quick", "heldout", model="laser"))
    ap = {"unit": "fraction", "layer": 4, "model": "mfcc"}
    write(Path("evals/mfcc/results.json"), result("discrimination", "word_ap_across", 0.0301, "quick", "heldout", **ap))
    return tmp_path


def test_golden_text(records, capsys):
    tables = main(["table", "laser", "soft", "evals"])
    assert capsys.readouterr().out == GOLDEN.read_text(encoding="utf-8")
    laser, cells = Row("HuBERT base", "laser"), tables[1].cells
    assert cells[laser, "wer", "measured"]["standard_deviation"] == pytest.approx(0.04)
    assert cells[laser, "wer", "measured"]["runs"] == 5
    assert (laser, "wer", "published") not in cells
    assert cells[laser, "wer_gain", "measured"]["value"] == pytest.approx((6.42 - 6.18) / 6.42 * 100)
    main(["table", "laser", "soft", "evals", "--output", "out/table.md"])
    assert capsys.readouterr().out == ""
    assert Path("out/table.md").read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_quick_numbers_stay_out_of_the_columns_of_superb(records):
    numbers = read_numbers([(file, None) for file in find_records(records)])
    for entry in table.build_tables(numbers, table.published_values()):
        for (_, _, origin), cell in entry.cells.items():
            assert (cell.get("protocol") == "quick") == entry.title.startswith("Quick") == (origin == "quick")


def test_without_records_only_published_values_stand(capsys):
    main(["table"])
    printed = capsys.readouterr().out
    assert "### Table 3" in printed
    assert "Quick" not in printed
    assert "Records of measured values" not in printed


def test_every_published_value_has_a_source():
    published = table.published_values()
    for entry in published["values"]:
        assert set(entry) == {"table", "base", "method", "column", "value", "unit", "source", "place", "evidence"}
        assert published["sources"][entry["source"]]["url"].startswith("https://")
        assert entry["evidence"] in ("read", "second-hand")
    tables = table.build_tables([], published)
    shown = {(number, *column) for number, one in enumerate(tables, 1) for column in one.columns}
    assert {(v["table"], v["column"], "published") for v in published["values"]} <= shown


def test_rows_can_be_named(records, capsys):
    main(["table", "--row", "WavLM base + SCORE=evals/base/asr", "--row", "my encoder=evals/base/qbe"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| WavLM base + SCORE |  | 6.42 |") for line in lines)
    assert any(line.startswith("| my encoder |") and "7.36" in line for line in lines)
    # A name wins over a path that was given without one.
    main(["table", "evals/base", "--row", "mine=evals/base/asr"])
    assert "| mine |  | 6.42 |" in capsys.readouterr().out


def test_numbers_that_are_not_superb_s_stay_out(records, capsys, caplog):
    write(Path("other/a/results.json"), result("asr", "wer", 3.0, split="my-test"))
    subset = {"unit": "", "split": "eval", "trials": "subset"}
    write(Path("other/q/results.json"), result("qbe", "mtwv", 0.5, **subset))
    main(["table", "other"])
    printed = capsys.readouterr().out
    assert "3.00" not in printed
    assert "50.00" not in printed
    assert "has no wer on SUPERB's test data" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read bad.json"),
        ("[]", "holds a list instead of a JSON object"),
        ('{"systems": []}', "bad.json is no record of laser_hf: it lacks data, recipe"),
        (json.dumps({**FRAME, "schema_version": 1, "task": "asr"}), "bad.json has schema version 1"),
        (json.dumps(result("asr", "wer", 1.0, "slow")), "bad.json: unknown protocol 'slow'"),
        (json.dumps({**FRAME, "task": "search"}), "bad.json is the record of a search, whose table is search.md"),
        (json.dumps({**FRAME, "task": "asr", "metrics": [{"metric": "wer"}]}), "bad.json: a metric lacks split, unit"),
        (json.dumps({**FRAME, "task": "training", "method": "laser"}), "bad.json is no record of its task: it lacks"),
    ],
)
def test_unreadable_records_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text(content)
    with pytest.raises(LaserError) as stopped:
        main(["table", "bad.json"])
    assert message in str(stopped.value)


def test_places_without_records_and_double_cells_are_refused(records):
    with pytest.raises(LaserError, match="does not exist"):
        find_records(Path("nowhere"))
    Path("empty").mkdir()
    with pytest.raises(LaserError, match=r"holds neither results\.json nor laser_config\.json"):
        find_records(Path("empty"))
    write(Path("again/results.json"), result("asr", "wer", 6.5))
    with pytest.raises(LaserError, match=r"two records for HuBERT base, wer: .*--row NAME=PATH"):
        main(["table", "evals", "again"])
    with pytest.raises(LaserError, match="--row expects NAME=PATH"):
        main(["table", "--row", "evals"])
    main(["table", "evals/base", "evals/base/asr/results.json", "--output", "t.md"])  # one file, given twice


def test_every_record_of_the_project_is_read(tmp_path, monkeypatch):
    """A record in the common frame, the word report with the base encoder in it, and eval_ctc.py's."""
    monkeypatch.chdir(tmp_path)
    write(Path("run/laser_config.json"), trained("encoder"))
    words = [{"metric": "word_ap_across", "value": 0.918, "unit": "fraction", "split": "heldout", "layer": 4}]
    before = {"model": "x/encoder", "metrics": [{**words[0], "value": 0.896}]}
    made = {"recipe": {}, "data": {}, "seed": None, "wall_seconds": 1.0, "protocol": "quick"}
    report = new_record("discrimination", model=describe_model("run"), metrics=words, base=before, **made)
    write(Path("run/results/words.json"), report)
    write(Path("run/results/table.json"), {"tables": []})  # no record: passed over
    write(Path("ctc.json"), result("ctc", "wer", 31.5, "quick", "test-clean", model="me/encoder-ctc"))
    own = [{"metric": "accuracy", "value": 0.5, "unit": "fraction", "split": "mine"}]
    write(Path("own.json"), new_record("my_pkg.task", model=describe_model("me/x"), metrics=own, **made))
    quick = main(["table", "run", "ctc.json", "own.json", "--output", "t.md"])[-1]
    assert list(quick.columns.values()) == [
        "word discrimination AP, across speakers, heldout (quick)",
        "ctc: WER, %, test-clean (quick)",
        "my_pkg.task: accuracy, mine (quick)",
    ]
    word, wer, own = (key for key, _ in quick.columns)
    assert {(row_name(row), key): cell["value"] for (row, key, _), cell in quick.cells.items()} == {
        ("encoder + LASER", word): 0.918,
        ("me/encoder-ctc", wer): 31.5,
        ("me/x", own): 0.5,
        ("x/encoder", word): 0.896,
    }
    assert [row_name(row) for row in quick.rows] == ["encoder + LASER", "me/encoder-ctc", "me/x", "x/encoder"]
    # The same base encoder in a second report is no conflict, another value is.
    write(Path("other/words.json"), report | {"model": "me/other"})
    main(["table", "run", "other/words.json", "--output", "t.md"])
    write(Path("other/words.json"), report | {"model": "me/other", "base": {**before, "metrics": words}})
    with pytest.raises(LaserError, match="two records for x/encoder"):
        main(["table", "run", "other/words.json"])


def test_row_names():
    for row in (Row("HuBERT base", "base"), Row("WavLM base", "soft_dtw"), Row("x/y", "laser")):
        assert parse_row(row_name(row)) == row
    assert row_name(parse_row("a + b")) == "a + b"
    for name, objective in OBJECTIVES.items():
        assert row_name(Row("a", name)) == f"a + {objective.title}"
    assert row_name(Row("a", "my_pkg.losses:MyLoss")) == "a + MyLoss"


def test_contentvec_is_a_baseline_by_its_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("cv/results.json"), result("pr", "per", 4.54, model="lengyue233/content-vec-best"))
    (found,) = read_numbers([(Path("cv/results.json"), None)])
    assert found.row == Row("HuBERT base", "contentvec")
    assert row_name(found.row) == "HuBERT base + ContentVec"


def test_a_value_that_is_no_number(tmp_path):
    for value in ("5", None):
        write(tmp_path / "results.json", result("asr", "wer", value))
        with pytest.raises(LaserError, match=rf"results.json: the value of wer is no number: {value!r}"):
            read_numbers([(tmp_path / "results.json", None)])


def test_no_record_is_overwritten(tmp_path):
    path = write(tmp_path / "results.json", result("asr", "wer", 5.0))
    before = path.read_bytes()
    with pytest.raises(LaserError, match="is one of the records"):
        main(["table", str(tmp_path), "--output", str(tmp_path / "." / "results.json")])
    assert path.read_bytes() == before


def test_foreign_names_stay_in_their_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "a|b`c <img src=x> [d](javascript:e)"
    folder = Path(name.replace("/", ""))
    write(folder / "asr" / "results.json", result("asr", "wer", 5.0, "quick", "x|y", model=str(folder)))
    main(["table", str(folder)])
    text = capsys.readouterr().out
    assert "| a\\|b\\`c \\<img src=x\\> \\[d\\](javascript:e) | 5.00 |" in text
    assert "| WER, %, x\\|y (quick) |" in text
    assert "- `a|b'c <img src=x> [d](javascript:e)/asr/results.json`" in text
