"""The command: its errors, real runs in processes of their own, scores, tables and pictures."""

from __future__ import annotations

import io
import json
import logging
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import REPOSITORY
from filelock import FileLock

from laser_hf.search import SearchError, worker
from laser_hf.search.__main__ import build_parser, build_plan, main
from laser_hf.search.figure import draw
from laser_hf.search.report import best_command, best_of, ranked, record, table
from laser_hf.search.results import Result
from laser_hf.search.run import RunFailed, launch_worker
from laser_hf.search.score import ProbeScore, QbeScore, from_job, to_job
from laser_hf.training import parse_options
from laser_hf.training.options import option_names


def run_options(encoder, speech):
    """A run of a tiny encoder."""
    return [
        "--model_name_or_path", str(encoder), "--train_data", str(speech), "--eval_data", "", "--max_steps", "5",
        "--warmup_steps", "1", "--save_steps", "1", "--learning_rate", "1e-3", "--report_to", "none", "--use_cpu",
        "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--plots", "false", "--projection_dim", "8",
        "--pairs_per_update", "4",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--over sgima=1,2", "--over sgima: train.py has no such option"),
        ("--over sigma=1,two", r"--over sigma=two: argument --sigma: invalid int value: 'two'"),
        ("--over sigma=0,1", "--over sigma=0: sigma must be a whole number of frames, at least 1"),
        ("--over distance=cosine", "--over distance=cosine: argument --distance: invalid choice"),
        ("--over speed_factors=0.9,1.1", "only options with a single value"),
        ("--over output_dir=a,b", "every run has its own folder"),
        ("--over seed=1,2", "--seeds 1 2 3"),
        ("--over logging_steps=5,10", "--over logging_steps: it does not change what is trained"),
        ("--over sigma=1,2 --objective spin", "--over sigma: it does not change what is trained"),
        ("--over alpha=0.1:1", "alpha=0.1:1.0 is a range, and --sampler grid"),
        ("--over sigma=1,2 --sigma 3", "--sigma is both varied by --over and fixed"),
        ("--over sigma=1,2 -- --sigma=3", "--sigma is both varied by --over and fixed"),
        ("--over sigma=1,2 --max_stps 3", "max_stps"),
        ("--over sigma=1,2 --preset no-such", "unknown preset 'no-such'"),
        ("--over sigma=1,2 -- --preset demo", "write it before --"),
        ("--over sigma=1,2 -- --output_dir x", "--output_dir cannot be given to the runs of a search"),
        ("--over sigma=1,2 --overwrite_output_dir", "delete the folder of the search instead"),
        ("--over sigma=1,2 --seeds 1 2 --seed 3", "leave out --seed"),
        ("--over sigma=1,2 --qbe_data x", "--qbe_data has no meaning with --score probe"),
        ("--over sigma=1,2 --score qbe --data x", "--data has no meaning with --score qbe"),
        ("--over sigma=1,2 --score qbe", "needs --qbe_data"),
        ("--over sigma=1,2 --score qbe --qbe_data no/such", "there is no folder no/such"),
        ("--over sigma=1,2 --score qbe --qbe_data no/such --do_normalize", "trains with scaled ones"),
        ("--over sigma=1,2 --data no/such", "--alignments and --data together"),
        ("--over sigma=1,2 --splits a", "--splits are sub-folders of --data"),
        ("--over sigma=1,2 --data no/such --alignments x.tsv", "no folder no/such"),
    ],
)
def test_mistakes_are_named_before_anything_trains(words, message, tmp_path):
    before, _, behind = words.partition(" -- ")
    with pytest.raises(SearchError, match=message):
        build_plan([*before.split(), f"--output_dir={tmp_path / 'out'}", "--", *behind.split()])
    assert not (tmp_path / "out").exists()


def test_several_processes_of_one_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SearchError, match="CUDA_VISIBLE_DEVICES"):
        build_plan(["--over", "sigma=1,2"])


def test_no_option_of_the_search_hides_one_of_train_py():
    own = {action.dest for action in build_parser()._actions}
    assert own & option_names() == {"output_dir"}


def test_help_names_the_ways_to_use_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for text in ("sigma=1,2,5", "--score_on_test", "--trials", "same command", "CUDA_VISIBLE_DEVICES"):
        assert text in said


def test_the_plan_of_a_command_line(tmp_path):
    plan = build_plan(
        [
            "--over",
            "sigma=1,2",
            "alpha=.15,0.4",
            "--max_steps",
            "7",
            "--output_dir",
            str(tmp_path),
            "--",
            "--bf16",
            "--use_cpu",
        ]
    )
    assert plan.size == 4
    assert plan.fixed == ("--max_steps", "7", "--bf16", "--use_cpu")
    assert plan.recipe["training"]["max_steps"] == 7
    assert not {"sigma", "alpha"} & set(plan.recipe["objective"])
    assert plan.recipe["objective"]["margin"] == 1.0
    options = parse_options(plan.arguments(plan.grid()[-1], 5, "there"))
    assert (options.objective.sigma, options.objective.alpha) == (2, 0.4)
    assert (options.training.seed, options.training.output_dir, options.training.bf16) == (5, "there", True)


# ------------------------------------------------------------------------------------------------ real runs


@pytest.fixture(scope="module")
def searched(tiny_encoder, small_tree, words_of_tree, tmp_path_factory):
    """A search over two points with real training and scoring, and the command that made it."""
    folder = tmp_path_factory.mktemp("search") / "out"
    words = [
        "--over", "margin=0.9,1.3", "--data", str(small_tree), "--alignments", str(words_of_tree),
        *run_options(tiny_encoder, small_tree),
    ]  # fmt: skip
    main([*words, "--output_dir", str(folder)])
    return folder, words


def test_a_search_trains_scores_and_records(searched, tiny_encoder, capsys):
    folder, words = searched
    found = json.loads((folder / "search.json").read_text())
    assert [point["state"] for point in found["points"]] == ["complete"] * 2
    values = {point["params"]["margin"]: point["value"] for point in found["points"]}
    assert set(values) == {0.9, 1.3}
    assert found["points"][0]["value"] == max(values.values())
    for margin, value in values.items():
        run = folder / "runs" / f"margin-{margin}"
        trained = json.loads((run / "laser_config.json").read_text())
        assert trained["recipe"]["objective"]["margin"] == margin
        assert trained["updates"] == 5
        assert not list(run.glob("checkpoint-*"))
        # The score is that of the exported encoder, by the library.
        plan = build_plan([*words, "--output_dir", str(folder)])
        assert from_job(plan.score).measure(run, folder / "again", "cpu") == pytest.approx(value, abs=1e-6)
        assert json.loads((run / "score" / "results.json").read_text())["value"] == pytest.approx(value, abs=1e-6)
    assert found["score"]["metric"] == "word_ap_across"
    assert found["score"]["chosen_on"].startswith("aligned speech in")
    assert found["recipe"]["training"]["max_steps"] == 5
    assert found["versions"]["torch"]
    assert (folder / "heatmap.png").stat().st_size > 5000
    # The best command is train.py's.
    best = parse_options(shlex.split(found["best"]["command"])[2:])
    assert best.objective.margin == found["best"]["params"]["margin"]
    assert best.model.model_name_or_path == str(tiny_encoder)
    # Again: nothing trains, the table stays.
    before = (folder / "search.md").read_text()
    capsys.readouterr()
    main([*words, "--output_dir", str(folder)])
    assert "training" not in capsys.readouterr().out
    assert (folder / "search.md").read_text() == before


def test_a_finished_run_of_another_recipe_is_not_taken(searched):
    folder, words = searched
    plan = build_plan([*words[:1], "margin=0.9", *words[2:], "--output_dir", str(folder)])
    run = folder / "runs" / "margin-0.9"
    job = {
        "argv": plan.arguments({"margin": 0.9}, 99, run),
        "score": plan.score,
        "definition": {},
        "keep_checkpoints": False,
    }
    with pytest.raises(ValueError, match="holds a finished run of another recipe"):
        worker._do(job, run)


@pytest.mark.slow
def test_a_search_killed_while_it_trains_ends_with_the_same_table(searched, tmp_path):
    """SIGKILL between a checkpoint and the end of a run; the run's own process leaves with it."""
    folder, words = searched
    command = [sys.executable, "-m", "laser_hf.search", *words, "--output_dir", str(tmp_path)]
    search = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    first = tmp_path / "runs" / "margin-0.9"
    try:
        end = time.monotonic() + 120
        while not (first / "checkpoint-1" / "trainer_state.json").exists():
            assert search.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        search.send_signal(signal.SIGKILL)
        search.wait()
    with FileLock(first / worker.LOCK, timeout=20):  # the worker has let go
        finished = (first / "laser_config.json").exists()
    main([*words, "--output_dir", str(tmp_path)])
    log = (first / "search.log").read_text()
    assert finished or "Resuming from" in log
    tables = [(f / "search.md").read_text().replace(str(f), "OUT") for f in (folder, tmp_path)]
    assert tables[0] == tables[1]


def test_a_worker_leaves_with_the_search(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "laser_hf.search.worker"], stdin=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True
    )
    job = {"argv": ["--preset", "demo", f"--output_dir={tmp_path}"], "folder": str(tmp_path), "score": {}}
    process.stdin.write(json.dumps(job).encode() + b"\n")
    process.stdin.close()
    try:
        assert process.wait(30) == 3
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "laser_config.json").exists()


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Run the worker in this process; what it does is given."""

    def call(do):
        monkeypatch.setattr(worker, "_leave_with_parent", lambda: None)
        monkeypatch.setattr(worker, "_do", do)
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"argv": ["--x"], "folder": str(tmp_path)}) + "\n"))
        return worker.main()

    return call


def test_a_worker_says_why_it_failed(work, tmp_path):
    def failing(job, folder):
        logging.getLogger("laser_hf.training.run").error("non-finite loss at step %d", 4)
        sys.exit(1)

    assert work(failing) == 1
    assert json.loads((tmp_path / "failure.json").read_text())["reason"] == "non-finite loss at step 4"

    def raising(job, folder):
        raise MemoryError("no room")

    assert work(raising) == 1
    assert json.loads((tmp_path / "failure.json").read_text())["reason"] == "MemoryError: no room"
    assert work(lambda job, folder: None) == 0


def test_two_workers_do_not_share_a_folder(work, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_PATIENCE", 0.1)
    with FileLock(tmp_path / worker.LOCK):
        assert work(lambda job, folder: 1 / 0) == 75


def test_how_a_run_ended_is_reported(tmp_path, monkeypatch, cheap):
    """`launch_worker` with other programs in the worker's place."""
    from laser_hf.search import run

    job = run.Job([], tmp_path / "run", {}, {}, False)
    popen = subprocess.Popen

    def program(text):
        monkeypatch.setattr(run.subprocess, "Popen", lambda words, **more: popen([sys.executable, "-c", text], **more))

    program("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunFailed, match=r"ended by SIGKILL \(out of memory\?\)"):
        launch_worker(job)
    program("raise SystemExit(2)")
    with pytest.raises(RunFailed, match=r"exit status 2; see search\.log"):
        launch_worker(job)
    program("raise SystemExit(75)")
    with pytest.raises(run.Interrupted):
        launch_worker(job)
    program(
        f"open({str(tmp_path / 'run' / 'failure.json')!r}, 'w').write('{{\"reason\": \"no\"}}'); raise SystemExit(1)"
    )
    with pytest.raises(RunFailed, match=r"^no$"):
        launch_worker(job)
    program(f"open({str(tmp_path / 'run' / 'score.json')!r}, 'w').write('{{\"value\": 0.5}}')")
    assert launch_worker(job) == 0.5


# ------------------------------------------------------------------------------------------------ scores


def test_the_default_score_is_that_of_the_eval_probe():
    from laser_hf.training.arguments import DataArguments
    from laser_hf.training.probe import load_eval_probe

    score = ProbeScore()
    assert from_job(json.loads(json.dumps(to_job(score)))) == score
    described = score.describe()
    assert described["chosen_on"] == "the held-out voices of the shipped speech"
    assert described["source"]["words"] == 200
    probe = load_eval_probe(DataArguments(eval_probe="demo", eval_data="given"))
    by_probe = [(t.utterance, t.start) for t in probe.speech.words]
    assert [(t.utterance, t.start) for t in score._load().words] == by_probe


def test_words_that_no_two_speakers_share_cannot_score(small_tree, words_of_tree, tmp_path):
    header, *rows = words_of_tree.read_text().splitlines()
    lonely = tmp_path / "words.tsv"
    lonely.write_text("\n".join([header, *(row.replace("\t", f"\tx{row[0]}", 1) for row in rows)]))
    with pytest.raises(SearchError, match="no two speakers share one"):
        ProbeScore(str(small_tree), str(lonely)).describe()


def test_qbe_of_the_last_layer(tiny_encoder, qbe_tables, tmp_path):
    score = QbeScore(str(qbe_tables))
    assert "do not say whether" in score.describe()["chosen_on"]
    value = score.measure(tiny_encoder, tmp_path, "cpu")
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["metric"], found["value"]) == ("mean_average_precision", pytest.approx(value))
    assert found["layer"] == 3
    mtwv = next(m["value"] for m in found["metrics"] if m["metric"] == "mtwv")
    assert QbeScore(str(qbe_tables), "mtwv").measure(tiny_encoder, tmp_path, "cpu") == pytest.approx(mtwv)
    with pytest.raises(SearchError, match="only you"):
        QbeScore(str(qbe_tables), on_test=True).describe()


@pytest.mark.parametrize(("on_test", "split"), [(False, "dev"), (True, "eval")])
def test_quesst_is_scored_on_dev_unless_test_is_asked_for(on_test, split, qbe_tables, tmp_path, monkeypatch):
    from dataclasses import replace

    from laser_hf.superb.qbe import data, task

    asked = []

    def read(folder, split):
        asked.append(split)
        return replace(data.read_tables(qbe_tables, split), layout="quesst2014")

    def run(arguments):
        assert (arguments.split, arguments.layer, arguments.skip_dev) == (split, "-1", True)
        found = [("mean_average_precision", "subset", 0.1), ("mtwv", "subset", 0.2), ("mtwv", "superb", 0.3)]
        return {
            "data": {"layout": "quesst2014"},
            "metrics": [dict(zip(("metric", "trials", "value"), m, strict=True)) for m in found],
        }

    monkeypatch.setattr(data, "read_data", read)
    monkeypatch.setattr(task, "run", run)
    described = QbeScore(str(qbe_tables), "mtwv", on_test).describe()
    assert asked == [split]
    assert f"the {split} queries" in described["chosen_on"]
    assert ("TEST" in described["chosen_on"]) == on_test
    assert QbeScore(str(qbe_tables), "mtwv", on_test).measure(tmp_path, tmp_path, "cpu") == 0.3
    assert QbeScore(str(qbe_tables), "map", on_test).measure(tmp_path, tmp_path, "cpu") == 0.1


# ------------------------------------------------------------------------------------------------ report


def made_up(plan, value=lambda point: sum(float(v) for v in point.values() if not isinstance(v, str))):
    return [Result(dict(point), "complete", n, value(point), [value(point)]) for n, point in enumerate(plan.grid())]


def test_the_table_is_ranked_and_ends_with_a_command(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", "alpha=0.1,0.5", "distance=euclidean,sqeuclidean")
    results = made_up(plan)
    results[0].state, results[0].value, results[0].reason = "failed", None, "a | b\nc"
    results[1].state, results[1].value = "running", None
    states = [result.state for result in ranked(results)]
    assert states == ["complete"] * 6 + ["failed", "running"]
    scores = [result.value for result in ranked(results)[:6]]
    assert scores == sorted(scores, reverse=True)
    written = table(plan, results)
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[2].split("|")[1:6]] == ["1", "2", "0.5", "euclidean", "2.5000"]
    assert "failed: a \\| b c" in rows[-2]
    assert len({len(row.replace("\\|", "__")) for row in rows}) == 1
    best = best_command(plan, best_of(results).params)
    assert best.startswith("python train.py --preset demo --max_steps 2 --sigma=2 --alpha=0.5 --distance=euclidean ")
    assert best in written
    assert record(plan, results)["points"][0]["runs"] == ["runs/sigma-2_alpha-0.5_distance-euclidean"]
    assert best_of(results[:2]) is None
    assert "Best" not in table(plan, results[:2])


@pytest.mark.parametrize(
    ("over", "axes", "labels"),
    [
        (("sigma=1,2,5",), 1, ("sigma", "points")),
        (("distance=euclidean,sqeuclidean",), 1, ("distance", "points")),
        (("sigma=1,2,5", "alpha=0.1,0.2"), 1 + 1, ("sigma", "alpha")),
        (("sigma=1,2", "alpha=0.1,0.2,0.3", "distance=euclidean,sqeuclidean"), 2 + 1, ("alpha", "sigma")),
        (("sigma=1,2", "alpha=0.1,0.2", "margin=1,2", "distance=a,b"), 1 + 1, ("sigma", "alpha")),
        (("alpha=0:1.3", "margin=1,2"), 1 + 1, ("alpha", "margin")),
    ],
)
def test_pictures(over, axes, labels, cheap, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    if ":" in over[0]:
        plan = cheap.make_plan(tmp_path, *over, sampler="tpe", trials=14)
        points = [{"alpha": 0.1 * n, "margin": 1.0 + n % 2} for n in range(14)]
        results = [Result(point, "complete", n, 0.1 * n, [0.1 * n]) for n, point in enumerate(points)]
    else:
        plan = cheap.make_plan(tmp_path, *over)
        results = made_up(plan)
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert draw(plan, results, tmp_path / "heatmap.png")
    monkeypatch.undo()
    (figure,) = drawn
    assert len(figure.axes) == axes
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == labels
    if len(over) == 4:
        # Of two values of each other option the better one.
        shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
        assert shown[(0, 0)] == "3.1000"
    plt.close(figure)
    assert Counter(path.suffix for path in tmp_path.iterdir()) == {".png": 1}
    assert not draw(plan, [Result(dict(results[0].params), "failed", 0)], tmp_path / "none.png")
