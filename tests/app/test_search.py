"""Search and its kept frames, without the page: against what is known to be said, and against plain numpy."""

from __future__ import annotations

import shutil
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, make_waveform
from dtw import dtw

from laser_hf.app.search import Collection, Index, distances
from laser_hf.demo import ENCODER_DIR, SPEECH_DIR
from laser_hf.encoders import SpeechEncoder
from laser_hf.errors import LaserError
from laser_hf.superb.discrimination import read_alignments
from laser_hf.superb.features import EncoderFeatures, load_features


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Index:
    collection = Collection(SPEECH_DIR / "heldout")
    return Index(load_features(str(ENCODER_DIR)), "shipped", collection, tmp_path_factory.mktemp("cache"))


def features(seed: int = 0) -> EncoderFeatures:
    model = make_model(seed=seed)
    return EncoderFeatures(SpeechEncoder(model, model.config))


@pytest.mark.slow
def test_ten_words_are_found_where_another_voice_says_them(shipped):
    """The first ten long words of the first voice; the word times are read here again."""
    table = read_alignments(SPEECH_DIR / "words.tsv", "heldout").words
    collection = shipped.collection
    picks = [pick for pick in collection.picks if len(pick.split()[0]) >= 6 and pick.endswith("(voice v17)")]
    assert len(picks) > 10
    for pick in picks[:10]:
        own = {number for number, one in enumerate(collection.utterances) if one.audio.stem.startswith("v17")}
        number, score, start, end = shipped.search(shipped.frames(collection.cut(pick)), own)[0]
        there = collection.utterances[number].audio.stem
        assert not there.startswith("v17")
        assert score <= 0
        said = [word for word in table if word.utterance == there and word.label == pick.split()[0]]
        assert any(min(end, word.end) - max(start, word.start) > word.duration / 2 for word in said), pick


def test_a_part_of_a_recording_is_found_there_at_its_time(shipped):
    hits = {number: hit for number, *hit in shipped.search(shipped.recording(48)[20:40])}
    # Rows are scaled to [0, 1], so another recording can score 0 too. Frame 39 begins after 0.78 s and sees 25 ms.
    assert hits[48] == pytest.approx([0, 0.4, 0.805], abs=1e-4)


def test_hits_are_those_of_plain_numpy_and_dtw_python(small_tree, tmp_path):
    own = features()
    index = Index(own, "tiny", Collection(small_tree), tmp_path)
    utterances = index.collection.utterances
    waveforms = [torch.from_numpy(soundfile.read(one.audio, dtype="float32")[0]) for one in utterances]
    frames = [own([waveform], [own.layers - 1])[0][0].double().numpy() for waveform in waveforms]
    every = np.concatenate(frames)
    mean, deviation = every.mean(0), every.std(0, ddof=1)
    sample = torch.from_numpy(make_waveform(0.3, seed=99))

    def unit(one: np.ndarray) -> np.ndarray:
        normal = (one - mean) / deviation
        return normal / np.linalg.norm(normal, axis=1, keepdims=True)

    query = unit(own([sample], [own.layers - 1])[0][0].double().numpy())
    expected = []
    for one in frames:
        distance = np.exp(1 - query @ unit(one).T)
        low, high = distance.min(1, keepdims=True), distance.max(1, keepdims=True)
        aligned = dtw((distance - low) / (high - low), step_pattern="asymmetric", open_begin=True, open_end=True)
        expected.append(-aligned.normalizedDistance)
    order = np.argsort(expected)[::-1][:10]
    hits = index.search(index.frames(sample))
    assert [number for number, *_ in hits] == order.tolist()
    assert [score for _, score, *_ in hits] == pytest.approx([expected[number] for number in order], abs=1e-4)
    for number, _, start, end in hits:
        assert 0 <= start < end <= len(waveforms[number]) / 16_000
    without = {number for number, *_ in hits[:3]}
    assert index.search(index.frames(sample), without)[0] == hits[3]


def test_frames_are_kept(small_tree, tmp_path, monkeypatch):
    first = Index(features(), "tiny", Collection(small_tree), tmp_path / "cache")
    query = torch.from_numpy(make_waveform(0.4, seed=5))
    hits = first.search(first.frames(query))

    class Idle(EncoderFeatures):
        def __call__(self, waveforms, layers):
            raise AssertionError("it encodes again")

    idle = Idle(features().encoder)
    again = Index(idle, "under another name", Collection(small_tree), tmp_path / "cache")
    assert torch.equal(again.recording(4), first.recording(4))
    again.features = first.features
    assert again.search(again.frames(query)) == hits
    with pytest.raises(AssertionError, match="encodes again"):
        Index(Idle(features(seed=1).encoder), "tiny", Collection(small_tree), tmp_path / "cache")


def test_a_changed_folder_is_encoded_anew(small_tree, tmp_path):
    folder = shutil.copytree(small_tree, tmp_path / "speech")
    index = Index(features(), "tiny", Collection(folder), tmp_path / "cache")
    before = index.recording(0)
    soundfile.write(index.collection.utterances[0].audio, make_waveform(0.7, seed=77), 16_000)
    after = Index(features(), "tiny", Collection(folder), tmp_path / "cache")
    assert after.recording(0).shape != before.shape
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (folder / "more.wav").write_bytes(next(folder.rglob("*.flac")).read_bytes())
    assert len(Index(features(), "tiny", Collection(folder), tmp_path / "cache").store.places) == 19


def test_recordings_that_cannot_be_used_are_left_out(small_tree, tmp_path):
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "text.wav").write_text("no audio")
    soundfile.write(folder / "silence.wav", np.zeros(16_000), 16_000)
    with pytest.raises(LaserError, match=r"no recording in .* can be used"):
        Index(features(), "tiny", Collection(folder), tmp_path / "cache")
    for path in islice(small_tree.rglob("*.flac"), 2):
        shutil.copy(path, folder)
    index = Index(features(), "tiny", Collection(folder), tmp_path / "cache")
    names = {index.collection.utterances[number].audio.suffix for number in index.store.places}
    assert names == {".flac"}
    assert len(index.search(index.frames(torch.from_numpy(make_waveform(0.4))))) == 2


def test_collections_without_word_times(small_tree):
    collection = Collection(small_tree)
    assert collection.picks == {}
    assert [one.name for one in collection.utterances[:2]] == ["train/1/10/1-10-0000.flac", "train/1/10/1-10-0001.flac"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_no_collection(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LaserError, match=f"there is no folder .*{name} with audio files"):
        Collection(tmp_path / name)


def test_refused_queries(shipped):
    with pytest.raises(LaserError, match=r"0\.08 s of sound are too short"):
        shipped.frames(torch.rand(1300))
    query = shipped.frames(torch.rand(8000))
    with pytest.raises(LaserError, match="no recording is left"):
        shipped.search(query, range(len(shipped.collection.utterances)))


def test_distances_are_scaled_by_row():
    found = distances(
        torch.nn.functional.normalize(torch.randn(6, 8)), torch.nn.functional.normalize(torch.randn(9, 8))
    )
    assert found.min(1) == pytest.approx(np.zeros(6))
    assert found.max(1) == pytest.approx(np.ones(6))
