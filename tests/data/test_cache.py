"""Decoded once, the same for ever: what is kept, what is not, and what happens when the folder is no good."""

from __future__ import annotations

import errno
import logging
import os

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from laser_hf.data import (
    BadAudio,
    DecodedCache,
    DecodedCacheError,
    PairTransform,
    SpeedPitch,
    cache,
    decode_audio,
    load_speech,
    with_pairs,
)


def as_list(items: list) -> list:
    """Collate function: the items as they are."""
    return items


def kept(folder) -> list[torch.dtype]:
    """Number formats of the files in a cache."""
    found = []
    for path in sorted(folder.rglob("*.*")):
        with safe_open(path, framework="pt") as file:
            found.append(file.get_tensor("waveform").dtype)
    return found


@pytest.fixture
def no_decoding(monkeypatch):
    """From when it is called, decoding is an error."""

    def forbid():
        def decode(*args, **kwargs):
            raise AssertionError("decoded again")

        monkeypatch.setattr(cache, "decode_audio", decode)

    return forbid


@pytest.mark.parametrize("workers", [0, 2])
def test_same_pairs_with_and_without(libri, tmp_path, workers, no_decoding):
    speech = load_speech(libri, "train")
    expected = list(with_pairs(speech, PairTransform(SpeedPitch(), seed=5)))
    cached = with_pairs(speech, PairTransform(SpeedPitch(), seed=5, decode=DecodedCache(tmp_path / "kept")))
    for attempt in range(2):
        found = [item for (item,) in DataLoader(cached, num_workers=workers, collate_fn=as_list)]
        for one, other in zip(found, expected, strict=True):
            assert (one["id"], one["drawn"], one["skip"]) == (other["id"], other["drawn"], "")
            assert torch.equal(one["clean"], other["clean"])
            assert torch.equal(one["perturbed"], other["perturbed"])
        if attempt == 0:
            no_decoding()
    # Three 16-bit FLAC and two 16-bit WAV utterances; two in Ogg Vorbis, which decodes to real numbers.
    dtypes = kept(tmp_path / "kept")
    assert dtypes.count(torch.int16) == 5
    assert dtypes.count(torch.float32) == 2


def test_extremes_of_16_bits_and_everything_beyond(tmp_path):
    decode = DecodedCache(tmp_path / "kept")
    full = np.tile(np.array([-32768, 32767, 0, 1], np.int16), 1000)
    for name, samples, subtype in (
        ("full.wav", full, "PCM_16"),
        ("fine.wav", (full.astype(np.int32) << 8) + 1 << 8, "PCM_24"),
        ("loud.wav", full.astype(np.float32) / 16384, "FLOAT"),
    ):
        soundfile.write(tmp_path / name, samples, 16000, subtype=subtype)
        expected = decode_audio(tmp_path / name)
        for _ in range(2):
            found = decode(tmp_path / name)
            assert torch.equal(found.waveform, expected.waveform)
            assert found[1:] == expected[1:]
    assert sorted(map(str, kept(tmp_path / "kept"))) == ["torch.float32", "torch.float32", "torch.int16"]


def test_other_rates_bytes_and_arrays(tmp_path, speech, encoded, no_decoding):
    decode = DecodedCache(tmp_path / "kept")
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([speech(0.3), speech(0.3, 1)], axis=1), 22050)
    sources = [path, {"path": str(path), "bytes": None}, {"path": "x.flac", "bytes": encoded(speech(0.3))}]
    expected = [decode_audio(source) for source in sources]
    array = {"array": speech(0.3), "sampling_rate": 16000}
    assert torch.equal(decode(array).waveform, torch.from_numpy(array["array"]))
    for source in sources:
        decode(source)
    assert len(kept(tmp_path / "kept")) == 2
    no_decoding()
    for source, one in zip(sources, expected, strict=True):
        found = decode(source)
        assert torch.equal(found.waveform, one.waveform)
        assert found[1:] == one[1:]
    with pytest.raises(AssertionError, match="decoded again"):
        decode(path, 8000)


def test_a_changed_or_damaged_file_is_decoded_again(tmp_path, speech, caplog):
    decode = DecodedCache(tmp_path / "kept")
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(0.3, 0), 16000)
    before = decode(path).waveform
    soundfile.write(path, speech(0.3, 1), 16000)
    os.utime(path, ns=(1, 1))
    after = decode(path).waveform
    assert not torch.equal(after, before)
    assert torch.equal(after, decode_audio(path).waveform)
    (file,) = (tmp_path / "kept").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(decode(path).waveform, after)
    assert "damaged" in caplog.text
    assert torch.equal(decode(path).waveform, after)


def test_limits_hold_for_what_is_kept_and_bad_audio_is_not_kept(tmp_path, speech):
    decode = DecodedCache(tmp_path / "kept")
    path, silent = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(path, speech(0.3), 16000)
    soundfile.write(silent, np.zeros(8000), 16000)
    decode(path)
    for limits in ({"min_seconds": 0.5}, {"max_seconds": 0.2}):
        with pytest.raises(BadAudio) as expected:
            decode_audio(path, **limits)
        with pytest.raises(BadAudio) as found:
            decode(path, **limits)
        assert str(found.value) == str(expected.value)
    for bad in (silent, tmp_path / "none.wav"):
        with pytest.raises(BadAudio):
            decode(bad)
    assert len(kept(tmp_path / "kept")) == 1


def test_folders_that_cannot_be_written(tmp_path, speech, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DecodedCacheError, match=r"cannot keep decoded audio in .*file.*--cache_decoded FOLDER"):
        DecodedCache(tmp_path / "file" / "below")
    decode = DecodedCache(tmp_path / "kept")
    soundfile.write(tmp_path / "a.wav", speech(0.3), 16000)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(DecodedCacheError, match="No space left on device"):
        decode(tmp_path / "a.wav")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_the_default_folder_is_the_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert DecodedCache(True).folder == tmp_path / "laser_hf-decoded"
