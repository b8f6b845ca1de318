"""Frames on disk: batches, what is stored, what was skipped, and going on after an interruption."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.encoders import SpeechEncoder
from laser_hf.errors import LaserError
from laser_hf.superb.features import EncoderFeatures, SpectralFeatures, Utterance, read_waveform, sample_counts
from laser_hf.superb.frame_store import FrameStore, encode, fill, length_batches


@pytest.fixture(scope="module")
def features():
    return EncoderFeatures(SpeechEncoder(make_model()))


@pytest.fixture
def utterances(tmp_path):
    made = []
    for n in range(7):
        samples = np.random.default_rng(n).normal(0, 0.1, int(16_000 * (0.2 + 0.13 * ((5 * n) % 7))))
        soundfile.write(tmp_path / f"{n}.wav", samples, 16_000, subtype="FLOAT")
        made.append(Utterance(f"u{n}", tmp_path / f"{n}.wav"))
    return made


def filled(store, features, utterances, **options):
    fill(
        store,
        features,
        [utterance.name for utterance in utterances],
        sample_counts(utterances),
        lambda index: read_waveform(utterances[index], features.shortest),
        progress="",
        **options,
    )
    return store


@settings(deadline=None)
@given(
    samples=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    limit=st.integers(1, 1500),
)
def test_batches_hold_everything_once_longest_first(samples, limit):
    batches = length_batches(samples, limit)
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(len(samples)), key=lambda index: (-samples[index], index))
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        assert len(batch) == 1 or samples[batch[0]] * len(batch) <= limit
        assert not following or samples[batch[0]] * (len(batch) + 1) > limit  # as large as they may be


def test_a_stored_batch_gives_what_each_utterance_gives_alone(tmp_path, utterances, features):
    store = filled(FrameStore(tmp_path / "frames", [0, 3], 32), features, utterances, batch_seconds=3.0)
    assert store.batches < len(utterances)
    store = pickle.loads(pickle.dumps(store))  # as a DataLoader's worker gets it
    waveforms = {utterance.name: read_waveform(utterance) for utterance in utterances}
    together = encode(features, waveforms, [0, 3])
    for index, utterance in enumerate(utterances):
        alone = features([waveforms[utterance.name]], [0, 3])
        assert store[index].shape == (2, *alone[0][0].shape)
        for number, layer in enumerate((0, 3)):
            np.testing.assert_allclose(store.read(layer, index), alone[number][0], atol=2e-5)
            assert torch.equal(store[index][number], torch.from_numpy(store.read(layer, index)))
            torch.testing.assert_close(together[number][utterance.name], alone[number][0], atol=2e-5, rtol=1e-4)


def test_skipped_files_are_entered_and_the_rest_is_there(tmp_path, utterances):
    utterances[2].audio.write_text("broken")
    utterances[4].audio.unlink()
    store = filled(FrameStore(tmp_path / "frames", [0], 26), SpectralFeatures("mfcc"), utterances)
    assert {index: kind for index, (kind, _) in store.skipped.items()} == {2: "undecodable", 4: "undecodable"}
    assert sorted(store.places) == [0, 1, 3, 5, 6]
    with pytest.raises(KeyError):
        store.read(0, 2)


def test_an_interrupted_encoding_goes_on(tmp_path, utterances, features, monkeypatch):
    utterances[3].audio.write_text("broken")
    layers = [1, 2]
    whole = filled(FrameStore(tmp_path / "whole", layers, 32), features, utterances, batch_seconds=1.5)
    assert whole.batches > 3
    real, calls = EncoderFeatures.__call__, []

    def stops(self, waveforms, wanted):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, waveforms, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderFeatures, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            filled(FrameStore(tmp_path / "part", layers, 32), features, utterances, batch_seconds=1.5)
    # What a killed process and a power failure may leave.
    (tmp_path / "part" / "unfinished").write_bytes(b"12345")
    (tmp_path / "part" / "batch-000001.safetensors").write_bytes(b"")
    again = FrameStore(tmp_path / "part", layers, 32)
    assert again.batches == 1
    filled(again, features, utterances, batch_seconds=1.5)
    assert (again.places, again.skipped) == (whole.places, whole.skipped)
    assert sorted(path.name for path in again.folder.iterdir()) == sorted(path.name for path in whole.folder.iterdir())
    assert all(torch.equal(again[index], whole[index]) for index in whole.places)


@pytest.mark.parametrize("at", [-5, 100])  # in the frames, in the header
def test_flipped_bytes_are_found_when_a_store_is_opened_again(tmp_path, utterances, features, at, caplog):
    whole = filled(FrameStore(tmp_path / "frames", [1], 32), features, utterances, batch_seconds=1.5)
    expected = {index: whole[index].clone() for index in whole.places}
    path = tmp_path / "frames" / "batch-000001.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    again = FrameStore(tmp_path / "frames", [1], 32)
    assert again.batches == 1
    assert "batch-000001.safetensors is damaged and made again" in caplog.text
    filled(again, features, utterances, batch_seconds=1.5)
    assert all(torch.equal(again[index], frames) for index, frames in expected.items())


def test_a_store_of_something_else_is_emptied(tmp_path, utterances, features, monkeypatch):
    folder, key = tmp_path / "frames", {"weights": "a", "utterances": ("x", 1)}
    filled(FrameStore(folder, [1], 32, key), features, utterances)
    with monkeypatch.context() as patch:
        patch.setattr(FrameStore, "add", lambda *_: pytest.fail("encoded again"))
        filled(FrameStore(folder, [1], 32, key), features, utterances)
    assert len(FrameStore(folder, [1], 32, key).places) == 7
    store = FrameStore(folder, [1], 32, {**key, "weights": "b"})
    assert not store.places
    assert store.batches == 0
    assert not list(folder.iterdir())


def test_frames_that_are_not_finite_stop_the_run(tmp_path, utterances, features, monkeypatch):
    monkeypatch.setattr(
        EncoderFeatures, "__call__", lambda self, waves, layers: [[torch.full((3, 32), torch.nan)] * len(waves)]
    )
    with pytest.raises(LaserError, match=r"frames of u\d are not finite"):
        filled(FrameStore(tmp_path / "f", [0], 32), features, utterances)


def test_a_disk_that_is_too_small(tmp_path, utterances, features, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(LaserError, match=r"the frames of 7 utterances take .* GiB free; take fewer"):
        filled(FrameStore(tmp_path / "f", [0], 32), features, utterances, advice="take fewer")
