"""The command: its errors, real runs in processes of their own, scores, tables and pictures."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

import optuna
import pytest

from laser_hf.errors import LaserError
from laser_hf.records import located, read_record
from laser_hf.search import __main__ as command
from laser_hf.search import study as searching
from laser_hf.search.plan import grid
from laser_hf.search.report import best_command, best_of, draw, ranked, record, table
from laser_hf.search.score import Score, discrimination_score, qbe_score
from laser_hf.search.study import SCORE
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
        ("--over sgima=1,2", "--over sgima=1,2: .*sgima"),
        ("--over sigma=1,two", r"--over sigma=1,two: argument --sigma: invalid int value: 'two'"),
        ("--over sigma=0,1", "--over sigma=0,1: sigma must be at least 1, got 0"),
        ("--over distance=cosine", "--over distance=cosine: argument --distance: invalid choice"),
        ("--over speed_factors=0.9,1.1", "only options with a single value"),
        ("--over output_dir=a,b", "every run has its own folder"),
        ("--over seed=1,2", "--seeds 1 2 3"),
        ("--over logging_steps=5,10", "--over logging_steps: it does not change what is trained"),
        ("--over sigma=1,2 --objective spin", "--over sigma: it does not change what is trained"),
        ("--over alpha=0.1:1", "alpha=0.1:1.0 is a range: give a list"),
        ("--over sigma=1,2 --sigma 3", "--over sigma=1,2: --sigma is given as a fixed option too"),
        ("--over sigma=1,2 -- --sigma=3", "--over sigma=1,2: --sigma is given as a fixed option too"),
        ("--over sigma=1,2 --max_stps 3", "max_stps"),
        ("--over sigma=1,2 --preset no-such", "unknown preset 'no-such'"),
        ("--over sigma=1,2 -- --preset=demo", "write it before --"),
        ("--over preset=demo,hubert-base", "write it before --"),
        ("--over sigma=1,2 -- --output_dir x", "--output_dir cannot be given to the runs of a search"),
        ("--over sigma=1,2 -- --overwrite_output_dir", "write it before --"),
        ("--over sigma=1,2 --seed 3", "give seeds as --seeds"),
        ("--over sigma=1,2 --qbe_data x", "--qbe_data has no meaning with --score discrimination"),
        ("--over sigma=1,2 --score qbe --data x", "--data has no meaning with --score qbe"),
        ("--over sigma=1,2 --score qbe", "needs --qbe_data"),
        ("--over sigma=1,2 --score qbe --qbe_data no/such", "there is no folder no/such"),
        ("--over sigma=1,2 --do_normalize", "trains with scaled ones"),
        ("--over sigma=1,2 --data no/such", "takes --alignments and --data together"),
        ("--over sigma=1,2 --split a", "--split names sub-folders of --data"),
        ("--over sigma=1,2 --data no/such --alignments x.tsv", "no folder no/such"),
    ],
)
def test_mistakes_are_named_before_anything_trains(words, message, tmp_path):
    before, _, behind = words.partition(" -- ")
    with pytest.raises(LaserError, match=message):
        command.main([*before.split(), f"--output_dir={tmp_path / 'out'}", "--", *behind.split()])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--jobs 0", "argument --jobs: jobs must be at least 1, got '0'"),
        ("--sampler tpe --trials -2", "argument --trials: trials must be at least 1, got '-2'"),
        ("--seeds 1 -1", "argument --seeds: seed must be from 0 to 4294967295, got '-1'"),
    ],
)
def test_numbers_out_of_range_are_named_and_help_has_the_ranges(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--over", "sigma=1,2", *words.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    shown = " ".join(command.build_parser().format_help().split())
    for text in ("draws (at least 1)", "on this machine (at least 1; default: 1)", "the mean (from 0 to 4294967295)"):
        assert text in shown


def test_several_processes_of_one_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaserError, match="CUDA_VISIBLE_DEVICES"):
        command.main(["--over", "sigma=1,2"])


def test_the_only_options_that_hide_ones_of_train_py_are_reserved():
    own = {action.dest for action in command.build_parser()._actions}
    assert own & option_names() == {"output_dir", "overwrite_output_dir"}
    assert {"output_dir", "overwrite_output_dir", "preset"} <= set(command.RESERVED)


def test_help_names_the_ways_to_use_it(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for text in ("sigma=1,2,5", "--jobs", "--trials", "same command", "CUDA_VISIBLE_DEVICES"):
        assert text in said


def planned(words):
    arguments, fixed = command.build_parser().parse_known_args(words)
    return command.build_plan(arguments, fixed)


def test_the_plan_of_a_command_line(tmp_path):
    plan = planned(
        [
            "--over",
            "sigma=1,2",
            "alpha=.15,0.4",
            "--max_steps",
            "7",
            "--output_dir",
            str(tmp_path),
            "--bf16",
            "--use_cpu",
        ]
    )
    assert plan.size == 4
    assert plan.fixed == ("--max_steps", "7", "--bf16", "--use_cpu")
    assert plan.recipe["training"]["max_steps"] == 7
    assert not {"sigma", "alpha"} & set(plan.recipe["objective"])
    assert plan.recipe["objective"]["margin"] == 1.0
    options = parse_options(plan.arguments({**grid(plan.over)[-1], "seed": 5}, "there"))
    assert options.recipe()["objective"]["sigma"] == 2
    assert options.recipe()["objective"]["alpha"] == 0.4
    assert (options.training.seed, options.training.output_dir, options.training.bf16) == (5, "there", True)


def test_objectives_can_be_compared(tmp_path):
    plan = planned(["--over", "objective=laser,soft_dtw", "--output_dir", str(tmp_path)])
    recipes = [parse_options(plan.arguments(point, "x")).recipe() for point in grid(plan.over)]
    assert [recipe["objective"]["name"] for recipe in recipes] == ["laser", "soft_dtw"]


# ------------------------------------------------------------------------------------------------ real runs


@pytest.mark.slow
def test_a_search_trains_scores_and_records(tiny_encoder, small_tree, words_of_tree, tmp_path, capsys):
    """Real training and scoring, in a process of its own."""
    folder = tmp_path / "out"
    words = [
        "--over", "margin=0.9", "--data", str(small_tree), "--alignments", str(words_of_tree),
        *run_options(tiny_encoder, small_tree), "--output_dir", str(folder),
    ]  # fmt: skip
    command.main(words)
    found = read_record(folder / "search.json")
    (point,) = found["points"]
    assert (point["state"], point["params"]) == ("complete", {"margin": 0.9})
    run = folder / "runs" / "margin-0.9"
    trained = read_record(run / "laser_config.json")
    assert trained["recipe"]["objective"]["margin"] == 0.9
    assert trained["updates"] == 5
    assert not list(run.glob("checkpoint-*"))
    # The score is that of the exported encoder, by the library.
    score = discrimination_score(str(small_tree), str(words_of_tree), None)
    assert score.measure(run, folder / "again", "cpu") == pytest.approx(point["value"], abs=1e-6)
    assert read_record(run / "score" / "results.json")["value"] == point["value"]
    assert json.loads((run / SCORE).read_text())["value"] == point["value"]
    assert found["task"] == "search"
    assert found["score"]["metric"] == "word_ap_across"
    assert found["score"]["chosen_on"].startswith("aligned speech in")
    assert found["recipe"]["training"]["max_steps"] == 5
    assert (folder / "heatmap.png").stat().st_size > 5000
    # The best command is laser-hf train's.
    best = parse_options(shlex.split(found["best"]["command"])[2:])
    assert best.recipe()["objective"]["margin"] == 0.9
    assert best.model.model_name_or_path == str(tiny_encoder)
    # Again: nothing trains, the table stays.
    before = (folder / "search.md").read_text()
    capsys.readouterr()
    command.main(words)
    assert "training" not in capsys.readouterr().out
    assert (folder / "search.md").read_text() == before


def test_a_search_without_any_score_ends_with_an_error(small_tree, words_of_tree, cheap, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "start_process", cheap.Cheap(tmp_path, fails="margin"))
    with pytest.raises(LaserError, match=r"no point has a score \(non-finite loss at step 4 \| of 8\).*--retry_failed"):
        command.main(
            ["--over", "margin=0.9", "--data", str(small_tree), "--alignments", str(words_of_tree),
             "--output_dir", str(tmp_path / "out")]
        )  # fmt: skip
    assert "failed: non-finite loss" in (tmp_path / "out" / "search.md").read_text()


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.slow
def test_the_default_score_is_that_of_eval_alignments(tmp_path):
    from laser_hf.encoders import load_encoder
    from laser_hf.training.arguments import DataArguments
    from laser_hf.training.speech import load_evaluator

    score = discrimination_score(None, None, None)
    assert Score(**json.loads(json.dumps(asdict(score)))) == score
    assert score.chosen_on == "the held-out voices of the shipped speech"
    assert score.data["words"] == 200
    assert score.data["source"].startswith("{laser_hf}")
    evaluator = load_evaluator(DataArguments(eval_alignments="demo", eval_data="given"))
    model = located("{laser_hf}/demo/encoder")
    expected = evaluator(load_encoder(model))["word_ap_across"]
    assert score.measure(model, tmp_path, "cpu") == pytest.approx(expected, abs=1e-9)


def test_words_that_no_two_speakers_share_cannot_score(small_tree, words_of_tree, tmp_path):
    header, *rows = words_of_tree.read_text().splitlines()
    lonely = tmp_path / "words.tsv"
    lonely.write_text("\n".join([header, *(row.replace("\t", f"\tx{row[0]}", 1) for row in rows)]))
    with pytest.raises(LaserError, match="no two speakers share one"):
        discrimination_score(str(small_tree), str(lonely), None)


def test_qbe_of_the_last_layer(tiny_encoder, qbe_tables, tmp_path):
    score = qbe_score(str(qbe_tables), "map")
    assert "do not say whether" in score.chosen_on
    value = score.measure(tiny_encoder, tmp_path, "cpu")
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["metric"], found["value"]) == ("mean_average_precision", pytest.approx(value))
    assert found["layer"] == 3
    mtwv = next(m["value"] for m in found["metrics"] if m["metric"] == "mtwv")
    assert qbe_score(str(qbe_tables), "mtwv").measure(tiny_encoder, tmp_path, "cpu") == pytest.approx(mtwv)


def test_quesst_is_scored_on_its_development_queries(qbe_tables, tmp_path, monkeypatch):
    from dataclasses import replace

    from laser_hf.superb.qbe import data, task

    asked = []

    def read(folder, split):
        asked.append(split)
        return replace(data.read_tables(qbe_tables), layout="quesst2014")

    def run(arguments):
        assert (arguments.split, arguments.layer, arguments.skip_dev) == ("dev", "-1", True)
        found = [("mean_average_precision", "subset", 0.1), ("mtwv", "subset", 0.2), ("mtwv", "superb", 0.3)]
        return {"metrics": [dict(zip(("metric", "trials", "value"), m, strict=True)) for m in found]}

    monkeypatch.setattr(data, "read_data", read)
    monkeypatch.setattr(task, "run", run)
    score = qbe_score(str(qbe_tables), "mtwv")
    assert asked == ["dev"]
    assert score.chosen_on == "the development queries of QUESST 2014"
    assert score.measure(tmp_path, tmp_path, "cpu") == 0.3
    assert qbe_score(str(qbe_tables), "map").measure(tmp_path, tmp_path, "cpu") == 0.1


# ------------------------------------------------------------------------------------------------ report


def trial(plan, point, value=None, reason=None):
    """A trial of a point that has a score, or failed for a reason, or is in work."""
    state = "FAIL" if reason else "RUNNING" if value is None else "COMPLETE"
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        params=point,
        distributions=plan.over,
        value=value,
        user_attrs={"reason": reason} if reason else {},
    )


def made_up(plan, points=None):
    """Trials with the sum of their numbers as score."""
    numbers = [[v for v in point.values() if not isinstance(v, str)] for point in points or grid(plan.over)]
    return [trial(plan, point, float(sum(n))) for point, n in zip(points or grid(plan.over), numbers, strict=True)]


def test_the_table_is_ranked_and_ends_with_a_command(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", "alpha=0.1,0.5", "distance=euclidean,sqeuclidean")
    trials = made_up(plan)
    trials[0] = trial(plan, trials[0].params, reason="a | b\nc")
    trials[1] = trial(plan, trials[1].params)
    assert [one.state.name for one in ranked(trials)] == ["COMPLETE"] * 6 + ["FAIL", "RUNNING"]
    scores = [one.value for one in ranked(trials)[:6]]
    assert scores == sorted(scores, reverse=True)
    written = table(plan, trials)
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert rows[2] == "| 1 | 2 | 0.5 | euclidean | 2.5000 |"
    assert rows[-2:] == ["|  | 1 | 0.1 | euclidean | failed: a \\| b c |", "|  | 1 | 0.1 | sqeuclidean | running |"]
    best = best_command(plan, best_of(trials).params)
    assert best.startswith("laser-hf train --preset demo --max_steps 2 --sigma=2 --alpha=0.5 --distance=euclidean ")
    assert best in written
    assert record(plan, trials)["points"][0]["runs"] == ["runs/sigma-2_alpha-0.5_distance-euclidean"]
    assert best_of(trials[:2]) is None
    assert "Best" not in table(plan, trials[:2])


@pytest.mark.parametrize(
    ("over", "labels"),
    [
        (("sigma=1,2,5",), [("sigma", "points")]),
        (("distance=euclidean,sqeuclidean",), [("distance", "points")]),
        (("sigma=1,2,5", "alpha=0.1,0.2"), [("sigma", "alpha"), ("", "points")]),
        (("sigma=1,2", "alpha=0.1,0.2,0.3", "distance=a,b"), [("alpha", "sigma"), ("", "points")]),
        (("alpha=0:1.3", "margin=1,2"), [("alpha", "points"), ("margin", ""), ("", "point")]),
    ],
)
def test_pictures(over, labels, cheap, tmp_path, monkeypatch):
    from laser_hf import figures

    ranges = ":" in over[0]
    plan = cheap.make_plan(tmp_path, *over, **({"sampler": "tpe", "trials": 9} if ranges else {}))
    points = [{"alpha": 0.1 * n, "margin": 1.0 + n % 2} for n in range(9)] if ranges else None
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: drawn.append(figure))
    draw(plan, made_up(plan, points))
    (figure,) = drawn
    assert {(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes} >= set(labels)
    if len(over) == 3:
        # Of the two values of the third option the better one.
        assert figure.axes[0].get_title() == "best over distance"
    if len(over) > 1 and not ranges:
        shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
        assert shown[(0, 0)] == "1.1000"
        assert len(shown) == plan.size / (2 if len(over) == 3 else 1)
    draw(plan, [trial(plan, grid(plan.over)[0] if not ranges else points[0], reason="no")])
    assert len(drawn) == 1


def test_a_picture_is_written(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", "alpha=0.1,0.2")
    draw(plan, made_up(plan))
    assert (tmp_path / "heatmap.png").stat().st_size > 5000
