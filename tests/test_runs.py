import json
import multiprocessing
import os

import pytest

from laser_hf import runs
from laser_hf.errors import LaserError
from laser_hf.runs import RunFolder, differences, find_fault, seal_checkpoint

RECIPE = {"loss": {"alpha": 0.4}, "factors": (0.9, 1.1)}


def folder(path, **options):
    return RunFolder(path, "record.json", owned=("plots", "*/hyp.txt"), **options)


def checkpoint(path, step, sealed=True):
    made = path / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (made / "trainer_state.json").write_text("{}")
    if sealed:
        seal_checkpoint(made)
    return made


def test_an_empty_folder_is_made_and_gets_its_recipe(tmp_path):
    run = folder(tmp_path / "new" / "run")
    run.prepare(RECIPE)
    assert json.loads((run.path / runs.RECIPE_NAME).read_text()) == {"loss": {"alpha": 0.4}, "factors": [0.9, 1.1]}
    assert not run.finished
    assert not run.unfinished
    run.finish({"a": 1})
    assert run.finished


def test_a_finished_run_is_refused_and_kept(tmp_path):
    run = folder(tmp_path)
    run.finish({"a": 1})
    with pytest.raises(LaserError, match="finished run"):
        run.prepare(RECIPE)
    assert (tmp_path / "record.json").exists()
    run.prepare(RECIPE, overwrite=True)
    assert not run.finished


def test_an_unfinished_run_goes_on_with_its_own_recipe_only(tmp_path):
    run = folder(tmp_path)
    run.prepare(RECIPE)
    checkpoint(tmp_path, 5)
    assert run.unfinished
    run.prepare(RECIPE)  # tuples and lists are the same recipe
    with pytest.raises(LaserError, match=r"--alpha 0.4 -> 0.5"):
        run.prepare({"loss": {"alpha": 0.5}, "factors": (0.9, 1.1)})
    run.prepare({"loss": {"alpha": 0.5}}, overwrite=True)
    assert not (tmp_path / "checkpoint-5").exists()


def test_a_finished_run_of_the_same_recipe_can_be_reopened(tmp_path):
    run = folder(tmp_path)
    run.prepare(RECIPE)
    run.finish({"a": 1})
    run.prepare(RECIPE, reopen=True)
    with pytest.raises(LaserError, match=r"a finished run of another recipe \(--alpha 0.4 -> 0.5\)"):
        run.prepare({"loss": {"alpha": 0.5}, "factors": (0.9, 1.1)}, reopen=True)
    assert run.finished


def test_without_progress_another_recipe_may_start(tmp_path):
    folder(tmp_path).prepare(RECIPE)
    folder(tmp_path).prepare({"loss": {"alpha": 0.5}})


def test_clearing_leaves_what_is_not_ours(tmp_path):
    run = folder(tmp_path)
    run.prepare(RECIPE)
    checkpoint(tmp_path, 1)
    (tmp_path / "plots").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "hyp.txt").write_text("")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "hyp.txt").write_text("")
    (tmp_path / "both" / "mine.txt").write_text("")
    (tmp_path / "mine.txt").write_text("")
    run.check(overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [".lock", "both", "mine.txt"]
    assert os.listdir(tmp_path / "both") == ["mine.txt"]


def test_a_checkpoint_a_file_and_an_empty_name_are_refused(tmp_path):
    made = checkpoint(tmp_path, 3)
    with pytest.raises(LaserError, match="itself a checkpoint"):
        folder(made).prepare(RECIPE)
    (tmp_path / "file").write_text("")
    with pytest.raises(LaserError, match="cannot write"):
        folder(tmp_path / "file").prepare(RECIPE)
    with pytest.raises(LaserError, match="empty"):
        folder("")


@pytest.mark.parametrize("fault", ["no seal", "missing", "truncated", "flipped", "empty state"])
def test_a_damaged_checkpoint_is_set_aside_for_the_next_older(tmp_path, fault, caplog):
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10, sealed=fault != "no seal")
    model = newer / "model.safetensors"
    if fault == "missing":
        model.unlink()
    elif fault == "truncated":
        model.write_bytes(model.read_bytes()[:100])
    elif fault == "flipped":
        data = bytearray(model.read_bytes())
        data[77] ^= 1
        model.write_bytes(data)
    elif fault == "empty state":
        (newer / "trainer_state.json").write_text("")
    assert folder(tmp_path).last_checkpoint() == older
    assert "broken-checkpoint-10" in caplog.text
    assert find_fault(older) is None
    # The same again does not stumble over the name.
    checkpoint(tmp_path, 10, sealed=False)
    assert folder(tmp_path).last_checkpoint() == older
    assert {"broken-checkpoint-10", "broken-checkpoint-10-2"} <= set(os.listdir(tmp_path))


def test_no_checkpoint_is_none(tmp_path):
    assert folder(tmp_path).last_checkpoint() is None


def test_differences_look_into_groups():
    assert differences({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 1, "y": 5}, "c": 4}) == [
        "--y 2 -> 5",
        "--b 3 -> None",
        "--c None -> 4",
    ]


def test_a_folder_can_be_checked_before_its_recipe_is_known(tmp_path):
    run = folder(tmp_path / "run")
    run.check()
    assert run.path.is_dir()
    assert not (run.path / runs.RECIPE_NAME).exists()
    run.finish({"a": 1})
    with pytest.raises(LaserError, match="finished run"):
        run.check()
    run.check(overwrite=True)
    assert not run.finished


def _prepare(path, results):
    try:
        folder(path).prepare(RECIPE)
        results.put("prepared")
    except LaserError as error:
        results.put(str(error))


def test_two_processes_never_run_in_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def other():
        process = context.Process(target=_prepare, args=(tmp_path, results))
        process.start()
        process.join()
        return results.get(timeout=30)

    assert other() == "prepared"
    folder(tmp_path).prepare(RECIPE)  # the lock died with its process
    folder(tmp_path).prepare(RECIPE)  # and is not in the way of the process that holds it
    assert "another process runs in --output_dir" in other()


def test_a_folder_with_an_input_is_refused_by_real_path(tmp_path):
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "models" / "weights.bin").touch()
    for output in (base, base.parent, tmp_path / "link", base / ".." / "base"):
        with pytest.raises(LaserError, match=r"holds --model .*base, which this run reads"):
            folder(output).protect({"--data": None, "--model": str(base)})
    with pytest.raises(LaserError, match="holds --noise_dir"):
        folder(tmp_path / "models").protect({"--noise_dir": tmp_path / "models" / "weights.bin"})
    folder(base / "out").protect({"--model": base, "--data": "openslr/librispeech_asr", "--x": ""})
    assert sorted(os.listdir(base)) == []
