"""The commands of the experiments are accepted; record and tables hold what the runs left."""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import pytest
import soundfile
from conftest import REPOSITORY, make_waveform

from experiments import collect, plan, run, tables
from experiments.words import HALVES, half_of
from laser_hf.records import read_json, write_json
from laser_hf.superb import find_task
from laser_hf.training import parse_options

ARGUMENTS = argparse.Namespace(
    output_dir=Path("out"), speech=Path("LibriSpeech"), qbe=Path("qbe"), plain=Path("plain"), use_cpu=True
)


def test_points_have_names_of_their_own():
    names = [one.name for one in (*plan.POINTS, *plan.SECOND)]
    assert len(set(names)) == len(names)
    assert plan.point("laser").name == "laser"
    with pytest.raises(ValueError, match="unknown point 'laserr'; there are base, laser"):
        plan.point("laserr")


@pytest.mark.parametrize("name", [one.name for one in plan.POINTS if one.trained])
def test_training_commands_are_accepted_and_differ_from_the_preset_in_what_they_vary(name, tmp_path):
    one = plan.point(name)
    script, *words = run.command("train", one, 2, ARGUMENTS)
    assert (REPOSITORY / script).is_file()
    options = parse_options([*words, "--output_dir", str(tmp_path)])
    recipe = options.recipe()
    values = {key: value for group in recipe.values() for key, value in group.items()}
    assert values["seed"] == 2
    for key, value in {**plan.COMMON, **one.options}.items():
        if key in values:
            assert values[key] == value, key
    if one.group and one.name != "laser":
        changed = {**plan.COMMON, **one.options}
        assert any(plan.COMMON.get(key) != value for key, value in changed.items())


def test_the_second_round_is_the_plan():
    """`PLAN.md`: 8 methods x 2 kinds of views x 2 encoders x 3 seeds, two encoders as they are, nine rates."""
    design = [one for one in plan.SECOND if "design" in one.tables]
    assert sum(len(one.seeds) for one in design if one.trained) == 96
    assert {one.name for one in design if not one.trained} == {"plain", "plain-whitened", "shipped", "shipped-whitened"}
    rates = [one for one in plan.SECOND if "rates" in one.tables]
    assert (len(rates), {one.seeds for one in rates}, {one.encoder for one in rates}) == (9, {(1,)}, {"plain"})
    assert run.seeds_of(rates[0], "train", [1, 2, 3]) == [1]


@pytest.mark.parametrize("name", [one.name for one in plan.SECOND if one.trained])
def test_commands_of_the_second_round(name, tmp_path):
    """Views are equal where the plan says so, and the run starts from the encoder that it names."""
    one = plan.point(name)
    _, *words = run.command("train", one, 1, ARGUMENTS)
    options = parse_options([*words, "--output_dir", str(tmp_path)])
    assert options.model.model_name_or_path == {"plain": "plain", "shipped": plan.ENCODER}[one.encoder]
    assert options.data.max_eval_samples == 64
    drawn = {key: value for choice in options.perturbations for key, value in choice.values.items()}
    if one.label == "equal" or one.group == "equal":
        assert (drawn["speed_factors"], drawn["pitch_steps"]) == ([1.0], [0.0])
        assert [choice.name for choice in options.perturbations] == ["speed_pitch"]
    for stage in one.stages[1:]:
        _, _, task, *rest = run.command(stage, one, 1, ARGUMENTS)
        parser = argparse.ArgumentParser()
        find_task(task).add_arguments(parser)
        assert parser.parse_args(rest).model == f"out/{name}/seed-1/encoder"


def test_layers_and_heads_of_the_second_round_have_one_seed():
    one = plan.point("plain-laser-1-perturbed")
    assert one.stages == ("train", "qbe", "words", "sid", "pr", "asr", "layers")
    assert {stage for stage in one.stages if run.seeds_of(one, stage, [1, 2, 3]) == [1]} == {"pr", "asr", "layers"}
    assert plan.point("plain-soft-dtw-equal").stages == ("train", "qbe", "words", "sid")
    words = run.command("layers", one, 1, ARGUMENTS)
    assert words[2] == "qbe"
    assert {"all", "--perturbed", "out/plain-laser-1-perturbed/seed-1/layers"} < set(words)


@pytest.mark.parametrize("stage", ["qbe", "words", "sid"])
def test_whitened_commands(stage):
    one = plan.point("plain-whitened")
    words = run.command(stage, one, 1, ARGUMENTS)
    assert words[:2] == ["-m", "experiments.whitened"]
    assert words[3:5] == ["--speech", "out/short/train-clean-5"]
    parser = argparse.ArgumentParser()
    find_task(words[2]).add_arguments(parser)
    assert parser.parse_args(words[5:]).model == "plain"


def test_short_speech_is_linked(tmp_path):
    for seconds in (1, 10):
        path = tmp_path / "LibriSpeech" / plan.TRAIN_SPLIT / "1" / "2" / f"1-2-{seconds:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_waveform(seconds), 16_000)
    for _ in range(2):
        run.link_short(tmp_path / "LibriSpeech", tmp_path / "short")
        (link,) = (tmp_path / "short").rglob("*.flac")
        assert link.resolve().name == "1-2-0001.flac"


def test_an_untrained_encoder_is_searched_once_and_gets_heads_with_every_seed():
    base = plan.point("base")
    assert base.stages == ("qbe", "pr", "asr")
    assert run.seeds_of(base, "qbe", [1, 2, 3]) == [1]
    assert run.seeds_of(base, "pr", [1, 2, 3]) == [1, 2, 3]
    assert run.seeds_of(plan.point("laser"), "qbe", [1, 2, 3]) == [1, 2, 3]
    assert plan.ENCODER in run.command("qbe", base, 1, ARGUMENTS)
    assert plan.point("alpha-0.4").stages == ("train", "qbe")


@pytest.mark.parametrize("stage", ["qbe", "pr", "asr"])
def test_commands_of_evaluations_are_accepted(stage):
    words = run.command(stage, plan.point("laser"), 2, ARGUMENTS)
    assert words[:3] == ["-m", "laser_hf.superb", stage]
    parser = argparse.ArgumentParser()
    task = find_task(stage)
    task.add_arguments(parser)
    options = parser.parse_args(words[3:])
    assert (options.model, options.device) == ("out/laser/seed-2/encoder", "cpu")
    assert options.output_dir == Path("out/laser/seed-2") / stage
    if stage != "qbe":
        assert (options.seed, options.protocol, options.test_split) == (2, "quick", [plan.TEST_SPLIT])


def test_a_stage_that_fails_stops_its_chain_and_is_named(tmp_path, monkeypatch, capsys):
    class Bar:
        updates = 0

        def update(self):
            self.updates += 1

        def write(self, text):
            print(text)

    arguments = argparse.Namespace(**{**vars(ARGUMENTS), "output_dir": tmp_path, "threads": 1})
    ran = []

    def command(stage, *_):
        ran.append(stage)
        return ["-c", "raise SystemExit(3)"]

    monkeypatch.setattr(run, "command", command)
    one, bar = plan.point("laser"), Bar()
    done = tmp_path / "laser" / "seed-1" / run.DONE["train"]
    write_json(done, {})
    failed = run.run_chain(one, 1, ["train", "qbe", "pr"], arguments, bar)
    assert failed == "laser/seed-1/qbe"
    assert ran == ["qbe"]  # the first was done already, the third never came
    assert bar.updates == 1
    assert "see" in capsys.readouterr().out


TRIALS = "query\tdocument\tscore\ttarget\nq1\ta\t{0}\t1\nq1\tb\t0.5\t0\nq2\ta\t{0}\t1\nq2\tb\t0.5\t0\n"


@pytest.fixture
def folder(tmp_path):
    """What two points and two seeds leave, one of them without its query-by-example."""
    (tmp_path / "queries.tsv").write_text("query\tword\nq1\tlittle\nq2\tmakes\n")
    assert {half_of("little"), half_of("makes")} == set(HALVES)
    about = {"commit": "a" * 40, "versions": {"torch": "2"}, "hardware": {"processor": "X", "cores": 2}}
    for name, seed, found in (("laser", 1, 0.2), ("laser", 2, 0.3), ("sigma-5", 1, 0.24), ("sigma-5", 2, None)):
        where = tmp_path / name / f"seed-{seed}"
        record = {
            "schema_version": 2, "task": "training", "recipe": {}, "seed": seed, "wall_seconds": 100.0 + seed,
            "method": "laser", "updates": 60, "processed_hours": 0.5, "data": {"skipped": {}},
            "collapse": {"fired_at": None}, "command": "python train.py",
        }  # fmt: skip
        write_json(where / "encoder" / "laser_config.json", record | about)
        log = [{"step": 60, "eval_frame_cosine": 0.1 * seed, "eval_soft_dtw": 3.0, "eval_effective_rank": 9.0}]
        write_json(where / "encoder" / "training_log.json", {"log": [{"step": 1, "loss": 2.0}, *log]})
        if found is not None:
            metric = {"metric": "mean_average_precision", "split": "test", "value": found, "unit": "fraction"}
            scores = {"schema_version": 2, "task": "qbe", "recipe": {}, "data": {}, "seed": None, "protocol": "quick",
                      "metrics": [metric], "command": "python -m", "wall_seconds": 1.0}  # fmt: skip
            write_json(where / "qbe" / "results.json", scores | about)
            # Both words are found at once with the preset's sigma and seed 1, and second best otherwise.
            (where / "qbe" / "scores.tsv").write_text(TRIALS.format(0.9 if found == 0.2 else 0.1))
    return tmp_path


def test_collecting(folder):
    record = collect.collect(folder, [1, 2, 3], folder / "queries.tsv")
    assert [(entry["point"], entry["seed"]) for entry in record["runs"]] == [
        ("laser", 1), ("laser", 2), ("sigma-5", 1), ("sigma-5", 2),
    ]  # fmt: skip
    assert record["commits"] == ["a" * 40]
    assert record["hardware"] == [{"processor": "X", "cores": 2}]
    assert record["runs"][0]["qbe"]["mean_average_precision test"] == 0.2
    assert record["runs"][0]["train"]["curves"]["eval_frame_cosine"] == [[60, 0.1]]
    assert "qbe" not in record["runs"][3]
    assert record["words"]["halves"] == {"choose": 1, "report": 1}
    laser, sigma = (record["words"]["points"][name] for name in ("laser", "sigma-5"))
    assert laser["choose"] == laser["report"] == 0.75  # precisions 1 and 1/2, by seed
    assert sigma["against"]["laser"] == {"all": [-0.25] * 3, "report": [-0.25] * 3}
    assert laser["against"] == {}  # the encoder as it is was not run


def test_tables_hold_means_deviations_and_paired_differences(folder):
    record = collect.collect(folder, [1, 2, 3], folder / "queries.tsv")
    text = tables.sensitivity_table(record)
    laser, sigma = text.splitlines()[2:]
    deviation = statistics.stdev([0.2, 0.3])
    assert f"| 0.2500 ± {deviation:.4f} |" in laser
    # One seed only: its difference from the same seed, and no deviation.
    assert "| 0.2400 | +0.0400 | **-0.2500 (-0.2500 … -0.2500)** |" in sigma
    assert tables.over_words({"words": {"points": {"a": {"against": {"b": {"all": [1, -1, 2]}}}}}}, "a", "b") == (
        "+1.0000 (-1.0000 … +2.0000)"
    )
    best, second = tables.words_table(record).splitlines()[2:]
    assert best.startswith("| LASER | 0.7500 | 0.7500 |")
    assert second.startswith("| sigma (1): 5 | 0.5000 | 0.5000 |")
    assert tables.spread([], 2) == ""
    assert tables.signed([0.1, 0.1, 0.1]) == "+0.1000 ± 0.0000"
    error = statistics.stdev([0.1, -0.1, 0.3]) / math.sqrt(3)
    assert tables.signed([0.1, -0.1, 0.3]) == f"+0.1000 ± {error:.4f}"
    runs = [("base", 1, 70.0), ("base", 2, 71.0), ("score", 1, 69.0), ("score", 2, 70.5), ("score", 3, 1.0)]
    rates = {"runs": [{"point": p, "seed": s, "pr": {"per test-other-100": value}} for p, s, value in runs]}
    # Differences -1 and -0.5; the third seed has no partner, and nothing else was measured.
    assert tables.gains_table(rates).splitlines()[2:] == ["| SCORE | -0.75 ± 0.25 |  |  |"]
    assert "| LASER | 0.2500" in tables.collapse_table(record)
    assert "Seeds 1, 2;" in tables.how(record)


def test_the_command_writes_record_and_curves(folder, capsys):
    to = ["--qbe", str(folder), "--record", str(folder / "r.json"), "--figure", str(folder / "curves.png")]
    collect.main([str(folder), *to])
    assert len(read_json(folder / "r.json")["runs"]) == 4
    assert (folder / "curves.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="nothing is finished"):
        collect.main([str(folder / "elsewhere"), *to])
