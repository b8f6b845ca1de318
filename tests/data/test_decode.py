"""Decoding: every format, every kind of bad audio, and what is announced."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import re

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from data.conftest import encode, make_speech
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.data import BadAudio, audio_seconds, decode, decode_audio

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


FILES = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
FILES += [("MP3", "MPEG_LAYER_III")]
WHOLE = {file: encode(make_speech(0.5), format=file[0], subtype=file[1]) for file in FILES}
WHOLE["MP3", "no length"] = WHOLE["MP3", "MPEG_LAYER_III"][288:]


@pytest.mark.parametrize(("format", "subtype"), FILES)
@pytest.mark.parametrize("rate", [16000, 48000])
def test_files_that_are_cut_off_are_damaged(tmp_path, speech, encoded, format, subtype, rate):
    data = encoded(speech(2.0, rate=rate), rate, format, subtype)
    for part in (0.9, 0.5, 0.2):
        cut = data[: int(len(data) * part)]
        (tmp_path / "cut").write_bytes(cut)
        for audio in ({"bytes": cut, "path": "cut"}, tmp_path / "cut"):
            with pytest.raises(BadAudio) as caught:
                decode_audio(audio)
            # Less may be no file at all: Ogg needs its first pages.
            assert caught.value.kind == "damaged" or part == 0.2 or format == "OGG"
            if format in ("WAV", "FLAC", "MP3") and caught.value.kind == "damaged":
                announced, found = map(float, re.findall(r"([0-9.]+) s (?:are|were)", caught.value.reason))
                assert announced == pytest.approx(2.0, abs=0.01)
                assert found == pytest.approx(2.0 * part, abs=0.4)
    assert len(decode_audio({"bytes": data, "path": None}).waveform) == 32000


def without_length(data: bytes) -> bytes:
    """An MP3 file of the LAME encoder without its first frame, which holds the number of frames."""
    return data[data.index(data[:2], 200) :]


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("around", [(b"", b""), (b"ID3\x04\0\0\0\0\1\0" + bytes(128), b"TAG" + bytes(125))])
def test_mp3_without_its_length_decodes_whole(speech, encoded, rate, around):
    whole = encoded(speech(2.0, rate=rate), rate, "MP3")
    bare = without_length(whole)
    assert b"Xing" not in bare
    assert soundfile.info(io.BytesIO(bare)).frames != pytest.approx(2.0 * rate, rel=0.1)  # libsndfile guesses wrong
    bare = around[0] + bare + around[1]
    decoded = decode._from_file({"bytes": bare, "path": None}, None)[0]
    expected = soundfile.read(io.BytesIO(whole), dtype="float32")[0]
    # The header also says that the first 576 samples are the encoder's delay.
    np.testing.assert_allclose(decoded[576 : 576 + len(expected)], expected, atol=1e-6)
    assert len(decoded) < len(expected) + 2 * 1152
    assert audio_seconds({"bytes": bare, "path": None}) == pytest.approx(len(decoded) / rate, abs=1e-4)


def test_mp3_without_its_length_is_damaged_if_its_last_frame_is_cut(speech, encoded, tmp_path):
    bare = without_length(encoded(speech(2.0), 16000, "MP3"))
    for length in (len(bare) - 1, len(bare) // 2 + 1, 1001):
        (tmp_path / "cut.mp3").write_bytes(bare[:length])
        with pytest.raises(BadAudio, match=r"cut\.mp3: its last frame is cut off") as caught:
            decode_audio(tmp_path / "cut.mp3")
        assert caught.value.kind == "damaged"
        assert audio_seconds(tmp_path / "cut.mp3") is None


@given(st.binary(max_size=300), st.sampled_from(list(WHOLE)), st.floats(0, 1), st.integers(0, 3000))
@settings(deadline=None, max_examples=60)
def test_any_bytes_decode_or_are_bad_audio(garbage, file, part, at):
    data = WHOLE[file][: int(len(WHOLE[file]) * part)]
    data = data[:at] + garbage + data[at + len(garbage) :]
    with contextlib.suppress(BadAudio):
        assert decode_audio({"bytes": data, "path": "garbage"}, max_seconds=60).waveform.isfinite().all()


@pytest.mark.parametrize("seconds", [0.5, 2.0, 70.0])
def test_flac_without_its_length_decodes_whole(speech, encoded, seconds):
    data = bytearray(encoded(speech(seconds)))
    expected = decode_audio({"bytes": bytes(data), "path": None}).waveform
    data[21] &= 0xF0  # the total number of samples: 36 bits of the header
    data[22:26] = bytes(4)
    audio = {"bytes": bytes(data), "path": None}
    assert audio_seconds(audio) is None
    assert torch.equal(decode_audio(audio).waveform, expected)
    with pytest.raises(BadAudio, match=r"damaged: audio bytes: [0-9.]+ s are there"):
        decode_audio({"bytes": bytes(data[: len(data) * 2 // 3]), "path": None})
    if seconds > 60:
        with pytest.raises(BadAudio, match="too_long"):
            decode_audio(audio, max_seconds=60)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_wav_from_a_pipe_decodes_whole(speech, encoded, size):
    data = bytearray(encoded(speech(0.5), format="WAV", subtype="PCM_16"))
    at = data.find(b"data")
    expected = decode_audio({"bytes": bytes(data), "path": None}).waveform
    data[at + 4 : at + 8] = data[4:8] = size.to_bytes(4, "little")
    assert torch.equal(decode_audio({"bytes": bytes(data), "path": None}).waveform, expected)


@pytest.mark.parametrize("rate", [1, 3999, 400_000])
def test_rates_that_are_not_believed_are_refused_before_decoding(speech, encoded, monkeypatch, rate):
    data = encoded(speech(0.5), rate, "WAV", "PCM_16")
    monkeypatch.setattr(decode, "resample", None)
    for audio in ({"bytes": data, "path": None}, {"array": speech(0.5), "sampling_rate": rate}):
        with pytest.raises(BadAudio, match=f"undecodable: a rate of {rate} Hz; 4000 to 384000 Hz are read"):
            decode_audio(audio)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_whole_numbers_in_lists_are_16_or_32_bits(speech, dtype):
    """As `datasets` gives int16 and int32 features back."""
    samples = np.round(speech(0.5) * np.iinfo(dtype).max).astype(dtype)
    expected = decode_audio({"array": samples, "sampling_rate": 16000}).waveform
    audio = {"array": samples.tolist(), "sampling_rate": 16000}
    assert torch.equal(decode_audio(audio).waveform, expected)
    assert audio_seconds(audio) == 0.5
    assert audio_seconds({"array": [], "sampling_rate": 16000}) == 0
    assert audio_seconds({"array": [1, 2], "sampling_rate": None}) is None


def bad_audio(tmp_path, speech, encoded) -> dict[str, list]:
    """Examples of every kind of bad audio, as arguments of `decode_audio`."""
    (tmp_path / "zero.flac").write_bytes(b"")
    (tmp_path / "noise.flac").write_bytes(b"no audio at all " * 100)
    nan, infinite = speech(0.5), speech(0.5)
    nan[7], infinite[7] = np.nan, np.inf

    def array(samples):
        return {"array": samples, "sampling_rate": 16000}

    return {
        "damaged": [{"bytes": encoded(speech(1.0), format=one)[:-4000], "path": "x"} for one in ("WAV", "FLAC", "OGG")],
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
            {"array": [1, 2, 3], "sampling_rate": 0},
            {"array": [2**40] * 9000, "sampling_rate": 16000},
            array(np.zeros(9000, np.uint8)),
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
