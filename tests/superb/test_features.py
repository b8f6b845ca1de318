"""Reading utterances, and turning them into frames: padded batches give what every utterance gives alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, make_waveform
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.data import BadAudio, SpeedPitch
from laser_hf.encoders import SpeechEncoder
from laser_hf.errors import LaserError
from laser_hf.superb.features import (
    VIEWS,
    EncoderFeatures,
    SpectralFeatures,
    Utterance,
    WeightedSum,
    load_features,
    pick_device,
    pick_layers,
    read_waveform,
    sample_counts,
)


def write(path, seconds, seed=0, rate=16_000, channels=1):
    shape = (int(seconds * rate), channels) if channels > 1 else int(seconds * rate)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, shape), rate, subtype="FLOAT")
    return Utterance(path.stem, path)


# ---- reading ----


def test_parts_gain_and_rates(tmp_path):
    whole = write(tmp_path / "a.wav", 1.0)
    samples = read_waveform(whole)
    part = read_waveform(Utterance("q", whole.audio, 0.25, 0.5), gain=0.5)
    torch.testing.assert_close(part, samples[4000:12000] * 0.5)
    assert len(read_waveform(write(tmp_path / "b.wav", 1.0, rate=8000))) == 16_000
    assert read_waveform(write(tmp_path / "c.wav", 1.0, channels=2)).shape == (16_000,)


def test_a_file_of_one_frame_is_read(tmp_path):
    assert len(read_waveform(write(tmp_path / "a.wav", 400 / 16_000), shortest=400)) == 400
    with pytest.raises(BadAudio, match="399 samples; one frame needs 400"):
        read_waveform(write(tmp_path / "b.wav", 399.5 / 16_000), shortest=400)


@pytest.mark.parametrize(
    ("name", "times", "kind"),
    [
        ("none.wav", (), "undecodable"),
        ("none.wav", (0.1, 0.2), "undecodable"),
        ("text.wav", (), "undecodable"),
        ("text.wav", (0.1, 0.2), "undecodable"),
        ("zero.wav", (), "empty"),
        ("silent.wav", (), "silent"),
        ("good.wav", (7.0, 0.2), "empty"),
        ("good.wav", (0.1, 0.0), "empty"),
        ("good.wav", (0.1, 0.01), "too_short"),
    ],
)
def test_unusable_audio_has_a_kind(tmp_path, name, times, kind):
    write(tmp_path / "good.wav", 0.5)
    (tmp_path / "text.wav").write_text("no audio at all")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(9000), 16_000)
    with pytest.raises(BadAudio) as error:
        read_waveform(Utterance("u", tmp_path / name, *times), shortest=400)
    assert error.value.kind == kind


def test_samples_are_counted_by_header(tmp_path):
    whole = write(tmp_path / "a.wav", 1.0, rate=8000)
    part, beyond = Utterance("p", whole.audio, 0.75, 0.5), Utterance("b", whole.audio, 2.0, 0.5)
    (tmp_path / "text.wav").write_text("no audio at all")
    assert sample_counts([whole, part, beyond, Utterance("t", tmp_path / "text.wav")]) == [16_000, 4000, 0, 0]


# ---- encoders ----


@pytest.fixture(scope="module")
def models():
    return {kind: make_model(kind) for kind in ("hubert", "wavlm")}


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["hubert", "wavlm"]),
    samples=st.lists(st.integers(400, 9000), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_padded_states_are_those_of_transformers_alone(models, kind, samples, seed):
    generator = torch.Generator().manual_seed(seed)
    waveforms = [torch.randn(count, generator=generator) * 0.1 for count in samples]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    features = EncoderFeatures(SpeechEncoder(make_model(kind)))
    states, frames = features.states(padded, torch.tensor(samples))
    assert states.shape[:2] == (features.layers, len(samples))
    for row, waveform in enumerate(waveforms):
        with torch.no_grad():
            alone = models[kind](waveform[None], output_hidden_states=True).hidden_states
        count = features.frame_count(len(waveform))
        assert int(frames[row]) == count == alone[0].shape[1]
        torch.testing.assert_close(states[:, row, :count], torch.cat(alone), atol=2e-5, rtol=1e-4)
        assert (states[:, row, count:] == 0).all()
    chosen = features(waveforms, [3, 1])
    for layer, utterances in zip((3, 1), chosen, strict=True):
        for row, utterance in enumerate(utterances):
            assert torch.equal(utterance, states[layer, row, : frames[row]])


def test_no_utterance_has_more_frames_than_superb_keeps():
    """SUPERB cuts frames to `round(samples / 320)`, halves to even; nothing is left to cut, at most one is missing."""
    made = SpeechEncoder(make_model()).frame_lengths(torch.arange(400, 6000)).tolist()
    assert {round(samples / 320) - count for samples, count in enumerate(made, start=400)} == {0, 1}


def test_features_leave_the_encoder_and_the_generator_as_they_were():
    encoder = SpeechEncoder(make_model(hidden_dropout=0.5, layerdrop=0.5)).train()
    features, waveforms = EncoderFeatures(encoder), [torch.ones(800).cumsum(0).sin()]
    state = torch.get_rng_state()
    first, second = (features(waveforms, [0, 1, 2, 3]) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert encoder.training
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    states, _ = features.states(waveforms[0][None], torch.tensor([800]))
    assert not states.requires_grad


# ---- any features ----


def test_features_tell_their_frames(tiny_encoder):
    waveforms = [torch.randn(n) * 0.1 for n in (400, 1111, 9000)]
    for model, dim in (("mfcc", 26), ("logmel", 46), (str(tiny_encoder), 32), (f"random:{tiny_encoder}", 32)):
        features = load_features(model)
        assert features.dim == dim
        for states in features(waveforms, range(features.layers)):
            assert [tuple(state.shape) for state in states] == [(features.frame_count(len(w)), dim) for w in waveforms]
        described = features.describe(model)
        assert (described["weights_sha256"] is None) == (model in ("mfcc", "logmel"))
    assert features.frame_seconds == 0.02


@pytest.mark.parametrize("kind", ["mfcc", "logmel"])
def test_spectral_frames_are_ten_milliseconds_apart(kind):
    features, waveform = SpectralFeatures(kind), torch.randn(2000) * 0.1
    ((late,),) = features([waveform[160:]], [0])
    ((whole,),) = features([waveform], [0])
    values = features.dim // 2  # differences look beyond the edge
    torch.testing.assert_close(late[:, :values], whole[1:, :values], atol=1e-4, rtol=1e-4)


def test_random_weights_depend_on_the_seed_only(tiny_encoder):
    def last(model, **options):
        return load_features(model, **options)([torch.ones(800).cumsum(0).sin()], [3])[0][0]

    fresh = last(f"random:{tiny_encoder}")
    assert torch.equal(fresh, last(f"random:{tiny_encoder}"))
    assert not torch.equal(fresh, last(f"random:{tiny_encoder}", seed=1))
    assert not torch.equal(fresh, last(str(tiny_encoder)))


@settings(deadline=None)
@given(layers=st.lists(st.integers(-9, 8), min_size=1))
def test_layers_are_picked_by_number(layers):
    picked = pick_layers(",".join(map(str, layers)), 9)
    assert picked == list(dict.fromkeys(list(range(9))[layer] for layer in layers))


def test_layers_that_do_not_exist_are_refused():
    assert pick_layers("all", 3) == [0, 1, 2]
    for layer in (3, -4):
        with pytest.raises(LaserError, match=f"layers 0 to 2, not {layer}"):
            pick_layers(f"0,{layer}", 3)
    with pytest.raises(LaserError, match="got 'top'"):
        pick_layers("top", 3)


def test_devices_are_checked():
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99"):
        with pytest.raises(LaserError, match=f"--device {name} cannot be used"):
            pick_device(name)


# ---- the weighted sum ----


def test_the_weighted_sum_starts_as_the_mean():
    module, states = WeightedSum(3), torch.randn(3, 2, 5, 4)
    torch.testing.assert_close(module(states), states.mean(0))
    assert module.shares() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        module.weights.copy_(torch.tensor([0.0, 1.0, -2.0]))
    share = torch.tensor([0.0, 1.0, -2.0]).softmax(0)
    torch.testing.assert_close(module(states), torch.einsum("l,lbtd->btd", share, states))
    assert module.shares() == pytest.approx(share.tolist())


def test_weighted_sum_gradient():
    module, states = WeightedSum(3).double(), torch.randn(3, 1, 4, 2, dtype=torch.float64)
    module(states).square().sum().backward()
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    torch.einsum("l,lbtd->btd", weights.softmax(0), states).square().sum().backward()
    torch.testing.assert_close(module.weights.grad, weights.grad)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_part_is_the_part_perturbed(view, tmp_path):
    samples = make_waveform(1.0)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    part = Utterance("a", tmp_path / "a.wav", 0.25, 0.5)
    plain = read_waveform(part)
    speed, pitch = VIEWS[view]
    expected = SpeedPitch().apply(plain, speed=speed, pitch=pitch)
    found = read_waveform(replace(part, view=view), gain=0.5)
    assert torch.equal(found, 0.5 * expected)
    assert len(found) != len(plain) or not torch.equal(2 * found, plain)
    assert sample_counts([replace(part, view=view)]) == [pytest.approx(len(found), abs=1)]
