"""`laser-hf plots` and `draw_run` on a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPOSITORY

from laser_hf import figures
from laser_hf.encoders import load_encoder
from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES
from laser_hf.plots import draw_run, run_title
from laser_hf.plots import run as run_module
from laser_hf.plots.__main__ import main
from laser_hf.plots.run import SHIPPED_ENCODER
from laser_hf.records import read_json, read_record
from laser_hf.training import parse_options
from laser_hf.training.speech import load_pairs as load_held_out

from .conftest import assert_drawn

PICTURES = ["loss_terms.png", "words.png", "alignment.png", "self_similarity.png"]


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


@pytest.mark.slow
def test_the_command_draws_a_run(finished_run, word_times, small_tree, tmp_path, capsys, saved):
    arguments = ["--output_dir", str(tmp_path / "pictures"), "--data", str(small_tree), "--splits", "train"]
    main([str(finished_run), *arguments, "--alignments", str(word_times), "--utterance", "2-10-0003"])
    folder = tmp_path / "pictures" / "tiny"
    assert capsys.readouterr().out.split() == [str(folder / name) for name in PICTURES]
    for name in PICTURES:
        assert_drawn(folder / name)
        assert saved[name].startswith("LASER on tiny-hubert")
    assert "3 updates" in saved["loss_terms.png"]
    assert "pairs of views (train), last layer; one of them: speed 1.1, +2 semitones" in saved["alignment.png"]
    assert "2-10-0003 (train)" in saved["self_similarity.png"]
    assert f"24 spoken words ({small_tree.name})" in saved["words.png"]


def test_every_picture_has_a_caption_for_the_card():
    """In `model_cards/texts.json`, the most telling picture first; the curves, drawn first, are last."""
    captions = read_json(REPOSITORY / "model_cards" / "texts.json")["plots"]
    assert [f"{name}.png" for name in captions] == [*PICTURES[1:], PICTURES[0]]


def test_a_run_alone_is_drawn_on_its_held_out_speech(finished_run, small_tree, titles, caplog):
    assert draw_run(finished_run) == [finished_run / "plots" / name for name in PICTURES]
    assert f"pairs of views ({small_tree.name}), last layer" in titles["alignment.png"]
    # Its words have no times, so the shipped speech is drawn instead, and a warning says so.
    assert "96 spoken words (shipped speech, held-out voices)" in titles["words.png"]
    assert "The shipped speech is drawn instead: no word times" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "views", "change"),
    [
        ("spin", {"name": ["equalizer"]}, "equaliser of 10 bands"),
        ("laser", {"name": ["noise"], "noise_dir": "noise", "noise_snrs": [5.0]}, "hum.wav at 5 dB"),
    ],
)
def test_a_run_is_drawn_with_its_own_views_and_terms(copied_run, titles, monkeypatch, objective, views, change):
    """The record is not written yet; all times of the views are the same."""
    monkeypatch.chdir(copied_run)
    Path("noise").mkdir()
    soundfile.write("noise/hum.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8000), 16_000)
    seen, speeds = [], []
    monkeypatch.setattr(
        run_module, "training_figure", lambda runs, terms, *_: seen.append(terms) or figures.plt.figure()
    )
    original = run_module.shares_beyond
    monkeypatch.setattr(
        run_module, "shares_beyond", lambda pairs, *rest: original((speeds.append(p[2]) or p for p in pairs), *rest)
    )
    change_record(copied_run, method=objective)
    record = json.loads((copied_run / "laser_config.json").read_text())
    record["recipe"] |= {"objective": {"name": objective}, "perturbations": views}
    (copied_run / "laser_config.json").unlink()
    assert names(draw_run(copied_run, record=record)) == PICTURES
    assert titles["alignment.png"].endswith(change)
    assert titles["words.png"].startswith({"spin": "Spin on", "laser": "LASER on"}[objective])
    assert set(seen[0]) == set(OBJECTIVES[objective].term_labels)
    assert set(speeds) == {1.0}


def test_the_pairs_are_those_that_training_held_out(copied_run, small_tree):
    """Spread over the speech as `training.speech.load_pairs` spreads them, with its limits."""
    record = json.loads((copied_run / "laser_config.json").read_text())
    record["recipe"]["data"] = {"crop_seconds": 0.5, "min_seconds": 0.1, "max_seconds": None, "train_name": None}
    record["data"]["held_out_utterances"] = 3
    drawn = run_module._find_pairs(record, None, None, None)
    views = "--speed_factors 1.1 --pitch_steps 2 --crop_seconds 0.5 --seed 3 --max_eval_samples 3 --eval_strategy steps"
    speech = ["--train_data", str(small_tree), "--eval_data", str(small_tree), "--output_dir", str(copied_run / "out")]
    options = parse_options([*speech, *views.split(), "--use_cpu"])
    _, held_out = load_held_out(options)
    expected = {pair["id"]: pair for pair in (held_out[index] for index in range(len(held_out)))}
    assert {pair.utterance for pair in drawn} == set(expected)
    assert len(drawn) == 3
    for pair in drawn:
        assert torch.equal(pair.clean, expected[pair.utterance]["clean"])
        assert torch.equal(pair.perturbed, expected[pair.utterance]["perturbed"])


def test_an_objective_that_cannot_be_imported_keeps_its_name(copied_run, titles, caplog):
    change_record(copied_run, method="not_here.losses:Own")
    assert names(draw_run(copied_run)) == PICTURES
    assert titles["words.png"].startswith("not_here.losses:Own on tiny-hubert")
    assert "cannot import the objective" in caplog.text


@pytest.mark.slow
def test_word_times_and_split_of_the_run_s_own_speech(copied_run, small_tree, word_times, titles, caplog):
    assert names(draw_run(copied_run, alignments=word_times)) == PICTURES
    assert f"24 spoken words ({small_tree.name})" in titles["words.png"]
    for split, source in (("train", "train"), ("dev", "shipped speech, held-out voices")):
        change_record(copied_run, data={"held_out_split": split})
        draw_run(copied_run, alignments=word_times)
        assert f"({source})" in titles["alignment.png"]
    assert "there is no split 'dev'" in caplog.text
    change_record(copied_run, data={"held_out": None})
    assert names(draw_run(copied_run, alignments=word_times)) == [PICTURES[0], *PICTURES[2:]]
    assert "(train)" in titles["alignment.png"]  # of the training speech
    assert "give --data beside --alignments" in caplog.text


def test_several_runs_are_drawn_together(finished_run, tmp_path, capsys, monkeypatch, titles):
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run"):
        shutil.copytree(finished_run, name)
    drawn, folders = [], []
    monkeypatch.setattr("laser_hf.plots.curves.training_figure", lambda *arguments: drawn.append(arguments) or 1)
    monkeypatch.setattr(run_module, "draw_run", lambda run, folder, **_: folders.append(folder) or [])
    main(["a/run", "b/run", "--output", "deep/curves.png", "--title", "Both"])
    assert capsys.readouterr().out.split() == ["deep/curves.png"]
    ((runs, labels, *marks),) = drawn
    assert marks == [0, None]
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


@pytest.mark.slow
def test_what_cannot_be_drawn_is_named_and_the_rest_drawn(copied_run, small_tree, word_times, titles, caplog):
    speech = {"data": small_tree, "alignments": word_times}
    assert names(draw_run(copied_run, base=str(copied_run / "no-encoder"), **speech)) == PICTURES[:1]
    assert "Not drawn: anything but the curves (cannot load the encoder" in caplog.text
    assert names(draw_run(copied_run, data=small_tree)) == [PICTURES[0], *PICTURES[2:]]
    assert "Not drawn: words.png (no word times for" in caplog.text
    assert names(draw_run(copied_run, utterance="nobody", **speech)) == PICTURES[:2]
    assert "Not drawn: the utterance (" in caplog.text
    with pytest.MonkeyPatch.context() as patch:  # views of another duration than the speed says
        patch.setattr("laser_hf.plots.speech.drawn_speed", lambda drawn: 0.7)
        assert names(draw_run(copied_run, **speech)) == [*PICTURES[:2], PICTURES[3]]
    assert "Not drawn: alignment.png (the true warp is not known" in caplog.text
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
    """The frames that are measured, from the encoders themselves."""
    seen = []
    monkeypatch.setattr(
        run_module, "shares_beyond", lambda pairs, *_: seen.append(next(iter(pairs))) or torch.ones(2, 201)
    )
    draw_run(finished_run, data=small_tree, utterance="2-10-0003")
    waveform, _ = soundfile.read(next(small_tree.rglob("2-10-0003.flac")), dtype="float32")
    waveform = torch.from_numpy(waveform)
    encoders = load_encoder(tiny_encoder), load_encoder(str(finished_run))
    with torch.no_grad():
        for (clean, perturbed, speed), encoder in zip(seen, encoders, strict=True):
            expected = encoder(waveform[None], torch.tensor([len(waveform)])).frames[0]
            torch.testing.assert_close(clean, expected)
            assert len(perturbed) == pytest.approx(len(clean) / 1.1, abs=2)
            assert speed == 1.1
    assert not torch.allclose(*(clean for clean, *_ in seen))


@pytest.mark.slow
def test_words_are_not_named_in_a_part_of_an_utterance(copied_run, small_tree, word_times, titles, monkeypatch):
    named = []

    def figure(frames, seconds, words):
        named.append([word.label for word in words])
        return figures.plt.figure()

    monkeypatch.setattr(run_module, "self_similarity_figure", figure)
    draw_run(copied_run, data=small_tree, alignments=word_times, utterance="1-10-0001")
    record = json.loads((copied_run / "laser_config.json").read_text())
    record["recipe"]["data"]["crop_seconds"] = 0.5
    draw_run(copied_run, data=small_tree, alignments=word_times, utterance="1-10-0001", record=record)
    assert named == [["garden", "letter"], []]


def test_titles_name_method_and_encoder(finished_run):
    record = read_record(finished_run / "laser_config.json") | {"base_model": {"name": "encoder"}, "updates": 90}
    assert run_title(record) == "LASER on encoder, 90 updates"
    assert run_title(record | {"method": "soft_dtw"}) == "soft-DTW alone on encoder, 90 updates"
    record["recipe"]["model"]["model_name_or_path"] = SHIPPED_ENCODER
    assert run_title(record) == "LASER on the shipped encoder, 90 updates"
