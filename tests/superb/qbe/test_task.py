"""The command: files, records, protocols, resuming, bad input."""

import shutil
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile

from laser_hf.errors import LaserError
from laser_hf.records import read_record
from laser_hf.superb import frame_store
from laser_hf.superb.__main__ import main
from laser_hf.superb.features import VIEWS, Utterance, read_waveform
from laser_hf.superb.qbe import report, scoring, search, task


@pytest.fixture
def pictures():
    """Asked for by a test that needs real ones."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing takes most of the time of a small run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "draw", lambda *_: None)


def run(model, data, out, *options):
    main(["qbe", "--model", str(model), "--data", str(data), "--output_dir", str(out), *map(str, options)])
    return read_record(out / "results.json")


def metrics(record, **wanted):
    return [m for m in record["metrics"] if all(m[key] == value for key, value in wanted.items())]


def table(out):
    return [line.split("\t") for line in (out / "scores.tsv").read_text().splitlines()]


@pytest.mark.parametrize("model", ["mfcc", "logmel"])
def test_tables_give_a_quick_record(task_folder, tmp_path, model):
    out = tmp_path / "out"
    record = run(model, task_folder, out)
    assert (record["task"], record["protocol"], record["metric"], record["value"]) == (
        "qbe",
        "quick",
        "mean_average_precision",
        1.0,
    )
    assert record["weights_sha256"] is None
    assert record["data"]["queries"] == record["data"]["queries_without_target"] == 1
    assert (record["data"]["documents"], record["data"]["trials"], record["data"]["targets"]) == (3, 2, 1)
    assert {m["metric"] for m in record["metrics"]} == {
        "mean_average_precision",
        "precision_at_n",
        "precision_at_1",
        "mtwv",
        "act_twv_decisions",
    }
    assert metrics(record, metric="mtwv")[0]["value"] == 1.0
    lines = table(out)
    assert lines[0] == ["query", "document", "score", "target"]
    # Not the query's own recording; the query without a target is scored all the same.
    assert lines[1:] == [["q0", "b", "1.0000", "1"], ["q0", "c", "-1.0000", "0"], ["q1", "a", "0.0000", "0"]]
    assert "q1\tno_target" in (out / "skipped.tsv").read_text()
    assert not (out / "cache").exists()


@pytest.mark.usefixtures("pictures")
def test_pictures_are_drawn(quesst_folder, tmp_path):
    run("mfcc", quesst_folder, tmp_path / "out")
    for name in ("det.png", "alignment.png"):
        assert plt.imread(tmp_path / "out" / name).std() > 0.05


def test_every_layer_is_in_the_record(task_folder, tmp_path, tiny_encoder):
    for model in (tiny_encoder, f"random:{tiny_encoder}"):
        record = run(model, task_folder, tmp_path / "out", "--layer", "all", "--overwrite_output_dir")
        assert list(record["layers"]) == ["0", "1", "2", "3"]
        assert record["layer"] == 3
        assert record["value"] == record["layers"]["3"]
        assert len(metrics(record, metric="mtwv")) == 4
        assert len(record["weights_sha256"]) == 64
    assert record["seed"] == 0
    with pytest.raises(LaserError, match="layers 0 to 3, not 7"):
        run(tiny_encoder, task_folder, tmp_path / "out", "--layer", 7)


def test_quesst_gives_a_superb_record(quesst_folder, tmp_path):
    out = tmp_path / "out"
    record = run("mfcc", quesst_folder, out)
    assert (record["protocol"], record["metric"], record["split"], record["trials"]) == (
        "superb",
        "mtwv",
        "eval",
        "superb",
    )
    collection = {"queries": 3, "queries_with_target": 2, "documents": 5, "trials": 10, "given": 4, "default": 6}
    assert record["data"]["collection"] == collection
    # Query 1 is found in both documents; query 3, not searched, is lost; the threshold lies above the default.
    assert record["value"] == pytest.approx(0.5)
    assert metrics(record, metric="mtwv", trials="subset", split="eval")[0]["value"] == pytest.approx(1.0)
    actual = metrics(record, metric="act_twv", split="eval", trials="superb")[0]
    dev = metrics(record, metric="mtwv", split="dev", trials="superb")[0]
    assert actual["threshold"] == dev["threshold"]
    assert actual["threshold_from"] == "best on the development set"
    assert (record["recipe"]["gain_db"], record["recipe"]["trials"]) == (-3.0, "superb")
    assert record["data"]["dev"]["split"] == "dev"

    root = ElementTree.parse(out / "benchmark.stdlist.xml").getroot()
    assert root.tag == "stdlist"
    assert set(root.attrib) == {"termlist_filename", "indexing_time", "language", "index_size", "system_id"}
    lists = root.findall("detected_termlist")
    assert [entry.attrib["termid"] for entry in lists] == ["quesst14_eval_0001", "quesst14_eval_0002"]
    scores = {(query, document): score for query, document, score, _ in table(out)[1:]}
    for entry in lists:
        terms = entry.findall("term")
        assert [term.attrib["file"] for term in terms] == [f"quesst14_0000{n}" for n in range(1, 5)]
        for term in terms:
            assert term.attrib["score"] == scores[entry.attrib["termid"], term.attrib["file"]]
            assert term.attrib["decision"] == ("YES" if float(term.attrib["score"]) > 2 else "NO")
            assert (term.attrib["channel"], term.attrib["tbeg"], term.attrib["dur"]) == ("1", "0.000", "0.00")


def test_the_dev_queries_of_quesst_may_be_reported_or_left_out(quesst_folder, tmp_path):
    for number, options in enumerate((("--split", "dev"), ("--skip_dev",))):
        record = run("mfcc", quesst_folder, tmp_path / str(number), *options)
        assert (record["split"], record["trials"], record["value"]) == (("dev", "eval")[number], "superb", 0.5)
        assert "dev" not in record["data"]
        assert len({metric["split"] for metric in record["metrics"]}) == 1


def test_the_layer_is_chosen_on_dev(quesst_folder, tmp_path, tiny_encoder, monkeypatch):
    """Every layer of dev is worth what is written here; eval must be reported at the best of them."""
    real = task.evaluate
    worth = {0: 0.1, 1: 0.9, 2: 0.9, 3: 0.2}

    def evaluate(data, scores, layer, thresholds=None):
        found = real(data, scores, layer, thresholds)
        if data.split == "dev":
            for metric in found:
                metric["value"] = worth[layer]
        return found

    monkeypatch.setattr(task, "evaluate", evaluate)
    options = ("--layer", "all", "--select_layer", "dev")
    record = run(tiny_encoder, quesst_folder, tmp_path / "out", *options)
    assert (record["layer"], record["split"]) == (1, "eval")


def test_tables_may_have_a_development_set(task_folder, tmp_path):
    record = run("mfcc", task_folder, tmp_path / "out", "--dev_data", task_folder)
    dev = metrics(record, metric="mtwv", split="dev")[0]
    actual = metrics(record, metric="act_twv", split="test")[0]
    assert (actual["value"], actual["threshold"]) == (dev["value"], dev["threshold"])


def test_options_that_do_not_fit_are_refused(task_folder, quesst_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(LaserError, match="--select_layer dev needs a development set"):
        run("mfcc", task_folder, out, "--select_layer", "dev")
    with pytest.raises(LaserError, match="--dev_data is for tables"):
        run("mfcc", task_folder, out, "--dev_data", quesst_folder)
    assert not out.exists()


def test_unusable_recordings_are_counted_and_survived(task_folder, tmp_path):
    with (task_folder / "documents.tsv").open("a") as file:
        file.write("gone\tgone.wav\t2\nempty\tempty.wav\t2\nsilent\tsilent.wav\t2\nbroken\tbroken.wav\t2\n")
    with (task_folder / "queries.tsv").open("a") as file:
        file.write("q2\ta.wav\t9.5\t0.3\t1\tbeyond\nq3\ta.wav\t0.4\t0.05\t1\tshort\n")
    with (task_folder / "targets.tsv").open("a") as file:
        file.write("q2\tb\nq3\tb\n")
    soundfile.write(task_folder / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(task_folder / "silent.wav", np.zeros(16_000), 16_000)
    (task_folder / "broken.wav").write_text("this is no audio")
    out = tmp_path / "out"
    record = run("mfcc", task_folder, out)
    assert record["data"]["skipped"] == {
        "queries": {"empty": 1},
        "documents": {"undecodable": 2, "empty": 1, "silent": 1},
    }
    # q3 has three frames: it scores 0 everywhere and ranks its target last of two.
    assert record["value"] == pytest.approx((1 + 1 / 2) / 2)
    assert {(line[0], line[1], line[2]) for line in table(out)[1:]} >= {("q3", "b", "0.0000"), ("q3", "c", "0.0000")}
    listed = [line.split("\t")[1:4] for line in (out / "skipped.tsv").read_text().splitlines()[1:]]
    assert ["document", "gone", "undecodable"] in listed
    assert ["query", "q2", "empty"] in listed


def test_nothing_usable_is_an_error(task_folder, tmp_path):
    for name in "abc":
        (task_folder / f"{name}.wav").write_text("this is no audio")
    with pytest.raises(LaserError, match="no query or no document could be used; the first is undecodable"):
        run("mfcc", task_folder, tmp_path / "out")


@pytest.mark.parametrize(("where", "calls"), [("frames", 3), ("match", 2), ("match", 7), ("evaluate", 1)])
def test_an_interrupted_run_resumes_to_the_same_result(
    quesst_folder, tmp_path, tiny_encoder, monkeypatch, where, calls
):
    # Two documents a block, and batches of one or two utterances.
    monkeypatch.setattr(search, "BLOCK_DOCUMENTS", 2)
    real_fill = frame_store.fill
    monkeypatch.setattr(search, "fill", lambda *a, **k: real_fill(*a, **k, batch_seconds=1))
    options = ("--layer", "1,3")
    target, name = {
        "frames": (frame_store.FrameStore, "add"),
        "match": (search, "match"),
        "evaluate": (task, "evaluate"),
    }[where]
    real, seen = getattr(target, name), []

    def counted(*arguments, **named):
        seen.append(1)
        return real(*arguments, **named)

    def stops(*arguments, **named):
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(target, name, counted)
    whole = run(tiny_encoder, quesst_folder, tmp_path / "whole", *options)
    needed = len(seen)
    seen.clear()
    monkeypatch.setattr(target, name, stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_encoder, quesst_folder, tmp_path / "part", *options)
    assert not (tmp_path / "part" / "results.json").exists()
    seen.clear()
    monkeypatch.setattr(target, name, counted)
    resumed = run(tiny_encoder, quesst_folder, tmp_path / "part", *options)
    if where != "evaluate":
        assert len(seen) == needed - calls  # nothing is done twice
    assert resumed["resumed"]
    assert not whole["resumed"]
    assert resumed["metrics"] == whole["metrics"]
    for name in ("scores.tsv", "benchmark.stdlist.xml"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_aligned_is_an_error(task_folder, tmp_path):
    header = "query\taudio\tstart_seconds\tduration_seconds\tspeaker\n"
    (task_folder / "queries.tsv").write_text(f"{header}q0\ta.wav\t0.3\t0.05\t1\n")
    with pytest.raises(LaserError, match="nothing could be aligned: all 1 queries have fewer than 5 frames"):
        run("mfcc", task_folder, tmp_path / "out")


def test_queries_without_any_target_are_refused_before_encoding(task_folder, tmp_path):
    (task_folder / "targets.tsv").write_text("query\tdocument\nq0\ta\n")  # the query's own speaker
    with pytest.raises(LaserError, match="no query of test has a target, a document of another speaker"):
        run("mfcc", task_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_targets_that_are_all_skipped_are_an_error(task_folder, tmp_path):
    (task_folder / "b.wav").write_text("this is no audio")
    with pytest.raises(LaserError, match="no query of test has a target left: 1 recordings cannot be used, the first"):
        run("mfcc", task_folder, tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_scores_are_computed_again(task_folder, tmp_path, monkeypatch, caplog, damage):
    whole = run("mfcc", task_folder, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(task, "evaluate", lambda *_: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            run("mfcc", task_folder, out)
    (block,) = (out / "cache").rglob("*.npz")
    data = bytearray(block.read_bytes())
    middle = data.index(b"\n") + 4  # of the numbers
    data[middle] ^= 255
    block.write_bytes({"cut": bytes(data[:100]), "flipped": bytes(data), "empty": b""}[damage])
    resumed = run("mfcc", task_folder, out)
    assert "is damaged" in caplog.text
    assert resumed["metrics"] == whole["metrics"]


def test_the_same_task_in_another_place_goes_on(task_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(task, "evaluate", lambda *_: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            run("mfcc", task_folder, out)
    shutil.copytree(task_folder, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(task_folder)
    assert run("mfcc", tmp_path / "moved", out)["resumed"]


def test_an_output_folder_that_holds_an_input_is_refused(task_folder, tmp_path, tiny_encoder):
    before = sorted(task_folder.iterdir())
    for out, option in ((task_folder, "--data"), (tmp_path, "--data"), (tiny_encoder, "--model")):
        with pytest.raises(LaserError, match=f"--output_dir .* holds {option} "):
            run(f"random:{tiny_encoder}", task_folder, out, "--overwrite_output_dir")
    assert sorted(task_folder.iterdir()) == before


def test_only_the_same_run_goes_on(task_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(search, "match", lambda *_: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            run("mfcc", task_folder, out)
    with pytest.raises(LaserError, match=r"unfinished run of another recipe .*--model mfcc -> logmel"):
        run("logmel", task_folder, out)
    soundfile.write(task_folder / "c.wav", np.random.default_rng(9).normal(0, 0.1, 16_000), 16_000)
    with pytest.raises(LaserError, match="--data"):  # other audio
        run("mfcc", task_folder, out)
    assert not run("mfcc", task_folder, out, "--overwrite_output_dir")["resumed"]
    with pytest.raises(LaserError, match="holds a finished run"):
        run("mfcc", task_folder, out)


def test_scores_are_measured_as_they_are_written(tmp_path):
    scores = np.random.default_rng(0).normal(size=(3, 50))
    scores[1, 7] = np.nan
    report.write_scores(tmp_path / "scores.tsv", scores, list("abc"), list(map(str, range(50))), np.zeros((3, 50)))
    written = scoring.as_written(scores)
    read = {(q, d): float(s) for q, d, s, _ in table(tmp_path)[1:]}
    assert len(read) == 149
    assert all(written["abc".index(query), int(document)] == score for (query, document), score in read.items())
    assert np.isnan(written[1, 7])


def test_perturbed_queries(task_folder, tiny_encoder, tmp_path, monkeypatch):
    """Each view is the same search with queries that were perturbed before: here by hand, from files."""
    found, real = [], task.search_layers

    def searched(*arguments):
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(task, "search_layers", searched)
    record = run(tiny_encoder, task_folder, tmp_path / "a", "--layer", "all", "--perturbed")
    averages = metrics(record, metric="perturbed_mean_average_precision")
    assert [metric["layer"] for metric in averages] == [0, 1, 2, 3]
    assert all(metric["views"].keys() == VIEWS.keys() for metric in averages)
    assert all(metric["value"] == pytest.approx(np.mean(list(metric["views"].values()))) for metric in averages)
    assert (tmp_path / "a" / "layers.png").is_file()
    plain = run(tiny_encoder, task_folder, tmp_path / "b", "--layer", "all")
    assert plain["metrics"] == [metric for metric in record["metrics"] if metric not in averages]
    for view in VIEWS:
        folder = tmp_path / view
        shutil.copytree(task_folder, folder)
        rows = [line.split("\t") for line in (folder / "queries.tsv").read_text().splitlines()]
        for row in rows[1:]:
            query = Utterance("", folder / row[1], float(row[2]), float(row[3]), view=view)
            soundfile.write(folder / f"{row[0]}.wav", read_waveform(query).numpy(), 16_000, subtype="FLOAT")
            row[1:4] = f"{row[0]}.wav", "0", "9"
        (folder / "queries.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
        run(tiny_encoder, folder, tmp_path / f"out {view}", "--layer", "all")
        for layer in range(4):
            own, alone, before = (
                searches[name, layer].scores
                for searches, name in ((found[0][0], view), (found[-1][0], "test"), (found[0][0], "test"))
            )
            np.testing.assert_allclose(own, alone, atol=1e-4)
            assert not np.allclose(own, before, atol=1e-3)
