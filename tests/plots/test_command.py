"""`laser-hf plots` and `draw_run` on a finished run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from laser_hf import figures
from laser_hf.encoders import load_encoder
from laser_hf.errors import LaserError
from laser_hf.plots import draw_run, run_title
from laser_hf.plots import run as run_module
from laser_hf.plots.__main__ import main
from laser_hf.plots.run import SHIPPED_ENCODER
from laser_hf.records import read_record

from .conftest import assert_drawn, make_history

PICTURES = ["loss_terms.png", "alignment.png", "self_similarity.png", "words.png"]


def names(paths):
    return [path.name for path in paths]


@pytest.fixture
def titles(monkeypatch):
    """Titles by file name of pictures that are not written, which takes most of the time."""
    found = {}

    def save(figure, path, title=""):
        found[path.name] = title
        return path

    monkeypatch.setattr(figures, "save", save)
    return found


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def change_record(run, **groups):
    """Write the run's record anew with entries of some of its groups changed."""
    path = run / "laser_config.json"
    record = json.loads(path.read_text())
    for group, values in groups.items():
        record[group] = record[group] | values if isinstance(values, dict) else values
    path.write_text(json.dumps(record))


def test_the_command_draws_a_run(finished_run, word_times, small_tree, tmp_path, capsys, saved):
    arguments = ["--output_dir", str(tmp_path / "pictures"), "--data", str(small_tree), "--splits", "train"]
    main([str(finished_run), *arguments, "--alignments", str(word_times), "--utterance", "2-10-0003"])
    folder = tmp_path / "pictures" / "tiny"
    assert capsys.readouterr().out.split() == [str(folder / name) for name in PICTURES]
    for name in PICTURES:
        assert_drawn(folder / name)
        assert saved[name].startswith("LASER on tiny-hubert")
    assert "3 updates" in saved["loss_terms.png"]
    assert f"2-10-0003 ({small_tree.name})" in saved["alignment.png"]
    assert "perturbed view (speed 1.1, +2 semitones)" in saved["alignment.png"]
    assert "2-10-0003" in saved["self_similarity.png"]
    assert f"24 spoken words ({small_tree.name})" in saved["words.png"]


def test_a_run_alone_is_drawn_on_its_held_out_speech(finished_run, small_tree, titles, caplog):
    assert draw_run(finished_run) == [finished_run / "plots" / name for name in PICTURES]
    assert f"1-10-0000 ({small_tree.name})" in titles["alignment.png"]
    # Its words have no times, so the shipped speech is drawn instead, and a warning says so.
    assert "96 spoken words (shipped speech, held-out voices)" in titles["words.png"]
    assert "The shipped speech is drawn instead: no word times" in caplog.text


def test_a_run_is_drawn_with_its_own_views_and_terms(copied_run, titles, monkeypatch):
    """A run of Spin on equalised speech that measured word discrimination; the record is not written yet."""
    seen = []
    monkeypatch.setattr(run_module, "training_figure", lambda runs, terms: seen.append(terms) or figures.plt.figure())
    log = [*make_history("swapped_x"), {"step": 3, "eval_word_ap_across": 0.5}]
    (copied_run / "training_log.json").write_text(json.dumps({"log": log}))
    objective, views = {"name": "spin", "codes": 8}, {"name": ["equalizer"]}
    change_record(copied_run, method="spin")
    record = json.loads((copied_run / "laser_config.json").read_text())
    record["recipe"] |= {"objective": objective, "perturbations": views}
    (copied_run / "laser_config.json").unlink()
    assert names(draw_run(copied_run, record=record)) == ["loss_terms.png", "discrimination.png", *PICTURES[1:]]
    assert titles["discrimination.png"] == "Spin on tiny-hubert0, 3 updates, last layer"
    assert "(equaliser of 10 bands)" in titles["alignment.png"]
    assert "swapped_x" in seen[0]


def test_an_objective_that_cannot_be_imported_keeps_its_name(copied_run, titles, caplog):
    change_record(copied_run, method="not_here.losses:Own")
    assert names(draw_run(copied_run)) == PICTURES
    assert titles["words.png"].startswith("not_here.losses:Own on tiny-hubert")
    assert "cannot import the objective" in caplog.text


def test_word_times_and_split_of_the_run_s_own_speech(copied_run, small_tree, word_times, titles, caplog):
    assert names(draw_run(copied_run, alignments=word_times)) == PICTURES
    assert f"24 spoken words ({small_tree.name})" in titles["words.png"]
    for split, source in (("train", small_tree.name), ("dev", "shipped speech, held-out voices")):
        change_record(copied_run, data={"held_out_split": split})
        draw_run(copied_run, alignments=word_times)
        assert source in titles["alignment.png"]
    assert "there is no split 'dev'" in caplog.text
    change_record(copied_run, data={"held_out": None})
    assert names(draw_run(copied_run, alignments=word_times)) == PICTURES[:3]
    assert small_tree.name in titles["alignment.png"]  # of the training speech
    assert "give --data beside --alignments" in caplog.text


def test_several_runs_are_drawn_together(finished_run, tmp_path, capsys, monkeypatch, titles):
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run"):
        shutil.copytree(finished_run, name)
    drawn, folders = [], []
    monkeypatch.setattr("laser_hf.plots.panels.training_figure", lambda *arguments: drawn.append(arguments) or 1)
    monkeypatch.setattr(run_module, "draw_run", lambda run, folder, **_: folders.append(folder) or [])
    main(["a/run", "b/run", "--output", "deep/curves.png", "--title", "Both"])
    assert capsys.readouterr().out.split() == ["deep/curves.png"]
    ((runs, labels),) = drawn
    assert list(runs) == ["a/run", "b/run"]
    assert titles == {"curves.png": "Both"}
    assert runs["a/run"] == json.loads((finished_run / "training_log.json").read_text())["log"]
    assert "idm" in labels
    assert folders == [None, None]
    folders.clear()
    main(["a/run", "b/run", "--output_dir", "all"])
    assert capsys.readouterr().out.split() == ["all/curves.png"]
    assert len(set(folders)) == 2
    drawn.clear()
    with pytest.raises(LaserError, match="nothing could be drawn"):
        main(["a/run"])  # one run has no picture of all runs, and here nothing else was drawn
    assert not drawn


def test_what_cannot_be_drawn_is_named_and_the_rest_drawn(copied_run, small_tree, word_times, titles, caplog):
    speech = {"data": small_tree, "alignments": word_times}
    assert names(draw_run(copied_run, base=str(copied_run / "no-encoder"), **speech)) == PICTURES[:1]
    assert "Not drawn: anything but the curves (cannot load the encoder" in caplog.text
    assert names(draw_run(copied_run, data=small_tree)) == PICTURES[:3]
    assert "Not drawn: words.png (no word times for" in caplog.text
    assert names(draw_run(copied_run, utterance="nobody", **speech)) == [PICTURES[0], PICTURES[3]]
    assert "Not drawn: the utterance (" in caplog.text
    (copied_run / "training_log.json").unlink()
    assert names(draw_run(copied_run, **speech)) == PICTURES[1:]
    assert "Not drawn: the curves (cannot read" in caplog.text


def test_a_command_that_draws_nothing_fails(copied_run, tmp_path, capsys):
    (copied_run / "training_log.json").write_text('{"log": []}')
    with pytest.raises(LaserError, match="nothing could be drawn"):
        main([str(copied_run), "--base", str(tmp_path / "no-encoder"), "--output", str(tmp_path / "curves.png")])
    assert not capsys.readouterr().out
    assert not (tmp_path / "curves.png").exists()


def test_unfinished_runs_and_other_folders_are_refused(finished_run, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{}")
    for run, message in (
        (tmp_path, "is not finished. Give its laser-hf train command again to continue it"),
        (tmp_path / "nowhere", "expected the output folder of laser-hf train"),
        (finished_run.parent, "holds no laser_config.json; expected the output folder of laser-hf train"),
    ):
        with pytest.raises(LaserError, match=message):
            draw_run(run)
        with pytest.raises(LaserError, match=message):
            main([str(finished_run), str(run)])
    assert not (finished_run / "plots").exists()  # nothing is drawn before all runs are known to be finished
    with pytest.raises(SystemExit):
        main([str(finished_run), "--splits", "train"])
    assert "--splits names sub-folders of --data" in capsys.readouterr().err


def test_the_frames_are_those_of_the_last_layer(tiny_encoder, finished_run, small_tree, titles, monkeypatch):
    """The frames that are drawn, from the encoders themselves."""
    seen = {}
    monkeypatch.setattr(run_module, "alignment_figure", lambda views, *_: seen.update(views) or figures.plt.figure())
    draw_run(finished_run, data=small_tree, utterance="2-10-0003")
    waveform, _ = pytest.importorskip("soundfile").read(next(small_tree.rglob("2-10-0003.flac")), dtype="float32")
    waveform = torch.from_numpy(waveform)
    encoders = load_encoder(tiny_encoder), load_encoder(str(finished_run))
    assert list(seen) == ["before fine-tuning", "after fine-tuning"]
    with torch.no_grad():
        for (clean, perturbed), encoder in zip(seen.values(), encoders, strict=True):
            expected = encoder(waveform[None], torch.tensor([len(waveform)])).frames[0]
            torch.testing.assert_close(clean, expected)
            assert len(perturbed) == pytest.approx(len(clean) / 1.1, abs=2)
    assert not torch.allclose(*(clean for clean, _ in seen.values()))


def test_titles_name_method_and_encoder(finished_run):
    record = read_record(finished_run / "laser_config.json") | {"base_model": {"name": "encoder"}, "updates": 90}
    assert run_title(record) == "LASER on encoder, 90 updates"
    assert run_title(record | {"method": "soft_dtw"}) == "soft-DTW alone on encoder, 90 updates"
    record["recipe"]["model"]["model_name_or_path"] = SHIPPED_ENCODER
    assert run_title(record) == "LASER on the shipped encoder, 90 updates"
