"""One study among processes: every point once, none lost, whatever is killed; and what may change in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from optuna import Study
from optuna.trial import Trial

from laser_hf.errors import LaserError
from laser_hf.records import new_record, read_json, write_json
from laser_hf.search.plan import grid
from laser_hf.search.score import Score, check_content
from laser_hf.search.study import SCORE, SharedStudy, hold, outcome, train_point

GRID = ("sigma=1,2,5", "alpha=0.15,0.4")
TPE = {"sampler": "tpe", "trials": 12}  # two beyond the ten that TPE draws at random
SPACE = ("sigma=1:4", "alpha=0.01:1:log", "margin=0.8,1,1.2")


def states(study):
    return Counter(trial.state.name for trial in study.trials())


@pytest.fixture(scope="module")
def straight(cheap, tmp_path_factory):
    """Table of an uninterrupted grid."""
    plan = cheap.make_plan(tmp_path_factory.mktemp("straight"), *GRID)
    return cheap.search(plan, cheap.Cheap(plan.folder))


@pytest.mark.slow
def test_a_grid_is_trained_and_ranked(cheap, straight, tmp_path):
    plan = cheap.make_plan(tmp_path, *GRID)
    start = cheap.Cheap(tmp_path)
    assert cheap.search(plan, start, jobs=4) == straight
    study = SharedStudy(plan)
    assert {tuple(trial.params.items()): trial.value for trial in study.trials()} == {
        tuple(point.items()): pytest.approx(cheap.worth(plan.arguments(point, "x"))) for point in grid(plan.over)
    }
    assert cheap.search(plan, start) == straight  # again: nothing is left to do
    assert len(start.started) == len(set(start.started)) == 6
    assert cheap.search(plan, start, overwrite=True) == straight
    assert len(start.started) == 12


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_with_the_same_table(cheap, straight, tmp_path):
    """SIGKILL of a search while its worker trains; the worker leaves, and another search takes the point at once."""
    script = Path(__file__).with_name("cheap_search.py")
    plan = cheap.make_plan(tmp_path, *GRID)
    first = tmp_path / "runs" / "sigma-1_alpha-0.15"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(tmp_path), *GRID]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 120
        while not (first / "in_work").exists():
            assert killed.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        trial, lock = SharedStudy(plan).claim()
        lock.close()
        assert trial.params == {"sigma": 1, "alpha": 0.4}  # the first one is taken
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    with hold(first.with_name(f"{first.name}.worker"), wait=True):  # the worker has let go
        pass
    start = cheap.Cheap(tmp_path)
    assert cheap.search(plan, start) == straight
    assert len(start.started) == 6
    assert start.started[0] == first.name


def test_two_processes_share_the_points(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2")
    one, other = SharedStudy(plan), SharedStudy(plan)
    first, second = one.claim(), other.claim()
    assert [first[0].params, second[0].params] == [{"sigma": 1}, {"sigma": 2}]
    assert one.claim() is None
    one.settle(first, [0.5], None, 1)
    assert other.claim() is None
    assert not other.finished
    second[1].close()  # its process ends
    again = one.claim()
    assert again[0].params == {"sigma": 2}
    one.settle(again, [0.6], None, 1)
    assert other.finished
    assert [trial.value for trial in other.trials()] == [0.5, 0.6]


def test_ctrl_c_gives_the_points_back(cheap, straight, tmp_path):
    plan = cheap.make_plan(tmp_path, *GRID)
    with pytest.raises(KeyboardInterrupt):
        cheap.search(plan, cheap.Cheap(tmp_path, interrupt_at=3))
    assert states(SharedStudy(plan)) == {"COMPLETE": 2, "RUNNING": 1}
    start = cheap.Cheap(tmp_path)
    assert cheap.search(plan, start) == straight
    assert len(start.started) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("more", "over"), [({}, ("sigma=1,2", "alpha=0.1")), ({"sampler": "tpe", "trials": 2}, SPACE)])
@pytest.mark.parametrize("step", [(Study, "enqueue_trial"), (Study, "ask"), (Trial, "_suggest")])
def test_a_claim_that_was_left_halfway_is_not_lost(more, over, step, cheap, tmp_path, monkeypatch):
    """Killed right after one of Optuna's steps: the point is entered, or given out, or only the first parameter is."""
    plan = cheap.make_plan(tmp_path, *over, **more)
    cheap.search(plan, cheap.Cheap(plan.folder))
    expected = [trial.params for trial in SharedStudy(plan).trials()]
    plan = cheap.make_plan(tmp_path / "broken", *over, **more)
    study, original = SharedStudy(plan), getattr(*step)

    def killed(*arguments, **named):
        original(*arguments, **named)
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(*step, killed)
        with pytest.raises(ZeroDivisionError):
            study.claim()
    start = cheap.Cheap(plan.folder)
    cheap.search(plan, start)
    assert [trial.params for trial in SharedStudy(plan).trials()] == expected
    assert len(start.started) == plan.size


@pytest.mark.slow
def test_failed_points_are_kept_with_their_reason(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, *GRID[:1])
    start = cheap.Cheap(tmp_path, fails="sigma-2")
    written = cheap.search(plan, start)
    assert states(SharedStudy(plan)) == {"COMPLETE": 2, "FAIL": 1}
    assert "| failed: non-finite loss at step 4 \\| of 8 |" in written
    assert written.index("failed") > written.index("| 2 ")
    assert cheap.search(plan, start) == written
    assert len(start.started) == 3
    healed = cheap.Cheap(tmp_path)
    cheap.search(plan, healed, retry_failed=True)
    assert healed.started == ["sigma-2"]
    assert states(SharedStudy(plan)) == {"COMPLETE": 3}


def test_seeds_are_averaged(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", seeds=(1, 2, 6))
    written = cheap.search(plan, cheap.Cheap(tmp_path))
    best = max(SharedStudy(plan).trials(), key=lambda trial: trial.value)
    assert best.params == {"sigma": 2}
    assert best.user_attrs["values"] == pytest.approx([1.001, 1.002, 1.006])
    assert best.value == pytest.approx(1.003)
    assert "| 1 | 2 | 1.0030 | 0.0026 |" in written  # root of (4 + 1 + 9) / 2, in thousandths
    assert {path.name for path in tmp_path.glob("runs/*") if path.is_dir()} == {
        f"sigma-{n}_seed-{s}" for n in (1, 2) for s in (1, 2, 6)
    }
    failed = cheap.make_plan(tmp_path / "failed", "sigma=1,2", seeds=(1, 2))
    cheap.search(failed, cheap.Cheap(failed.folder, fails="seed-2"))
    reasons = {trial.user_attrs["reason"] for trial in SharedStudy(failed).trials()}
    assert reasons == {"seed 2: non-finite loss at step 4 | of 8"}


@pytest.mark.slow
def test_a_grid_may_change_and_trains_nothing_twice(cheap, tmp_path):
    start = cheap.Cheap(tmp_path)
    cheap.search(cheap.make_plan(tmp_path, "sigma=2,1", "distance=euclidean"), start)
    grown = cheap.make_plan(tmp_path, "sigma=1,2,7", "distance=euclidean,sqeuclidean")
    assert cheap.search(grown, start).count("\n| ") == 6 + 2
    assert len(start.started) == len(set(start.started)) == 6
    assert cheap.search(cheap.make_plan(tmp_path, "sigma=7", "distance=euclidean"), start).count("\n| ") == 1 + 2
    assert len(start.started) == 6


def test_the_record_is_there_only_when_every_point_is_done(cheap, tmp_path):
    cheap.search(cheap.make_plan(tmp_path, "sigma=1,2"), cheap.Cheap(tmp_path))
    assert (tmp_path / "search.json").exists()
    with pytest.raises(KeyboardInterrupt):
        cheap.search(cheap.make_plan(tmp_path, "sigma=1,2,5"), cheap.Cheap(tmp_path, interrupt_at=1))
    assert not (tmp_path / "search.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "more", "message"),
    [
        (("sigma=1,2", "alpha=0.1"), {}, r"--over \['sigma'\] -> \['alpha', 'sigma'\]"),
        (("sigma=1,2",), {"recipe": {"objective": {"gamma": 0.5}}}, r"\(--gamma 0.1 -> 0.5\)"),
        (("sigma=1,2",), {"seeds": (1,)}, r"\(--seeds \[\] -> \[1\]\)"),
        (("sigma=1,2",), {"sampler": "tpe", "trials": 2}, "--sampler grid -> tpe"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_search_in_the_folder_is_named(over, more, message, finished, cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2")
    if finished:
        cheap.search(plan, cheap.Cheap(tmp_path))
    else:
        SharedStudy(plan)
    with pytest.raises(LaserError, match=message):
        SharedStudy(cheap.make_plan(tmp_path, *over, **more))


def test_other_data_of_the_score_is_another_search_and_another_place_is_not(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2")
    start = cheap.Cheap(tmp_path)
    before = cheap.search(plan, start)
    moved = replace(plan, score=replace(plan.score, chosen_on="elsewhere", data={"source": "y"}))
    assert cheap.search(moved, start) == before.replace("nothing", "elsewhere")
    assert len(start.started) == 2
    with pytest.raises(LaserError, match=r"\(--data_digest 1 -> 2\)"):
        SharedStudy(replace(plan, score=replace(plan.score, digest="2")))


@pytest.mark.slow
def test_tpe_draws_new_points_near_good_ones_and_is_resumed_as_if_nothing_had_been(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path / "straight", *SPACE, **TPE)
    straight = cheap.search(plan, cheap.Cheap(plan.folder))
    points = [trial.params for trial in SharedStudy(plan).trials()]
    assert len({tuple(point.values()) for point in points}) == 12
    for point in points:
        assert point["sigma"] in (1, 2, 3, 4)
        assert 0.01 <= point["alpha"] <= 1
        assert point["margin"] in (0.8, 1.0, 1.2)
    broken = cheap.make_plan(tmp_path / "broken", *SPACE, **TPE)
    with pytest.raises(KeyboardInterrupt):
        cheap.search(broken, cheap.Cheap(broken.folder, interrupt_at=11))
    assert cheap.search(broken, cheap.Cheap(broken.folder)) == straight
    # More points can be drawn later, and what was drawn stays.
    start = cheap.Cheap(broken.folder)
    cheap.search(replace(broken, trials=13), start)
    assert len(start.started) == 1
    assert [trial.params for trial in SharedStudy(replace(broken, trials=13)).trials()][:12] == points
    with pytest.raises(LaserError, match=r"sigma=1:4.* -> .*sigma=1:5"):
        SharedStudy(cheap.make_plan(tmp_path / "broken", "sigma=1:5", *SPACE[1:], **TPE))


def test_tpe_ends_when_a_finite_space_is_used_up(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", "distance=euclidean,sqeuclidean", sampler="tpe", trials=50)
    start = cheap.Cheap(tmp_path)
    cheap.search(plan, start)
    assert len(set(start.started)) == len(start.started) == 4


@pytest.mark.slow
def test_bad_plans_and_folders(cheap, tmp_path):
    for over, more, message in (
        (("alpha=0.1:1",), {}, "alpha=0.1:1.0 is a range: give a list"),
        (("alpha=0.1",), {"trials": 3}, "--sampler tpe needs --trials"),
        (("alpha=0.1",), {"sampler": "tpe"}, "--sampler tpe needs --trials"),
        (("alpha=0.1",), {"seeds": (1, 1)}, "names a seed twice"),
    ):
        with pytest.raises(LaserError, match=message):
            cheap.make_plan(tmp_path, *over, **more)
    (tmp_path / "file").write_text("")
    with pytest.raises(LaserError, match="cannot write"):
        SharedStudy(cheap.make_plan(tmp_path / "file", *GRID))
    busy = cheap.make_plan(tmp_path / "busy", *GRID)
    _, lock = SharedStudy(busy).claim()
    with pytest.raises(LaserError, match="another process trains"):
        SharedStudy(busy, overwrite=True)
    lock.close()
    SharedStudy(busy, overwrite=True)
    trained = tmp_path / "trained"
    write_json(trained / "recipe.json", {"objective": {"sigma": 1}})
    for overwrite in (False, True):
        with pytest.raises(LaserError, match="holds a run of another command"):
            SharedStudy(cheap.make_plan(trained, *GRID), overwrite=overwrite)
    assert read_json(trained / "recipe.json") == {"objective": {"sigma": 1}}


def damage(kind, file):
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"this is no database " * 99, "half": content[: len(content) // 2]}[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "text", "half"])
@pytest.mark.parametrize("more", [{}, {"sampler": "tpe", "trials": 6}])
def test_a_damaged_database_loses_nothing(kind, more, cheap, tmp_path, caplog):
    """Runs have their scores; TPE draws from them what it drew."""
    plan = cheap.make_plan(tmp_path, "sigma=1,2,5", "alpha=0.1,0.4", **more)
    before = cheap.search(plan, cheap.Cheap(tmp_path))
    damage(kind, tmp_path / "study.db")
    (tmp_path / "study.db-journal").write_bytes(b"left by a kill")
    again = cheap.Cheap(tmp_path)
    assert cheap.search(plan, again) == before
    assert again.started == []
    if kind != "empty":  # an empty file is an empty database
        assert "is damaged" in caplog.text
        assert (tmp_path / "broken-1-study.db").is_file()
    cheap.search(plan, again, overwrite=True)
    assert not list(tmp_path.glob("broken-*"))


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", '{"value": 0.', "[1]", '{"other": 1}'])
def test_a_damaged_score_is_made_again(content, cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2")
    with pytest.raises(KeyboardInterrupt):
        cheap.search(plan, cheap.Cheap(tmp_path, interrupt_at=2))
    train_point(plan, {"sigma": 2})
    (tmp_path / "runs" / "sigma-2" / SCORE).write_text(content)
    again = cheap.Cheap(tmp_path)
    assert "| 1 | 2 | 1.0000 |" in cheap.search(plan, again)
    assert again.started == ["sigma-2"]


# ---------------------------------------------------------------------------------------- one point


def test_a_finished_run_of_another_recipe_is_not_taken(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", score=Score(*cheap.MADE_UP))
    folder = tmp_path / "runs" / "sigma-1"
    write_json(folder / "laser_config.json", new_record("training", recipe={}, data={}, seed=None, wall_seconds=0))
    write_json(folder / "recipe.json", {"objective": {"sigma": 3}})
    train_point(plan, {"sigma": 1})
    values, reason = outcome(plan, {"sigma": 1}, 0)
    assert not values
    assert "holds a finished run of another recipe (--" in reason
    assert "--sigma 3 -> 1" in reason


def test_runs_on_other_content_are_not_compared(tmp_path):
    """The base model was edited while the search was interrupted; another path or option alone is no fault."""
    first = {"model": {"model_name_or_path": "a"}, "data": {"train_data": "s"}, "content": {"model_name_or_path": "1"}}
    write_json(tmp_path / "first" / "recipe.json", first)
    check_content(first, tmp_path)
    check_content({**first, "data": {"train_data": "moved"}}, tmp_path)
    check_content({**first, "model": {"model_name_or_path": "b"}, "content": {"model_name_or_path": "2"}}, tmp_path)
    with pytest.raises(LaserError, match="content of --model_name_or_path has changed since first was trained"):
        check_content({**first, "content": {"model_name_or_path": "2"}}, tmp_path)


def test_a_full_disk_ends_the_search_and_no_point(cheap, straight, tmp_path, monkeypatch):
    plan = cheap.make_plan(tmp_path, *GRID)
    point = grid(plan.over)[0]

    def full(*_):
        raise RuntimeError("cannot save") from OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cheap.CheapScore, "train_and_measure", full)
        with pytest.raises(RuntimeError, match="cannot save"):
            train_point(plan, point)

    class Full:
        exitcode = errno.ENOSPC
        terminate = kill = join = lambda self, *seconds: None

    with pytest.raises(OSError, match="No space left on device for sigma-1_") as caught:
        cheap.search(plan, lambda *_: Full())
    assert caught.value.errno == errno.ENOSPC
    assert cheap.search(plan, cheap.Cheap(tmp_path)) == straight


def test_how_a_run_ended_is_reported(cheap, tmp_path, monkeypatch):
    plan, point = cheap.make_plan(tmp_path, "sigma=1,2"), {"sigma": 1}
    assert outcome(plan, point, -signal.SIGKILL) == ([], "ended by SIGKILL (out of memory?); see sigma-1.log")
    assert outcome(plan, point, 2) == ([], "ended by exit status 2; see sigma-1.log")

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(cheap.CheapScore, "train_and_measure", fail)
    train_point(plan, point)
    assert outcome(plan, point, 0) == ([], "MemoryError: no room")
    monkeypatch.setattr(cheap.CheapScore, "train_and_measure", lambda *_: 0.5)
    train_point(plan, point)
    assert outcome(plan, point, 0) == ([0.5], None)
    monkeypatch.setattr(cheap.CheapScore, "train_and_measure", fail)
    train_point(plan, point)  # it is scored, and not trained again
    assert outcome(plan, point, 0) == ([0.5], None)
    assert read_json(tmp_path / "runs" / "sigma-1" / SCORE)["value"] == 0.5
