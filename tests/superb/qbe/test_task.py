"""The command: files, records, protocols, resuming, bad input."""

import json
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile

from laser_hf.superb.__main__ import main
from laser_hf.superb.qbe import figures, search, stdlist, store, sweep, task
from laser_hf.superb.qbe.data import QbeDataError


@pytest.fixture
def pictures():
    """Asked for by a test that needs real ones."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing takes most of the time of a small run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(figures, "plot_detection", lambda *_, **__: None)
        monkeypatch.setattr(figures, "plot_matches", lambda *_, **__: None)


def run(model, data, out, *options):
    main(["qbe", "--model", str(model), "--data", str(data), "--output_dir", str(out), *map(str, options)])
    return json.loads((out / "results.json").read_text())


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
        record = run(model, task_folder, tmp_path / "out", "--layer", "all")
        assert list(record["layers"]) == ["0", "1", "2", "3"]
        assert record["layer"] == 3
        assert record["value"] == record["layers"]["3"]
        assert len(metrics(record, metric="mtwv")) == 4
        assert len(record["weights_sha256"]) == 64
    assert record["seed"] == 0
    with pytest.raises(ValueError, match="layers 0 to 3, not 7"):
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
    assert record["hyper_parameters"]["gain_db"] == -3.0
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


def test_quesst_options(quesst_folder, tmp_path):
    record = run("mfcc", quesst_folder, tmp_path / "a", "--split", "dev", "--trials", "subset")
    assert (record["split"], record["trials"], record["value"]) == ("dev", "subset", pytest.approx(1.0))
    assert "dev" not in record["data"]
    record = run("mfcc", quesst_folder, tmp_path / "b", "--protocol", "quick", "--skip_dev", "--distance", "cosine")
    assert (record["protocol"], record["metric"], record["value"]) == ("quick", "mean_average_precision", 1.0)
    assert not metrics(record, split="dev")


def test_the_layer_is_chosen_on_dev(quesst_folder, tmp_path, tiny_encoder, monkeypatch):
    """Every layer of dev is worth what is written here; eval must be reported at the best of them."""
    real = task.evaluate
    worth = {0: 0.1, 1: 0.9, 2: 0.9, 3: 0.2}

    def evaluate(data, scores, layer, thresholds=None):
        found = real(data, scores, layer, thresholds)
        if data.split == "dev":
            for metric in found.metrics:
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
    with pytest.raises(QbeDataError, match="--protocol superb is defined on QUESST 2014 only"):
        run("mfcc", task_folder, out, "--protocol", "superb")
    with pytest.raises(QbeDataError, match="--trials superb is defined on QUESST 2014 only"):
        run("mfcc", task_folder, out, "--trials", "superb")
    with pytest.raises(QbeDataError, match="--select_layer dev needs a development set"):
        run("mfcc", task_folder, out, "--select_layer", "dev")
    with pytest.raises(QbeDataError, match="--dev_data is laid out as quesst2014"):
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
    with pytest.raises(ValueError, match="no query or no document could be used"):
        run("mfcc", task_folder, tmp_path / "out")


@pytest.mark.parametrize(("where", "calls"), [("frontend", 3), ("match", 2), ("match", 7), ("evaluate", 1)])
def test_an_interrupted_run_resumes_to_the_same_result(
    quesst_folder, tmp_path, tiny_encoder, monkeypatch, where, calls
):
    # One layer's frames on disk at a time, two documents a block, and batches of one or two utterances.
    options = ("--layer", "1,3", "--cache_gib", "1e-9", "--block_documents", 2, "--batch_seconds", 1)
    whole = run(tiny_encoder, quesst_folder, tmp_path / "whole", *options)
    target, name = {
        "frontend": (store.FrameStore, "add"),
        "match": (search, "match"),
        "evaluate": (task, "evaluate"),
    }[where]
    real, seen = getattr(target, name), []

    def stops(*arguments, **named):
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, stops)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_encoder, quesst_folder, tmp_path / "part", *options)
    assert not (tmp_path / "part" / "results.json").exists()

    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(target, name, lambda *a, **k: (seen.append(1), real(*a, **k))[1])
        resumed = run(tiny_encoder, quesst_folder, tmp_path / "part", *options)
    if where != "evaluate":
        assert len(seen) <= {"frontend": 16 - 3, "match": 8 - calls}[where]  # nothing is done twice
    assert resumed["resumed"]
    assert not whole["resumed"]
    assert resumed["metrics"] == whole["metrics"]
    for name in ("scores.tsv", "benchmark.stdlist.xml"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_kept_cache_serves_another_distance(task_folder, tmp_path, tiny_encoder, monkeypatch):
    out = tmp_path / "out"
    first = run(tiny_encoder, task_folder, out, "--keep_cache")
    with monkeypatch.context() as patch:
        patch.setattr(store.FrameStore, "add", lambda *_: pytest.fail("encoded again"))
        second = run(tiny_encoder, task_folder, out, "--keep_cache", "--distance", "cosine")
    assert first["hyper_parameters"]["distance"] == "cosine_exp"
    assert second["hyper_parameters"]["distance"] == "cosine"
    soundfile.write(task_folder / "c.wav", np.random.default_rng(9).normal(0, 0.1, 16_000), 16_000)
    assert not run(tiny_encoder, task_folder, out)["resumed"]  # other audio: the cache does not fit


def test_blocks_do_not_change_scores(quesst_folder, tmp_path, tiny_encoder):
    wide = run(tiny_encoder, quesst_folder, tmp_path / "wide")
    narrow = run(tiny_encoder, quesst_folder, tmp_path / "narrow", "--block_documents", 1, "--batch_seconds", 0.1)
    assert narrow["value"] == wide["value"]
    scores = [[float(line[2]) for line in table(tmp_path / name)[1:]] for name in ("wide", "narrow")]
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_layers_share_the_disk(tmp_path):
    assert sweep.layer_groups([0, 1, 2, 3, 4], 2**29, 1.0, tmp_path) == [[0, 1], [2, 3], [4]]
    assert sweep.layer_groups([0, 1], 2**30, 0.5, tmp_path) == [[0], [1]]
    with pytest.raises(OSError, match="name fewer layers with --layer"):
        sweep.layer_groups([0, 1], 2**50, 1.0, tmp_path)


def test_summary_gathers_models(task_folder, tmp_path):
    summary = tmp_path / "qbe.json"
    for model in ("mfcc", "logmel", "mfcc"):
        run(model, task_folder, tmp_path / "out", "--summary", summary)
    systems = json.loads(summary.read_text())["systems"]
    assert [(system["name"], system["value"], system["layer"]) for system in systems] == [
        ("logmel", 1.0, 0),
        ("mfcc", 1.0, 0),
    ]


def test_scores_are_measured_as_they_are_written(tmp_path):
    scores = np.random.default_rng(0).normal(size=(3, 50))
    scores[1, 7] = np.nan
    stdlist.write_scores(tmp_path / "scores.tsv", scores, list("abc"), list(map(str, range(50))), np.zeros((3, 50)))
    written = stdlist.as_written(scores)
    read = {(q, d): float(s) for q, d, s, _ in table(tmp_path)[1:]}
    assert len(read) == 149
    assert all(written["abc".index(query), int(document)] == score for (query, document), score in read.items())
    assert np.isnan(written[1, 7])
