"""`python -m laser_hf.plots` and `draw_run` on a finished run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from laser_hf.encoders import load_encoder
from laser_hf.plots import UnfinishedRun, ViewPair, draw_pictures, draw_run, load_words, run_title
from laser_hf.plots import run as run_module
from laser_hf.plots.__main__ import main
from laser_hf.plots.run import SHIPPED_ENCODER, _perturbation

from .conftest import assert_drawn

PICTURES = ["loss_terms.png", "alignment.png", "self_similarity.png", "words.png"]


def names(paths):
    return [path.name for path in paths]


def note_titles(monkeypatch, draw: bool) -> dict[str, str]:
    """Titles of the pictures to come, by the name of the function that draws them."""
    found = {}

    def titled(original, name):
        def note(*arguments):
            found[name] = next(one for one in reversed(arguments) if isinstance(one, str))
            if draw:
                original(*arguments)

        return note

    for name in ("plot_training", "plot_alignment", "plot_self_similarity", "plot_words"):
        monkeypatch.setattr(run_module, name, titled(getattr(run_module, name), name))
    return found


@pytest.fixture
def titles(monkeypatch):
    """Titles of the pictures drawn."""
    return note_titles(monkeypatch, draw=True)


@pytest.fixture
def only_titles(monkeypatch):
    """Titles of the pictures, which are not drawn: that takes most of the time."""
    return note_titles(monkeypatch, draw=False)


def test_the_command_draws_a_run(finished_run, word_times, small_tree, tmp_path, capsys, titles):
    arguments = ["--output_dir", str(tmp_path / "pictures"), "--data", str(small_tree), "--splits", "train"]
    main([str(finished_run), *arguments, "--alignments", str(word_times), "--utterance", "2-10-0003"])
    folder = tmp_path / "pictures" / "tiny"
    assert capsys.readouterr().out.split() == [str(folder / name) for name in PICTURES]
    for name in PICTURES:
        assert_drawn(folder / name)
    assert "LASER on tiny-hubert" in titles["plot_training"]
    assert "3 updates" in titles["plot_training"]
    assert f"2-10-0003 ({small_tree.name})" in titles["plot_alignment"]
    assert "speed 1.1, +2 semitones" in titles["plot_alignment"]
    assert "2-10-0003" in titles["plot_self_similarity"]
    assert f"24 spoken words ({small_tree.name})" in titles["plot_words"]


def test_a_run_alone_is_drawn_on_its_held_out_speech(finished_run, small_tree, titles, caplog):
    assert draw_run(finished_run) == [finished_run / "plots" / name for name in PICTURES]
    assert f"1-10-0000 ({small_tree.name})" in titles["plot_alignment"]
    # Its words have no times: the shipped speech stands in, and this is said.
    assert "96 spoken words (shipped speech, held-out voices)" in titles["plot_words"]
    assert "The words are those of the shipped speech" in caplog.text
    shutil.rmtree(finished_run / "plots")


def test_word_times_and_split_of_the_held_out_speech(
    finished_run, small_tree, word_times, tmp_path, only_titles, caplog
):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert names(draw_run(run, alignments=word_times)) == PICTURES
    assert f"24 spoken words ({small_tree.name})" in only_titles["plot_words"]
    record = json.loads((run / "laser_config.json").read_text())
    for split, source in (("train", small_tree.name), ("dev", "shipped speech, held-out voices")):
        record["data"]["held_out_split"] = split
        (run / "laser_config.json").write_text(json.dumps(record))
        draw_run(run, alignments=word_times)
        assert source in only_titles["plot_alignment"]
    assert "there is no split 'dev'" in caplog.text
    record["data"]["held_out"] = None
    (run / "laser_config.json").write_text(json.dumps(record))
    assert names(draw_run(run, alignments=word_times)) == PICTURES[:3]
    assert "give --data beside --alignments" in caplog.text


def test_several_runs_are_drawn_together(finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run"):
        shutil.copytree(finished_run, name)
    drawn = {}
    monkeypatch.setattr(
        "laser_hf.plots.__main__.plot_training", lambda runs, path, title: drawn.update({path.name: (runs, title)})
    )
    nothing = []
    monkeypatch.setattr(
        "laser_hf.plots.__main__.draw_run", lambda run, folder, **_: nothing.append((run, folder)) or []
    )
    main(["a/run", "b/run", "--output", "deep/curves.png", "--title", "Both"])
    assert capsys.readouterr().out.split() == ["deep/curves.png"]
    runs, title = drawn["curves.png"]
    assert list(runs) == ["a/run", "b/run"]
    assert title == "Both"
    assert runs["a/run"] == json.loads((finished_run / "training_log.json").read_text())["log"]
    assert [folder for _, folder in nothing] == [None, None]
    drawn.clear()
    nothing.clear()
    main(["a/run", "b/run", "--output_dir", "all"])
    assert capsys.readouterr().out.split() == ["all/curves.png"]
    assert len({folder for _, folder in nothing}) == 2
    drawn.clear()
    with pytest.raises(SystemExit) as ended:
        main(["a/run"])  # one run has no picture of all runs, and here nothing else was drawn
    assert ended.value.code == 1
    assert not drawn


def test_what_cannot_be_drawn_is_named_and_the_rest_drawn(
    finished_run, small_tree, word_times, tmp_path, only_titles, caplog
):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    speech = {"data": small_tree, "alignments": word_times}
    assert names(draw_run(run, base=str(tmp_path / "no-encoder"), **speech)) == PICTURES[:1]
    assert "Not drawn: anything but the loss terms (cannot load the encoder" in caplog.text
    assert names(draw_run(run, data=small_tree)) == PICTURES[:3]
    assert "Not drawn: words.png (no word times for" in caplog.text
    assert names(draw_run(run, utterance="nobody", **speech)) == [PICTURES[0], PICTURES[3]]
    assert "Not drawn: the utterance (" in caplog.text
    (run / "training_log.json").unlink()
    assert names(draw_run(run, **speech)) == PICTURES[1:]
    assert "Not drawn: loss_terms.png ([Errno 2]" in caplog.text


def test_a_command_that_draws_nothing_fails(finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "training_log.json").write_text('{"log": []}')
    with pytest.raises(SystemExit) as ended:
        main([str(run), "--base", str(tmp_path / "no-encoder"), "--output", str(tmp_path / "curves.png")])
    assert ended.value.code == 1
    assert not capsys.readouterr().out
    assert not (tmp_path / "curves.png").exists()


def test_unfinished_runs_and_other_folders_are_refused(finished_run, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{}")
    for run, message in (
        (tmp_path, "the run is not finished. Give its train.py command again to continue it"),
        (tmp_path / "nowhere", "there is no folder"),
        (finished_run.parent, "holds no laser_config.json; expected the output folder of train.py"),
    ):
        with pytest.raises(UnfinishedRun, match=message):
            draw_run(run)
        with pytest.raises(SystemExit) as ended:
            main([str(finished_run), str(run)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert not (finished_run / "plots").exists()  # nothing is drawn before all runs are known to be finished
    with pytest.raises(SystemExit):
        main([str(finished_run), "--splits", "train"])
    assert "--splits names sub-folders of --data" in capsys.readouterr().err


def test_pictures_of_loaded_encoders(tiny_encoder, finished_run, small_tree, word_times, tmp_path):
    before, after = load_encoder(tiny_encoder), load_encoder(str(finished_run)).train()
    waveform = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    pair = ViewPair("u", waveform, waveform[:14_000], {"speed": 1.1})
    words = load_words(small_tree, word_times)
    drawn = draw_pictures(tmp_path / "plots", {}, before=before, after=after, pair=pair, words=words)
    assert names(drawn) == PICTURES[1:]
    for path in drawn:
        assert_drawn(path)
    assert after.training
    assert not before.training
    assert names(draw_pictures(tmp_path / "plots", {}, before=before, pair=pair, words=words)) == []


def test_the_views_are_frames_of_the_last_layer(tiny_encoder, finished_run, tmp_path, monkeypatch):
    """The matrices drawn, from the encoder itself; an encoder against itself aligns a view with itself."""
    seen = {}
    monkeypatch.setattr(run_module, "plot_alignment", lambda alignments, *_: seen.update(alignments=alignments))
    monkeypatch.setattr(run_module, "plot_self_similarity", lambda frames, *_: seen.update(frames=frames))
    before, after = load_encoder(tiny_encoder), load_encoder(str(finished_run))
    waveform = 0.1 * torch.randn(80_000, generator=torch.Generator().manual_seed(0))
    pair = ViewPair("u", waveform, waveform.clone(), {})
    draw_pictures(tmp_path, {}, before=before, after=after, pair=pair, gamma=1e-3)
    with torch.no_grad():
        for (name, frames), encoder in zip(seen["frames"].items(), (before, after), strict=True):
            expected = encoder(waveform[None], torch.tensor([80_000])).frames[0]
            torch.testing.assert_close(frames, expected[:150], msg=name)
            assert len(expected) == 249  # three seconds are shown
    for alignment in seen["alignments"].values():
        assert alignment.shape == (150, 150)
        torch.testing.assert_close(alignment, torch.eye(150), atol=0.2, rtol=0)


def test_the_strongest_perturbation_of_the_run_is_shown():
    assert _perturbation({})[1] == {"speed": 1.1, "pitch": 2.0}
    assert _perturbation({"speed_factors": [0.9, 1.0, 1.1], "pitch_steps": [-2, 2]})[1] == {"speed": 1.1, "pitch": 2}
    assert _perturbation({"speed_factors": [0.8, 1.1], "pitch_steps": [-4, 3]})[1] == {"speed": 0.8, "pitch": -4}


def test_titles_name_method_and_encoder():
    record = {
        "method": "laser",
        "base_model": {"name": "encoder"},
        "recipe": {"model": {"model_name_or_path": SHIPPED_ENCODER}},
        "updates": 90,
    }
    assert run_title(record) == "LASER on the shipped encoder, 90 updates"
    record["recipe"]["model"]["model_name_or_path"] = "facebook/hubert-base-ls960"
    record["base_model"]["name"] = "facebook/hubert-base-ls960"
    assert run_title(record) == "LASER on facebook/hubert-base-ls960, 90 updates"
    assert run_title(record | {"method": "soft_dtw"}).startswith("Soft-DTW on facebook")
