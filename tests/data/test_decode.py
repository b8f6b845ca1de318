"""Decoding: every format, every kind of bad audio, and what is announced."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from laser_hf.data import BadAudio, decode, decode_audio

FORMATS = [  # format, subtype, rate, largest difference to what was written (None: lossy)
    ("WAV", "PCM_16", 16000, 2**-15),
    ("WAV", "FLOAT", 16000, 0.0),
    ("FLAC", "PCM_16", 16000, 2**-15),
    ("FLAC", "PCM_24", 16000, 2**-23),
    ("OGG", "VORBIS", 16000, None),
    ("OGG", "OPUS", 16000, None),
    ("MP3", "MPEG_LAYER_III", 16000, None),
]


@pytest.fixture(autouse=True)
def nothing_logged_before():
    decode._log_once.cache_clear()


@pytest.mark.parametrize(("format", "subtype", "rate", "tolerance"), FORMATS)
def test_formats(tmp_path, speech, format, subtype, rate, tolerance):
    samples = speech(1.0)
    path = tmp_path / f"x.{format.lower()}"
    soundfile.write(path, samples, rate, format=format, subtype=subtype)
    decoded = decode_audio(path)
    assert decoded.waveform.dtype == torch.float32
    assert decoded.waveform.shape == (16000,)
    assert decoded[1:] == (16000, 1)
    if tolerance is None:
        assert np.corrcoef(decoded.waveform.numpy(), samples)[0, 1] > 0.95
    else:
        np.testing.assert_allclose(decoded.waveform.numpy(), samples, atol=tolerance, rtol=0)
    for other in (str(path), {"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": None}):
        assert torch.equal(decode_audio(other).waveform, decoded.waveform)
    assert torch.equal(decode_audio(path.as_uri()).waveform, decoded.waveform)


def test_already_decoded_arrays(speech):
    samples = speech(0.5)
    for array in (samples, samples.tolist(), samples[None], samples.astype(np.float64)):
        decoded = decode_audio({"array": array, "sampling_rate": 16000})
        np.testing.assert_array_equal(decoded.waveform.numpy(), samples)
    integers = np.round(samples * 2**15).astype(np.int16)
    decoded = decode_audio({"array": integers, "sampling_rate": 16000})
    np.testing.assert_allclose(decoded.waveform.numpy(), samples, atol=2**-15)


def test_channels_are_averaged_and_logged_once(speech, encoded, caplog):
    left, right = speech(0.5, 1), speech(0.5, 2)
    stereo = {"bytes": encoded(np.stack([left, right], axis=1), format="WAV", subtype="FLOAT"), "path": None}
    with caplog.at_level(logging.WARNING, logger="laser_hf.data"):
        decoded = decode_audio(stereo)
        decode_audio(stereo)
    np.testing.assert_allclose(decoded.waveform.numpy(), (left + right) / 2, atol=1e-7)
    assert decoded.channels == 2
    assert [record.getMessage() for record in caplog.records] == [
        "audio with 2 channels is averaged to one (said once)"
    ]
    transposed = decode_audio({"array": np.stack([left, right]), "sampling_rate": 16000})
    assert torch.equal(transposed.waveform, decoded.waveform)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_and_logged_once(speech, encoded, caplog, rate):
    samples = speech(0.5, rate=rate)
    audio = {"bytes": encoded(samples, rate, "WAV", "FLOAT"), "path": None}
    with caplog.at_level(logging.WARNING, logger="laser_hf.data"):
        decoded = decode_audio(audio)
        decode_audio(audio)
    expected = torchaudio.functional.resample(torch.from_numpy(samples), rate, 16000)
    torch.testing.assert_close(decoded.waveform, expected, atol=5e-5, rtol=0)
    assert decoded.source_rate == rate
    assert [record.getMessage() for record in caplog.records] == [
        f"audio at {rate} Hz is resampled to 16000 Hz (said once)"
    ]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("part", [0.5, 0.01])
def test_cut_off_files_decode_or_are_refused(speech, encoded, format, part):
    data = encoded(speech(1.0), format=format)
    data = data[: int(len(data) * part)]
    found = None
    try:
        decoded = decode_audio({"bytes": data, "path": "cut"})
    except BadAudio as error:
        found = error.kind
    assert found in ("undecodable", "empty", "too_short") or 1600 <= len(decoded.waveform) <= 16000


def bad_audio(tmp_path, speech, encoded) -> dict[str, list]:
    """Examples of every kind of bad audio, as arguments of `decode_audio`."""
    (tmp_path / "zero.flac").write_bytes(b"")
    (tmp_path / "noise.flac").write_bytes(b"no audio at all " * 100)
    nan, infinite = speech(0.5), speech(0.5)
    nan[7], infinite[7] = np.nan, np.inf

    def array(samples):
        return {"array": samples, "sampling_rate": 16000}

    return {
        "undecodable": [
            tmp_path / "absent.flac",
            tmp_path,
            (tmp_path / "absent.flac").as_uri(),
            str(tmp_path / "noise.flac"),
            {"bytes": b"RIFF" + b"x" * 50, "path": None},
            {"bytes": None, "path": None},
            {},
            None,
            {"array": speech(0.5), "sampling_rate": None},
            {"array": [1, 2, 3], "sampling_rate": 16000},
            array(np.zeros((2, 2, 2))),
            array([[0.1, 0.2], [0.3]]),
        ],
        "empty": [
            tmp_path / "zero.flac",
            {"bytes": b"", "path": "x"},
            {"bytes": encoded(np.zeros(0, np.float32), format="WAV"), "path": None},
            array([]),
            array(np.zeros((1, 0))),
        ],
        "too_short": [{"bytes": encoded(speech(0.099)), "path": None}, array(speech(0.099))],
        "too_long": [{"bytes": encoded(speech(2.1)), "path": None}, array(speech(2.1))],
        "nan": [
            {"bytes": encoded(nan, format="WAV", subtype="FLOAT"), "path": None},
            array(nan),
            array(infinite),
        ],
        "silent": [
            {"bytes": encoded(np.zeros(8000, np.float32)), "path": None},
            array(np.zeros(8000)),
            array(np.full(8000, 0.3)),  # a constant is no sound either
            array(speech(0.5) * 1e-5),
        ],
    }


@pytest.mark.parametrize("kind", decode.KINDS)
def test_bad_audio(tmp_path, speech, encoded, kind):
    for audio in bad_audio(tmp_path, speech, encoded)[kind]:
        with pytest.raises(BadAudio) as caught:
            decode_audio(audio, max_seconds=2.0)
        assert caught.value.kind == kind, audio
        assert str(caught.value) == f"{kind}: {caught.value.reason}"
        assert " at 0x" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_limits_are_inclusive_and_quiet_speech_is_kept(speech, encoded):
    for seconds in (0.1, 2.0):
        decode_audio({"bytes": encoded(speech(seconds)), "path": None}, min_seconds=0.1, max_seconds=2.0)
    decode_audio({"array": speech(0.5) * 1e-4, "sampling_rate": 16000})


def test_an_unreachable_file_system_is_not_bad_audio():
    with pytest.raises(Exception, match=r"offline|reach|connect") as caught:
        decode_audio("hf://datasets/nobody/speech/a.flac")
    assert not isinstance(caught.value, BadAudio)
