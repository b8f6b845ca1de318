"""Praat's change of voice: pitch and formants measured before and after; draws; whose pitch range."""

from __future__ import annotations

import json
import logging
import math
import pickle

import numpy as np
import pytest
import torch
import torchaudio

from laser_hf.data import PairTransform, Voice, build_perturbation, draw_generator, load_speech, speaker
from laser_hf.data.speaker import read_speaker_f0, two_pass_range
from laser_hf.errors import LaserError

parselmouth = pytest.importorskip("parselmouth", reason="praat-parselmouth is not installed")
SAME = {"formant_ratio": 1.0, "pitch_ratio": 1.0, "range_ratio": 1.0}


def vowel(f0: float, formant: float = 900.0, seconds: float = 1.5, glide: float = 0.0) -> torch.Tensor:
    """A train of pulses through one resonance, its pitch going `glide` semitones up and down."""
    time = np.arange(int(16000 * seconds)) / 16000
    phase = np.cumsum(f0 * 2 ** (glide * np.sin(2 * np.pi * 2 * time) / 12) / 16000)
    pulses = torch.from_numpy(np.diff(np.floor(phase), prepend=0.0))
    radius, angle = math.exp(-math.pi * 150 / 16000), 2 * math.pi * formant / 16000
    poles = torch.tensor([1.0, -2 * radius * math.cos(angle), radius**2], dtype=torch.float64)
    sound = torchaudio.functional.lfilter(pulses, poles, torch.tensor([1.0, 0, 0]).double(), clamp=False)
    return (0.5 * sound / sound.abs().max()).float()


def pitch_of(waveform: torch.Tensor) -> np.ndarray:
    """Fundamental frequencies by autocorrelation, `(frames,)` Hz; a witness that is not Praat."""
    frames = waveform.double()[1600:-1600].unfold(0, 1024, 400)
    frames = (frames - frames.mean(1, keepdim=True)) * torch.hann_window(1024, dtype=torch.float64)
    padded = torch.nn.functional.pad(torch.hann_window(1024, dtype=torch.float64)[None], (0, 1024))
    bias = torch.fft.irfft(torch.fft.rfft(padded).abs() ** 2)[:, :320]
    correlation = torch.fft.irfft(torch.fft.rfft(frames, 2048).abs() ** 2)[:, :320] / bias
    correlation = correlation / correlation[:, :1]
    lowest = 16000 // 500
    found = []
    for row in correlation[:, lowest:]:
        # The first peak nearly as high as the highest: not a multiple of the period.
        inner = (row[1:-1] > row[:-2]) & (row[1:-1] >= row[2:]) & (row[1:-1] > 0.85 * row.max())
        peaks = torch.nonzero(inner)[:, 0]
        if len(peaks):
            index = int(peaks[0]) + 1
            before, at, after = row[index - 1 : index + 2].tolist()
            found.append(16000 / (lowest + index + 0.5 * (before - after) / (before - 2 * at + after)))
    return np.array(found)


def envelope_peak(waveform: torch.Tensor) -> float:
    """Frequency (Hz) of the highest point of the spectrum smoothed over 400 Hz."""
    spectrum = torch.fft.rfft(waveform[1600:-1600], 2**16).abs() ** 2
    width = round(400 * 2**16 / 16000) | 1
    smooth = torch.nn.functional.conv1d(spectrum[None, None], torch.hann_window(width)[None, None], padding=width // 2)
    return smooth.argmax().item() * 16000 / 2**16


@pytest.mark.parametrize("f0", [100, 150, 220])
@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.7])
def test_the_median_pitch_is_multiplied(f0, ratio):
    waveform = vowel(f0, glide=1.0)
    before = np.median(pitch_of(waveform))
    assert before == pytest.approx(f0, rel=0.02)
    found = Voice().apply(waveform, **SAME | {"pitch_ratio": ratio})
    assert found.shape == waveform.shape
    assert found.dtype == torch.float32
    assert np.median(pitch_of(found)) == pytest.approx(ratio * before, rel=0.03)


@pytest.mark.parametrize("ratio", [1 / 1.3, 1.0, 1.3])
def test_the_formant_moves_and_the_pitch_stays(ratio):
    waveform = vowel(110, formant=1200)
    found = Voice().apply(waveform, **SAME | {"formant_ratio": ratio})
    assert envelope_peak(waveform) == pytest.approx(1200, rel=0.08)
    assert envelope_peak(found) == pytest.approx(1200 * ratio, rel=0.08)
    assert np.median(pitch_of(found)) == pytest.approx(110, rel=0.03)


@pytest.mark.parametrize("ratio", [1 / 1.5, 1.5])
def test_the_pitch_range_is_multiplied(ratio):
    waveform = vowel(150, glide=2.0)
    found = Voice().apply(waveform, **SAME | {"range_ratio": ratio})

    def spread(one):
        return np.subtract(*np.quantile(pitch_of(one), (0.9, 0.1)))

    assert spread(found) == pytest.approx(ratio * spread(waveform), rel=0.15)


def test_the_search_range_matters():
    """Within the range of the speaker Praat looks for the pitch; 150 Hz is not to be found above 200."""
    waveform = vowel(150)
    drawn = SAME | {"pitch_ratio": 1.5}
    found = Voice().apply(waveform, **drawn, floor=75.0, ceiling=300.0)
    assert np.median(pitch_of(found)) == pytest.approx(225, rel=0.03)
    above = Voice().apply(waveform, **drawn, floor=400.0, ceiling=600.0)
    assert not torch.allclose(above, found, atol=1e-2)


def test_two_passes():
    pitch = np.linspace(100, 200, 101)
    assert two_pass_range(pitch) == pytest.approx((0.75 * 125, 1.5 * 175))
    assert two_pass_range(pitch / 2) == pytest.approx((60, 1.5 * 87.5))
    assert two_pass_range(pitch * 3) == pytest.approx((0.75 * 375, 600))


def test_what_has_no_voice_is_left_as_it_is():
    noise = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    drawn = {"formant_ratio": 1.3, "pitch_ratio": 1.5, "range_ratio": 1.2}
    for waveform in (torch.zeros(8000), noise * (torch.arange(8000) < 0), torch.ones(300), vowel(150)[:300], noise[:1]):
        for known in ({}, {"floor": 75.0, "ceiling": 300.0}):
            assert torch.equal(Voice().apply(waveform, **drawn, **known), waveform)
    hiss = Voice().apply(noise, **drawn)
    assert hiss.shape == noise.shape
    assert hiss.isfinite().all()


def test_only_praats_own_errors_are_survived(monkeypatch):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(parselmouth.praat, "call", fails)
    waveform = vowel(150, seconds=0.3)
    error = parselmouth.PraatError("no pitch")
    assert torch.equal(Voice().apply(waveform, **SAME), waveform)
    error = TypeError("a mistake in the program")
    with pytest.raises(TypeError, match="a mistake in the program"):
        Voice().apply(waveform, **SAME)


def test_the_same_draw_gives_the_same_voice(speech):
    waveform = torch.from_numpy(speech(0.8))
    waveform[6000:] = 0.1 * torch.randn(len(waveform) - 6000, generator=torch.Generator().manual_seed(0))
    drawn = Voice().draw(draw_generator(0, 0, "a"))
    first = Voice().apply(waveform, **drawn)
    assert torch.equal(first, pickle.loads(pickle.dumps(Voice())).apply(waveform, **drawn))
    assert not torch.allclose(first, waveform, atol=1e-2)
    # Where there is no voice Praat goes by random numbers, and by those alone.
    other = Voice().apply(waveform, **drawn | {"seed": drawn["seed"] + 1})
    assert torch.equal(first[1000:4000], other[1000:4000])
    assert not torch.equal(first[8000:], other[8000:])


def test_on_real_speech(real_speech):
    for waveform in real_speech:
        for ratio in (1 / 1.5, 1.5):
            found = Voice().apply(waveform, formant_ratio=ratio**0.5, pitch_ratio=ratio, range_ratio=1.2)
            assert found.shape == waveform.shape
            assert found.isfinite().all()
            before, after = (
                np.median(frequencies[frequencies > 0])
                for one, scale in ((waveform, 1), (found, ratio))
                for frequencies in [
                    parselmouth.Sound(one.double().numpy(), 16000)
                    .to_pitch(pitch_floor=80 * scale, pitch_ceiling=400 * scale)
                    .selected_array["frequency"]
                ]
            )
            assert after == pytest.approx(ratio * before, rel=0.05)


def test_the_draw():
    drawn = [Voice().draw(draw_generator(0, 0, str(index))) for index in range(2000)]
    assert json.loads(json.dumps(drawn)) == drawn
    assert all(one["floor"] is one["ceiling"] is None for one in drawn)
    signs = []
    for name, limit in (("formant_ratio", 1.4), ("pitch_ratio", 2.0), ("range_ratio", 1.5)):
        ratios = np.array([one[name] for one in drawn])
        signs.append(ratios < 1)
        assert signs[-1].mean() == pytest.approx(0.5, abs=0.05)
        upright = np.where(ratios < 1, 1 / ratios, ratios)
        levels = np.array([0.05, 0.5, 0.95])
        np.testing.assert_allclose((np.quantile(upright, levels) - 1) / (limit - 1), levels, atol=0.05)
    assert np.abs(np.corrcoef(signs) - np.eye(3)).max() < 0.1  # inverted independently of one another
    unmoved = Voice()
    unmoved.limits = dict.fromkeys(unmoved.limits, 1)
    still = unmoved.draw(draw_generator(0, 0, "a"))
    assert still == SAME | {"seed": still["seed"], "floor": None, "ceiling": None}
    assert len({one["seed"] for one in drawn}) == 2000


@pytest.fixture
def ranges(tmp_path):
    path = tmp_path / "f0.tsv"
    path.write_text("speaker\tsex\tfloor\tceiling\n9\tF\t120\t400\n1447\tM\t60\t400\n12\tM\t50\t250.5\n")
    return path


def test_pitch_ranges_of_speakers(ranges, libri, caplog):
    assert read_speaker_f0(ranges) == {"9": (120, 400), "1447": (60, 400), "12": (75, 250.5)}
    perturb = build_perturbation(["voice", "equalizer"], {"speaker_f0": str(ranges)})
    assert not perturb.batched
    by_id = {}
    for row in load_speech(libri, "train"):
        pair = PairTransform(perturb, seed=3).pair(row["id"], row["audio"])
        assert json.loads(json.dumps(pair["drawn"])) == pair["drawn"]
        assert pair["skip"] == ""
        by_id[row["id"]] = pair["drawn"]["parts"]
    for name, (voiced, equal) in by_id.items():
        rng = draw_generator(3, 0, name)
        known = {"floor": 120.0, "ceiling": 400.0} if name.startswith("9-") else {}
        assert voiced == Voice().draw(rng) | known
        assert equal == perturb.parts[1].draw(rng)  # knowing the speaker shifts no later draw
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in warned if "pitch ranges" in message] == [
        "speaker '10' has no line in the table of pitch ranges; such ranges are estimated"
    ]
    assert pickle.loads(pickle.dumps(perturb)).parts[0].speaker_f0 == perturb.parts[0].speaker_f0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column speaker, floor, ceiling"),
        ("speaker\tfloor\n1\t75\n", "no column ceiling in the first line"),
        (
            "speaker\tfloor\tceiling\n1\t75\t300\n2\tlow\t300\n",
            "line 3: 0 < floor < ceiling in Hz was expected, got low and 300",
        ),
        ("speaker\tfloor\tceiling\n1\t75\n", "line 2: expected the fields speaker, floor, ceiling"),
        ("speaker\tfloor\tceiling\n1\t300\t75\n", "line 2: 0 < floor < ceiling in Hz was expected, got 300 and 75"),
        ("speaker\tfloor\tceiling\n1\t75\tnan\n", "0 < floor < ceiling"),
        ("speaker\tfloor\tceiling\n1\t75\t300\n1\t80\t300\n", "line 3: speaker '1' has a line already"),
    ],
)
def test_bad_tables_of_pitch_ranges(tmp_path, text, message):
    path = tmp_path / "f0.tsv"
    path.write_text(text)
    with pytest.raises(LaserError, match=message):
        Voice(speaker_f0=path)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(LaserError, match=r"cannot read .*nowhere.tsv"):
        build_perturbation("voice", {"speaker_f0": str(tmp_path / "nowhere.tsv")})


def test_words():
    drawn = SAME | {"pitch_ratio": 1 / 3}
    assert Voice().describe(drawn) == "formants x 1, pitch x 0.333, pitch range x 1"
    assert Voice().keeps_duration
    assert not Voice().batched


def test_without_praat(monkeypatch):
    monkeypatch.setattr(speaker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaserError, match="pip install praat-parselmouth"):
        build_perturbation("voice")
