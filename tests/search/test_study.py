"""One study among processes: every point once, none lost, whatever is killed; and what may change in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from laser_hf.search import SearchError, owner, study
from laser_hf.search.report import table
from laser_hf.search.run import Interrupted, run_search
from laser_hf.search.study import SharedStudy

GRID = ("sigma=1,2,5", "alpha=0.15,0.4")
TPE = {"sampler": "tpe", "trials": 12}  # two beyond the ten that TPE draws at random
SPACE = ("sigma=1:4", "alpha=0.01:1:log", "margin=0.8,1,1.2")


def process(folder, seconds, *over):
    script = Path(__file__).with_name("cheap_search.py")
    return subprocess.Popen([sys.executable, str(script), str(folder), str(seconds), *over])


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(cheap, tmp_path_factory):
    """Table of an uninterrupted grid."""
    plan = cheap.make_plan(tmp_path_factory.mktemp("straight"), *GRID)
    return table(plan, run_search(plan, cheap.Launch(plan.folder)))


def test_a_grid_is_trained_and_ranked(cheap, straight, tmp_path):
    plan = cheap.make_plan(tmp_path, *GRID)
    launch = cheap.Launch(tmp_path)
    results = run_search(plan, launch)
    assert [result.state for result in results] == ["complete"] * 6
    assert {tuple(r.params.items()): r.value for r in results} == {
        tuple(point.items()): pytest.approx(cheap.worth(plan.arguments(point, None, "x"))) for point in plan.grid()
    }
    assert table(plan, results) == straight
    run_search(plan, launch)  # again: nothing is left to do
    assert launch.started == 6


def test_a_killed_search_goes_on_and_ends_with_the_same_table(cheap, straight, tmp_path):
    killed = process(tmp_path, 0.2, *GRID)
    try:
        wait_for(lambda: len(cheap.starts(tmp_path)) == 3)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    plan = cheap.make_plan(tmp_path, *GRID)
    (unfinished,) = tmp_path.glob("*.in_work")
    unfinished.unlink()
    with SharedStudy(plan) as shared:
        assert Counter(result.state for result in shared.results()) == {"complete": 2, "running": 1, "waiting": 3}
    began = time.monotonic()
    results = run_search(plan, cheap.Launch(tmp_path))
    assert time.monotonic() - began < study.GRACE / 4  # the dead process is known at once
    assert table(plan, results) == straight
    runs = Counter(run for run, _ in cheap.starts(tmp_path))
    assert runs.pop(unfinished.stem.removesuffix(".in_work")) == 2
    assert list(runs.values()) == [1] * 5


def test_two_processes_share_the_points(cheap, tmp_path):
    over = ("sigma=1,2,5,9", "alpha=0.1,0.2")
    both = [process(tmp_path, 0.5, *over) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    started = cheap.starts(tmp_path)
    assert len(started) == len({run for run, _ in started}) == 8
    assert {int(pid) for _, pid in started} == {one.pid for one in both}
    with SharedStudy(cheap.make_plan(tmp_path, *over)) as shared:
        assert shared.finished


def test_ctrl_c_gives_the_point_back(cheap, straight, tmp_path):
    plan = cheap.make_plan(tmp_path, *GRID)
    with pytest.raises(KeyboardInterrupt):
        run_search(plan, cheap.Launch(tmp_path, interrupt_at=3))
    with SharedStudy(plan) as shared:
        assert Counter(result.state for result in shared.results()) == {"complete": 2, "waiting": 4}
    assert table(plan, run_search(plan, cheap.Launch(tmp_path))) == straight


def test_a_busy_run_is_tried_again(cheap, straight, tmp_path, monkeypatch):
    plan = cheap.make_plan(tmp_path, *GRID)
    launch, refused = cheap.Launch(tmp_path), []
    monkeypatch.setattr("laser_hf.search.run.time.sleep", lambda seconds: None)

    def busy_once(job):
        if not refused:
            refused.append(job)
            raise Interrupted("another process trains there")
        return launch(job)

    assert table(plan, run_search(plan, busy_once)) == straight


def test_a_process_on_another_host_loses_its_point_without_heartbeats(cheap, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    monkeypatch.setattr(study, "GRACE", 2)
    plan = cheap.make_plan(tmp_path, "sigma=1,2")
    with SharedStudy(plan) as there, SharedStudy(plan) as here:
        with monkeypatch.context() as other_host:
            other_host.setattr(owner.socket, "gethostname", lambda: "elsewhere")
            lost = there.claim()
        with there.heartbeat(lost):
            other = here.claim()
            assert other.point != lost.point
            here.settle(other, [0.5], None, 1)
            time.sleep(3.5)
            assert here.claim() is None  # it is alive
            assert not here.finished
        wait_for(lambda: (taken := here.claim()) is not None and taken.point == lost.point, seconds=8)
        # The lost process comes back: its result is not entered beside the other's.
        there.settle(lost, [0.9], None, 1)
        assert Counter(result.state for result in here.results()) == {"complete": 1, "running": 1}


def test_who_has_ended(monkeypatch):
    me = owner.this_process()
    assert owner.has_ended({**me, "pid": psutil.Process().ppid(), "started": 1.0})  # the id came again
    assert owner.has_ended(me)
    parent = psutil.Process().parent()
    assert not owner.has_ended({**me, "pid": parent.pid, "started": parent.create_time()})
    assert not owner.has_ended({**me, "pid": 2**22 + 1, "host": "elsewhere"})
    assert owner.has_ended({**me, "pid": 2**22 + 1})
    assert me["pid"] == os.getpid()
    # Ended, but its parent has not asked for its exit status yet.
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    taken = {**me, "pid": child.pid, "started": psutil.Process(child.pid).create_time()}
    assert not owner.has_ended(taken)
    child.kill()
    wait_for(lambda: owner.has_ended(taken))
    child.communicate()


def test_a_claim_that_was_left_halfway_is_not_lost(cheap, tmp_path, monkeypatch):
    """Killed between Optuna's trial and the owner's name."""
    for more, over in (({}, ("sigma=1,2",)), ({"sampler": "tpe", "trials": 2}, SPACE)):
        plan = cheap.make_plan(tmp_path / str(len(more)), *over, **more)
        with SharedStudy(plan) as shared:
            monkeypatch.setattr(study, "this_process", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                shared.claim()
            monkeypatch.undo()
            assert len(run_search(plan, cheap.Launch(plan.folder))) == plan.size


def test_failed_points_are_kept_with_their_reason(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, *GRID[:1])
    launch = cheap.Launch(tmp_path, fails="sigma-2")
    results = run_search(plan, launch)
    assert Counter(result.state for result in results) == {"complete": 2, "failed": 1}
    assert {r.reason for r in results if r.state == "failed"} == {"non-finite loss at step 4 | of 8"}
    written = table(plan, results)
    assert "| failed: non-finite loss at step 4 \\| of 8 |" in written
    assert written.index("failed") > written.index("| 2 ")
    run_search(plan, launch)
    assert launch.started == 3
    healed = cheap.Launch(tmp_path)
    results = run_search(cheap.make_plan(tmp_path, *GRID[:1], retry_failed=True), healed)
    assert healed.started == 1
    assert {result.state for result in results} == {"complete"}


def test_seeds_are_averaged(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", seeds=(1, 2, 6))
    best = max(run_search(plan, cheap.Launch(tmp_path)), key=lambda result: result.value)
    assert best.params == {"sigma": 2}
    assert best.values == pytest.approx([1.001, 1.002, 1.006])
    assert best.value == pytest.approx(1.003)
    assert "| 1.0030 " in table(plan, [best])
    assert "| 0.0026 " in table(plan, [best])  # root of (4 + 1 + 9) / 2, in thousandths
    assert {run for run, _ in cheap.starts(tmp_path)} == {f"sigma-{n}_seed-{s}" for n in (1, 2) for s in (1, 2, 6)}
    failed = cheap.make_plan(tmp_path / "failed", "sigma=1,2", seeds=(1, 2))
    reasons = {r.reason for r in run_search(failed, cheap.Launch(failed.folder, fails="seed-2"))}
    assert reasons == {"seed 2: non-finite loss at step 4 | of 8"}


def test_a_grid_may_grow(cheap, tmp_path):
    launch = cheap.Launch(tmp_path)
    run_search(cheap.make_plan(tmp_path, "sigma=2,1", "distance=euclidean"), launch)
    plan = cheap.make_plan(tmp_path, "sigma=1,2,7", "distance=euclidean,sqeuclidean")
    results = run_search(plan, launch)
    assert launch.started == len(results) == 6
    with pytest.raises(
        SearchError, match=r"--over sigma=1,2,7 -> sigma=1,2; --over distance=euclidean,sqeuclidean -> "
    ):
        run_search(cheap.make_plan(tmp_path, "sigma=1,2", "distance=euclidean"), launch)


@pytest.mark.parametrize(
    ("over", "more", "message"),
    [
        (("sigma=1,2", "alpha=0.1"), {}, r"holds another search \(--over alpha is new\)"),
        (("alpha=0.1",), {}, r"--over sigma is gone; --over alpha is new"),
        (("sigma=1,2",), {"recipe": {"objective": {"gamma": 0.5}}}, r"\(--gamma 0.1 -> 0.5\)"),
        (("sigma=1,2",), {"seeds": (1,)}, r"\(seeds \[\] -> \[1\]\)"),
        (("sigma=1,2",), {"sampler": "tpe", "trials": 2}, r"sampler name grid -> tpe"),
    ],
)
def test_another_search_in_the_folder_is_named(cheap, tmp_path, over, more, message):
    SharedStudy(cheap.make_plan(tmp_path, "sigma=1,2")).close()
    with pytest.raises(SearchError, match=message):
        SharedStudy(cheap.make_plan(tmp_path, *over, **more))


def test_other_data_of_the_score_is_another_search_and_another_place_is_not(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2")
    SharedStudy(plan).close()
    plan.scored.update(chosen_on="elsewhere", source={"data": "y"})
    SharedStudy(plan).close()
    plan.scored.update(revision="2")
    with pytest.raises(SearchError, match=r"\(score revision 1 -> 2\)"):
        SharedStudy(plan)


def test_tpe_draws_new_points_near_good_ones_and_is_resumed_as_if_nothing_had_been(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path / "straight", *SPACE, **TPE)
    results = run_search(plan, cheap.Launch(plan.folder))
    assert len({tuple(result.params.values()) for result in results}) == 12
    for result in results:
        assert result.params["sigma"] in (1, 2, 3, 4)
        assert 0.01 <= result.params["alpha"] <= 1
        assert result.params["margin"] in (0.8, 1.0, 1.2)
    broken = cheap.make_plan(tmp_path / "broken", *SPACE, **TPE)
    with pytest.raises(KeyboardInterrupt):
        run_search(broken, cheap.Launch(broken.folder, interrupt_at=11))
    again = run_search(broken, cheap.Launch(broken.folder))
    assert table(broken, again) == table(plan, results)
    # More points can be drawn later, and what was drawn stays.
    more = cheap.make_plan(tmp_path / "broken", *SPACE, sampler="tpe", trials=13)
    launch = cheap.Launch(broken.folder)
    assert len(run_search(more, launch)) == 13
    assert launch.started == 1


def test_tpe_ends_when_a_finite_space_is_used_up(cheap, tmp_path):
    plan = cheap.make_plan(tmp_path, "sigma=1,2", "distance=euclidean,sqeuclidean", sampler="tpe", trials=50)
    launch = cheap.Launch(tmp_path)
    assert len(run_search(plan, launch)) == launch.started == 4


def test_bad_plans_and_folders(cheap, tmp_path):
    for over, more, message in (
        (("alpha=0.1:1",), {}, "alpha=0.1:1.0 is a range, and --sampler grid"),
        (("alpha=0.1",), {"trials": 3}, "--trials is for --sampler tpe"),
        (("alpha=0.1",), {"sampler": "tpe"}, "--sampler tpe needs --trials"),
        (("alpha=0.1",), {"seeds": (1, 1)}, "names a seed twice"),
        ((), {}, "nothing is varied"),
    ):
        with pytest.raises(SearchError, match=message):
            cheap.make_plan(tmp_path, *over, **more)
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchError, match="cannot write"):
        SharedStudy(cheap.make_plan(tmp_path / "file", *GRID))
    (tmp_path / "study.db").write_text("this is no database, and long enough to be seen as one" * 20)
    with pytest.raises(SearchError, match="cannot be used as the database"):
        SharedStudy(cheap.make_plan(tmp_path, *GRID))
