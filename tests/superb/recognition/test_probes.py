"""Frozen features, their weighted sum, and the heads: against transformers, packed LSTMs and padding."""

from __future__ import annotations

import pickle

import pytest
import torch
from conftest import make_model, make_waveform
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from laser_hf.encoders import SpeechEncoder
from laser_hf.superb.recognition.featurizer import FeatureCache, FrozenFeatures, WeightedSum, superb_frame_length
from laser_hf.superb.recognition.probes import BiLstm, LinearHead, LstmHead, Probe
from laser_hf.superb.recognition.spec_augment import SpecAugment


def padded(*seconds):
    waves = [torch.from_numpy(make_waveform(s, seed=i)) for i, s in enumerate(seconds)]
    lengths = torch.tensor([len(wave) for wave in waves])
    return nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_states_are_those_of_transformers_unpadded(kind):
    model = make_model(kind)
    waveforms, lengths = padded(1.0, 0.613, 0.2)
    states, frames = FrozenFeatures(SpeechEncoder(make_model(kind)))(waveforms, lengths)
    assert states.shape[:2] == (4, 3)
    for row, samples in enumerate(lengths.tolist()):
        with torch.no_grad():
            expected = model(waveforms[row : row + 1, :samples], output_hidden_states=True).hidden_states
        assert len(expected) == 4
        count = int(frames[row])
        assert count == expected[0].shape[1]
        for layer, state in enumerate(expected):
            torch.testing.assert_close(states[layer, row, :count], state[0], atol=2e-5, rtol=1e-4)
        assert (states[:, row, count:] == 0).all()


def test_superbs_frame_lengths():
    """S3PRL cuts to round(samples / 320), halves to even; the front-end makes that many frames or one fewer."""
    encoder = SpeechEncoder(make_model())
    assert [superb_frame_length(n) for n in (16_000, 480, 800, 160, 16_159, 16_161)] == [50, 2, 2, 0, 50, 51]
    samples = torch.arange(400, 6_000, 13)
    made = encoder.frame_lengths(samples)
    kept = torch.tensor([superb_frame_length(n) for n in samples.tolist()])
    assert torch.equal(made, (samples - 400) // 320 + 1)
    assert set((kept - made).tolist()) == {0, 1}


def test_the_encoder_stays_frozen():
    features = FrozenFeatures(SpeechEncoder(make_model()).train())
    features.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    states, _ = features(*padded(0.5))
    assert not states.requires_grad
    again, _ = features(*padded(0.5))
    assert torch.equal(states, again)


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
    assert torch.autograd.gradcheck(lambda w: w.softmax(0) @ states.flatten(1), module.weights)
    module(states).square().sum().backward()
    gradient = module.weights.grad.clone()
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    torch.einsum("l,lbtd->btd", weights.softmax(0), states).square().sum().backward()
    torch.testing.assert_close(gradient, weights.grad)


def test_the_bidirectional_layer_is_torchs_on_packed_sequences():
    torch.manual_seed(0)
    layer, stock = BiLstm(5, 7), nn.LSTM(5, 7, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, value in layer.forwards.named_parameters():
            getattr(stock, name).copy_(value)
        for name, value in layer.backwards.named_parameters():
            getattr(stock, f"{name}_reverse").copy_(value)
    lengths = torch.tensor([6, 9, 1])
    features = torch.randn(3, 9, 5, requires_grad=True)
    packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(stock(packed)[0], batch_first=True)[0]
    inside = (torch.arange(9) < lengths.unsqueeze(1)).unsqueeze(2)
    got = layer(features, lengths) * inside
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    gradients = [torch.autograd.grad((out * weight).sum(), features)[0] for out in (got, expected)]
    torch.testing.assert_close(*gradients)
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in stock.parameters())


@pytest.mark.parametrize("head", [LstmHead(6, 9, 8, 5), LinearHead(6, 9, 8)])
def test_padded_equals_alone(head):
    probe = Probe(2, 6, head, SpecAugment()).eval()
    states, lengths = torch.randn(2, 3, 30, 6), torch.tensor([30, 12, 21])
    batch = probe(states, lengths)
    torch.testing.assert_close(batch.exp().sum(-1), torch.ones(3, 30))
    for row, count in enumerate(lengths.tolist()):
        alone = probe(states[:, row : row + 1, :count], lengths[row : row + 1])
        torch.testing.assert_close(batch[row, :count], alone[0])


def test_dropout_follows_both_layers_and_augmentation_is_for_training_only():
    torch.manual_seed(0)
    head = LstmHead(6, 9, 8, 5, lstm_layers=2, dropout=0.2)
    calls = []
    head.dropout.register_forward_hook(lambda _module, _inputs, output: calls.append(output.shape))
    head(torch.randn(2, 12, 6), torch.tensor([12, 8]))
    assert calls == [(2, 12, 10), (2, 12, 10)]
    probe = Probe(1, 6, LinearHead(6, 9, 8), SpecAugment())
    states, lengths = torch.randn(1, 2, 40, 6), torch.tensor([40, 30])
    plain = probe.eval()(states, lengths)
    assert torch.equal(plain, probe(states, lengths))
    assert not torch.equal(plain, probe.train()(states, lengths))


def test_cached_states_are_exact(tmp_path):
    features = FrozenFeatures(SpeechEncoder(make_model()))
    waves = [torch.from_numpy(make_waveform(s, seed=i)) for i, s in enumerate((0.5, 0.9, 0.31))]
    samples = [len(wave) for wave in waves]
    cache = FeatureCache(tmp_path / "features", "train")
    cache.build(features, waves, samples, {"weights": "a"})
    cache = pickle.loads(pickle.dumps(cache))  # as a worker gets it
    for index, wave in enumerate(waves):
        states, frames = features(wave[None], torch.tensor([len(wave)]))
        assert cache[index].shape == (4, int(frames), 32)
        torch.testing.assert_close(cache[index], states[:, 0], atol=2e-5, rtol=1e-4)

    calls = []
    features.register_forward_hook(lambda *_: calls.append(1))
    cache.build(features, waves, samples, {"weights": "a"})
    assert not calls  # it is there already
    cache.build(features, waves, samples, {"weights": "b"})
    assert calls  # another encoder
    cache.delete()
    assert not (tmp_path / "features").exists()


def test_a_cache_without_space(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    features = FrozenFeatures(SpeechEncoder(make_model()))
    with pytest.raises(OSError, match="use --cache_features no"):
        FeatureCache(tmp_path, "train").build(features, [torch.zeros(16_000)], [16_000], {})
