"""The speech that is drawn: an utterance in two views, and words with times."""

from __future__ import annotations

import shutil

import datasets.fingerprint
import numpy as np
import pytest
import soundfile
import torch

from laser_hf.data import PairTransform, SpeedPitch, build_perturbation
from laser_hf.errors import LaserError
from laser_hf.plots import speech as speech_module
from laser_hf.plots.speech import find_word_times, load_pairs, load_words, or_shipped, source_name
from laser_hf.records import located

from .conftest import WORDS

DEMO = located("{laser_hf}/demo/speech")
PERTURBATION = SpeedPitch([1.1], [2.0])


def load(source, perturbation=PERTURBATION, count=5, seed=0, **how):
    return load_pairs(source, PairTransform(perturbation, seed), count, **how)


def test_the_pairs_are_utterances_and_their_perturbed_views(small_tree, monkeypatch):
    monkeypatch.setattr(datasets.fingerprint, "fingerprint_warnings", warned := {})
    pairs = load(small_tree)
    assert not warned  # of a choice that `datasets` cannot hash
    assert len(pairs) == 5
    files = {path.stem: path for path in small_tree.rglob("*.flac")}
    for pair in pairs:
        samples, _ = soundfile.read(files[pair.utterance], dtype="float32")
        np.testing.assert_array_equal(pair.clean.numpy(), samples)
        assert torch.equal(pair.perturbed, PERTURBATION.apply(pair.clean, speed=1.1, pitch=2.0))
        assert (pair.change, pair.speed, pair.source) == ("speed 1.1, +2 semitones", 1.1, small_tree.name)
    assert len({pair.utterance.split("-")[0] for pair in pairs}) == 3  # spread over the speakers
    named = load(small_tree, splits=["train"], utterance="3-10-0002")
    assert [named[0].utterance, named[0].source, len(named)] == ["3-10-0002", "train", 6]
    assert {pair.utterance for pair in load(small_tree, count=100)} == set(files)


def test_any_perturbation_is_drawn_and_described(small_tree):
    perturbation = build_perturbation(["equalizer", "speed_pitch"])
    pair, again = (load(small_tree, perturbation, seed=5)[0] for _ in range(2))
    assert torch.equal(pair.perturbed, again.perturbed)
    assert pair.change == again.change
    assert "equaliser of 10 bands" in pair.change
    assert "semitones" in pair.change
    assert len(pair.clean) == pytest.approx(pair.speed * len(pair.perturbed), abs=2)
    other = load(small_tree, perturbation, seed=6)
    assert not any(torch.equal(pair.perturbed, one.perturbed) for one in other)


def test_the_draw_that_changes_the_duration_most_comes_first(small_tree):
    pairs = load(small_tree, SpeedPitch([0.8, 1.0, 1.1], [-2.0, 2.0]))
    assert pairs[0].change.startswith("speed 0.8, ")
    changes = [abs(len(pair.perturbed) - len(pair.clean)) for pair in pairs]
    assert changes == sorted(changes, reverse=True)


def test_utterances_that_cannot_be_used_are_passed_over_or_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(LaserError, match="holds no utterance that can be used"):
        load(tmp_path)
    soundfile.write(tmp_path / "b.wav", np.sin(np.arange(3000)), 16_000)
    soundfile.write(tmp_path / "c.wav", np.sin(np.arange(16_000)), 16_000)
    assert [pair.utterance for pair in load(tmp_path)] == ["c", "b"]
    assert len(load(tmp_path, utterance="b")[0].clean) == 3000
    with pytest.raises(LaserError, match="a cannot be used: silent"):
        load(tmp_path, utterance="a")
    with pytest.raises(LaserError, match="no utterance 'z'; --utterance takes the name of an audio file"):
        load(tmp_path, utterance="z")


def test_a_set_of_the_hub_is_streamed_from_its_start(small_tree, monkeypatch):
    rows, read = [], []
    for path in sorted(small_tree.rglob("*.flac")):
        rows.append({"id": path.stem, "audio": {"bytes": path.read_bytes(), "path": None}})
    monkeypatch.setattr(
        speech_module, "load_speech", lambda *_, streaming, **__: (read.append(streaming), iter(rows))[1]
    )
    pairs = load("some/set", count=3)
    assert {pair.utterance for pair in pairs} == {row["id"] for row in rows[:3]}
    assert read == [True]
    with pytest.raises(LaserError, match=r"some/set holds no utterance '3-10-0002' among its first 3"):
        load("some/set", count=3, utterance="3-10-0002")


def test_words_of_several_speakers(small_tree, word_times):
    speech = load_words(small_tree, word_times)
    assert {token.label for token in speech.tokens} == set(WORDS)
    assert {token.speaker for token in speech.tokens} == {"1", "2", "3"}
    assert set(speech.waveforms) == {token.utterance for token in speech.tokens}
    assert speech.source == small_tree.name
    assert len(load_words(small_tree, word_times, splits=["train"]).tokens) == len(speech.tokens)


def test_word_times_are_found_near_the_speech(small_tree, word_times, tmp_path):
    tree = tmp_path / "LibriSpeech" / "dev"
    shutil.copytree(small_tree / "train", tree)
    with pytest.raises(LaserError, match=r"no word times .* give --alignments FILE"):
        load_words(tree)
    shutil.copy(word_times, tmp_path / "alignments.tsv")
    assert find_word_times(tree) == tmp_path / "alignments.tsv"
    assert {token.label for token in load_words(tree).tokens} == set(WORDS)
    assert or_shipped(load_words, tree).source == "dev"
    (tree / "words.tsv").write_text("nearer\n")
    assert find_word_times(tree) == tree / "words.tsv"


def test_tokens_without_usable_audio_are_left_out(small_tree, word_times, tmp_path, caplog):
    shutil.copytree(small_tree, tmp_path / "speech")
    for file in (tmp_path / "speech").rglob("2-10-000*.flac"):
        file.write_bytes(b"no audio")
    lines = word_times.read_text().splitlines()
    late = [line.replace("0.05\t", "50.05\t") if line.startswith("1-") else line for line in lines]
    (tmp_path / "late.tsv").write_text("\n".join(late) + "\n")
    speech = load_words(tmp_path / "speech", tmp_path / "late.tsv")
    assert {token.speaker for token in speech.tokens} == {"1", "3"}
    assert {token.start for token in speech.tokens if token.speaker == "1"} == {0.26}
    assert "undecodable" in caplog.text
    assert not any(name.startswith("2-") for name in speech.waveforms)


def test_speech_without_words_to_compare_is_refused(small_tree, word_times, tmp_path):
    with pytest.raises(LaserError, match=r"no folder .*nowhere"):
        load_words(tmp_path / "nowhere", word_times)
    with pytest.raises(LaserError, match=r"no folder .*dev"):
        load_words(small_tree, word_times, splits=["dev"])
    with pytest.raises(LaserError, match=r"of 5 letters and 0\.2 s .* too few are said by two speakers"):
        load_words(small_tree / "train" / "1", word_times)


def test_the_shipped_speech_stands_in(small_tree, caplog):
    assert or_shipped(load_words, "").source == "shipped speech, held-out voices"
    words = or_shipped(load_words, small_tree)  # its word times lie elsewhere
    assert "The shipped speech is drawn instead: no word times" in caplog.text
    assert len({token.label for token in words.tokens}) == 8
    assert len({token.speaker for token in words.tokens}) == 6
    how = {"transform": PairTransform(PERTURBATION), "count": 2, "name": None, "splits": None}
    assert or_shipped(load_pairs, "", **how)[0].source == source_name(DEMO)
    assert or_shipped(load_pairs, small_tree, **how)[0].source == small_tree.name
    caplog.clear()
    (first, *_) = or_shipped(load_pairs, small_tree, utterance="v18-s1-0033", **how)
    assert (first.utterance, first.source) == ("v18-s1-0033", source_name(DEMO))
    assert "no utterance 'v18-s1-0033'" in caplog.text
    assert or_shipped(load_pairs, str(small_tree) + "-gone", **how)[0].source == source_name(DEMO)


def test_real_speech_has_words_of_its_speakers(shared_speech):
    data = shared_speech / "heldout-clean-5"
    if not data.is_dir():
        pytest.skip(f"no speech in {data}")
    try:
        speech = load_words(data)
    except LaserError as error:
        pytest.skip(str(error))
    assert len({token.label for token in speech.tokens}) == 8
    for label in {token.label for token in speech.tokens}:
        assert len({token.speaker for token in speech.tokens if token.label == label}) > 1
