"""Added noise: the ratio against torchaudio, the cut by brute force, and recordings that cannot be used."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torch.utils.data import DataLoader

from laser_hf.data import (
    Noise,
    PairDataset,
    PairTransform,
    build_perturbation,
    decode_audio,
    draw_generator,
    load_speech,
    noise,
)
from laser_hf.errors import LaserError


def as_list(items: list) -> list:
    """Collate function: the items as they are."""
    return items


@pytest.fixture
def folder(tmp_path):
    """Three recordings: 1 s, 0.25 s at another rate in a sub-folder, and a stereo one."""
    rng = np.random.default_rng(0)
    root = tmp_path / "noise"
    (root / "indoors").mkdir(parents=True)
    soundfile.write(root / "street.flac", 0.1 * rng.standard_normal(16000), 16000)
    soundfile.write(root / "indoors/tap.wav", 0.1 * rng.standard_normal(2000), 8000)
    soundfile.write(root / "stereo.wav", 0.1 * rng.standard_normal((16000, 2)), 16000)
    return root


def ratio(speech: torch.Tensor, noisy: torch.Tensor) -> float:
    """Signal-to-noise ratio, dB."""
    return 10 * math.log10(speech.double().square().mean() / (noisy.double() - speech.double()).square().mean())


@pytest.mark.parametrize("snr", [20, 10, 5, -3.5])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.999])
def test_the_sum_is_torchaudios(folder, speech, snr, start):
    clean = torch.from_numpy(speech(0.6))
    for file in Noise(folder).files:
        recording = decode_audio(folder / file).waveform
        first = int(start * len(recording))
        cut = torch.stack([recording[(first + index) % len(recording)] for index in range(len(clean))])
        expected = torchaudio.functional.add_noise(clean.double(), cut.double(), torch.tensor(snr).double())
        found = Noise(folder).apply(clean, file=file, start=start, snr=snr)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
        assert ratio(clean, found) == pytest.approx(snr, abs=1e-3)


def test_the_draw(folder):
    perturb = Noise(folder, snrs=[20, 5])
    assert perturb.files == ("indoors/tap.wav", "stereo.wav", "street.flac")
    drawn = [perturb.draw(draw_generator(0, 0, str(index))) for index in range(3000)]
    assert json.loads(json.dumps(drawn)) == drawn
    assert all(set(one) == {"file", "start", "snr"} and 0 <= one["start"] < 1 for one in drawn)
    assert np.mean([one["start"] for one in drawn]) == pytest.approx(0.5, abs=0.02)
    for file in perturb.files:
        for snr in (20, 5):
            assert sum((one["file"], one["snr"]) == (file, snr) for one in drawn) == pytest.approx(500, abs=90)


def test_a_batch_is_what_each_gets_alone(folder, speech):
    perturb = build_perturbation("noise", {"noise_dir": str(folder)})
    assert perturb.batched
    waveforms = [torch.from_numpy(speech(seconds, seed=1)) for seconds in (0.3, 0.7, 1.3)]
    drawn = [perturb.draw(draw_generator(1, 0, str(index))) for index in range(3)]
    for one, params, found in zip(waveforms, drawn, perturb.apply_batch(waveforms, drawn), strict=True):
        assert torch.equal(found, perturb.apply(one, **params))
    assert perturb.apply_batch([], []) == []


def test_silence(folder, speech):
    gap = np.concatenate([0.1 * np.ones(4000) * np.sin(np.arange(4000)), np.zeros(12000)])
    soundfile.write(folder / "gap.wav", gap, 16000, subtype="FLOAT")
    perturb, clean = Noise(folder), torch.from_numpy(speech(0.3))
    found = perturb.apply(clean, file="gap.wav", start=0.5, snr=10)  # 0.3 s of silence come first
    assert ratio(clean, found) == pytest.approx(10, abs=1e-3)
    assert torch.equal(found, perturb.apply(clean, file="gap.wav", start=1 / 16000, snr=10))  # sin(0) is 0
    assert torch.equal(perturb.apply(torch.zeros(100), file="street.flac", start=0.0, snr=5), torch.zeros(100))


def test_recordings_are_decoded_once_while_there_is_room(folder, speech, monkeypatch):
    decoded = []

    def counting(path, *arguments, **options):
        decoded.append(path.name)
        return decode_audio(path, *arguments, **options)

    monkeypatch.setattr(noise, "decode_audio", counting)
    clean = torch.from_numpy(speech(0.3))

    def use(perturb, *files):
        decoded.clear()
        for file in files:
            perturb.apply(clean, file=file, start=0.5, snr=10)
        return decoded

    names = ("street.flac", "stereo.wav", "street.flac", "indoors/tap.wav", "street.flac", "stereo.wav")
    roomy = Noise(folder)
    assert use(roomy, *names) == ["street.flac", "stereo.wav", "tap.wav"]
    # 64 kB, 64 kB and 16 kB: there is room for the last two used.
    small = Noise(folder)
    small.memory_mb = 0.1
    assert use(small, *names) == [
        "street.flac",
        "stereo.wav",
        "street.flac",
        "tap.wav",
        "stereo.wav",
    ]
    small.memory_mb = 0
    assert len(use(small, *names)) == len(names)
    copy = pickle.loads(pickle.dumps(roomy))
    assert len(pickle.dumps(roomy)) < 2000
    assert use(copy, "street.flac") == ["street.flac"]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers(folder, libri, context):
    perturbation = build_perturbation(["noise", "equalizer"], {"noise_dir": str(folder)})
    pairs = PairDataset(load_speech(libri, "train"), PairTransform(perturbation, seed=2))
    loader = DataLoader(pairs, num_workers=1, collate_fn=as_list, multiprocessing_context=context)
    for (item,), expected in zip(loader, pairs, strict=True):
        assert item["drawn"] == expected["drawn"]
        assert torch.equal(item["perturbed"], expected["perturbed"])


def test_bad_recordings_are_named(folder, speech):
    (folder / "text.wav").write_text("no audio")
    soundfile.write(folder / "silent.wav", np.zeros(1000), 16000)
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    clean = torch.from_numpy(speech(0.3))
    for file, kind in (("text.wav", "undecodable"), ("silent.wav", "silent"), ("none.wav", "empty"), ("no", "no such")):
        with pytest.raises(
            LaserError, match=rf"the noise recording .*{file} cannot be used \(.*{kind}.*mend or remove"
        ):
            Noise(folder).apply(clean, file=file, start=0.0, snr=10)


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(LaserError, match=r"no folder of noise .*nowhere.*give the folder"):
        Noise(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LaserError, match=r"no audio files in .*empty; put noise recordings there"):
        build_perturbation("noise", {"noise_dir": str(tmp_path / "empty")})
    with pytest.raises(LaserError, match="needs --noise_dir"):
        build_perturbation("noise")
    for snrs, message in (([], "at least one value"), ([math.inf], "finite number"), ("5,a", "a number, got 'a'")):
        with pytest.raises(LaserError, match=f"noise_snrs must be .*{message}"):
            build_perturbation("noise", {"noise_dir": str(folder), "noise_snrs": snrs})


def test_the_content_is_of_the_recordings_and_not_of_their_place(folder, tmp_path):
    before = Noise(folder).content()
    assert list(before) == ["noise_dir"]
    assert build_perturbation(["equalizer", "noise"], {"noise_dir": str(folder)}).content() == before
    folder.rename(tmp_path / "elsewhere")
    assert Noise(tmp_path / "elsewhere").content() == before
    street = tmp_path / "elsewhere" / "street.flac"
    data = street.read_bytes()
    street.write_bytes(data[: len(data) // 2] + bytes(8) + data[len(data) // 2 + 8 :])  # of the same size
    assert Noise(tmp_path / "elsewhere").content() != before
    street.unlink()
    assert Noise(tmp_path / "elsewhere").content() != before


def test_words(folder):
    perturb = Noise(folder)
    assert perturb.describe({"file": "indoors/tap.wav", "start": 0.5, "snr": 10.0}) == "indoors/tap.wav at 10 dB"
    assert perturb.keeps_duration
