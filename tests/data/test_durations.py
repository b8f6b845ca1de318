"""Durations from headers against decoded lengths, in every format; and headers that cannot be read."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import soundfile

from laser_hf.data import PairTransform, SpeedPitch, decode_audio, durations, load_speech, with_pairs

FORMATS = [  # name, format, subtype, rate, channels
    ("a.flac", "FLAC", "PCM_16", 16000, 1),
    ("b.wav", "WAV", "PCM_16", 44100, 2),
    ("c.opus", "OGG", "OPUS", 16000, 1),
    ("d.opus", "OGG", "OPUS", 48000, 1),
    ("e.ogg", "OGG", "VORBIS", 22050, 1),
    ("f.mp3", "MP3", "MPEG_LAYER_III", 16000, 1),
    ("g.mp3", "MP3", "MPEG_LAYER_III", 44100, 1),
]
SECONDS = [0.3 + 0.137 * index for index in range(len(FORMATS))]


@pytest.fixture
def files(tmp_path, speech):
    for (name, format, subtype, rate, channels), seconds in zip(FORMATS, SECONDS, strict=True):
        samples = np.repeat(speech(seconds, rate=rate)[:, None], channels, axis=1)
        soundfile.write(tmp_path / name, samples, rate, format=format, subtype=subtype)
    return tmp_path


def test_they_are_the_decoded_lengths(files):
    speech = load_speech(files)
    found = durations(speech, progress=False)
    assert speech["id"] == [name[0] for name, *_ in FORMATS]
    for row, seconds, written in zip(speech, found, SECONDS, strict=True):
        assert seconds == pytest.approx(decode_audio(row["audio"]).seconds, abs=0.02)  # a packet of Opus
        if not row["audio"]["path"].endswith("mp3"):
            assert seconds == decode_audio(row["audio"]).seconds
        assert seconds == pytest.approx(written, abs=0.08)  # MP3 pads with whole frames
    at_8k = durations(speech, sample_rate=8000, progress=False)
    assert at_8k[1] == decode_audio(speech[1]["audio"], 8000).seconds


def test_bytes_in_the_dataset_give_the_same(files):
    paths = load_speech(files)
    rows = [{"bytes": (files / name).read_bytes(), "path": name} for name, *_ in FORMATS]
    stored = datasets.Dataset.from_dict({"id": paths["id"], "audio": rows})
    expected = durations(paths, progress=False)
    assert durations(stored, progress=False) == expected
    assert durations(stored.cast_column("audio", datasets.Audio()), progress=False) == expected
    assert durations(stored.select([3, 1]), progress=False) == [expected[3], expected[1]]


def test_a_transform_is_not_carried_out(files, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("decoded")

    speech = load_speech(files)
    expected = durations(speech, progress=False)
    pairs = with_pairs(speech, PairTransform(SpeedPitch(), decode=never))
    monkeypatch.setattr(soundfile.SoundFile, "read", never)
    assert durations(pairs, progress=False) == expected
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="decoded"):
        pairs[0]


def test_what_cannot_be_read_is_none(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech(0.5), 16000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    (tmp_path / "c.wav").write_bytes(b"")
    soundfile.write(tmp_path / "d.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "e.wav", speech(0.5), 16000)
    dataset = load_speech(tmp_path)
    (tmp_path / "e.wav").unlink()
    assert durations(dataset, progress=False) == [0.5, None, None, 0.0, None]


def test_the_bar(files, capsys):
    speech = load_speech(files)
    durations(speech)
    assert "durations: 100%" in capsys.readouterr().err
    durations(speech, progress=False)
    assert capsys.readouterr().err == ""


def test_bad_arguments(files):
    with pytest.raises(TypeError, match="got IterableDataset; load it with streaming=False"):
        durations(load_speech(files, streaming=True))
    with pytest.raises(ValueError, match="no column 'audio'; columns that exist: id"):
        durations(datasets.Dataset.from_dict({"id": ["a"]}))
