"""CTC heads: against packed LSTMs, under padding, and read back from a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from laser_hf.superb.ctc.heads import BiLstm, CtcHead, LstmHead, SpecAugment, reverse_valid
from laser_hf.superb.ctc.tasks import Asr, Pr


@pytest.mark.parametrize("way", ["forward", "packed"])
def test_the_bidirectional_layer_is_torchs_on_packed_sequences(way):
    """Both ways to compute it; the second is what a GPU takes."""
    torch.manual_seed(0)
    layer = BiLstm(5, 7)
    torch.manual_seed(0)
    stock = nn.LSTM(5, 7, batch_first=True, bidirectional=True)
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in layer.state_dict().items())
    lengths = torch.tensor([6, 9, 1])
    features = torch.randn(3, 9, 5, requires_grad=True)
    packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(stock(packed)[0], batch_first=True)[0]
    inside = (torch.arange(9) < lengths.unsqueeze(1)).unsqueeze(2)
    got = getattr(layer, way)(features, lengths) * inside
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    asked = [[features, *layer.parameters()], [features, *stock.parameters()]]
    gradients = [torch.autograd.grad((o * weight).sum(), a) for o, a in zip((got, expected), asked, strict=True)]
    for own, right in zip(*gradients, strict=True):
        torch.testing.assert_close(own, right, atol=1e-5, rtol=1e-5)


def test_stacked_frames():
    """Two frames side by side are one of the head's; an odd frame at the end is dropped."""
    torch.manual_seed(0)
    states, lengths = torch.randn(2, 3, 9, 6), torch.tensor([9, 4, 7])
    model = CtcHead(2, LstmHead(12, 9, 8, 5, 2, 0.2), stack=2).eval()
    found = model(states, lengths)
    features = model.weighted_sum(states)
    pairs = torch.stack([torch.cat([features[:, 2 * i], features[:, 2 * i + 1]], -1) for i in range(4)], 1)
    expected = model.head(pairs, torch.tensor([4, 2, 3])).log_softmax(-1)
    for row, count in enumerate((4, 2, 3)):
        torch.testing.assert_close(found[row, :count], expected[row, :count])


@pytest.mark.parametrize("head", [LstmHead(6, 9, 8, 5, 2, 0.2), LstmHead(6, 9, 8)])
def test_padded_equals_alone(head):
    model = CtcHead(2, head, SpecAugment()).eval()
    states, lengths = torch.randn(2, 3, 30, 6), torch.tensor([30, 12, 21])
    batch = model(states, lengths)
    torch.testing.assert_close(batch.exp().sum(-1), torch.ones(3, 30))
    for row, count in enumerate(lengths.tolist()):
        alone = model(states[:, row : row + 1, :count], lengths[row : row + 1])
        torch.testing.assert_close(batch[row, :count], alone[0])


def test_dropout_follows_both_layers_and_augmentation_is_for_training_only():
    torch.manual_seed(0)
    head = LstmHead(6, 9, 8, 5, lstm_layers=2, dropout=0.2)
    calls = []
    head.dropout.register_forward_hook(lambda _module, _inputs, output: calls.append(output.shape))
    head(torch.randn(2, 12, 6), torch.tensor([12, 8]))
    assert calls == [(2, 12, 10), (2, 12, 10)]
    model = CtcHead(1, LstmHead(6, 9, 8), SpecAugment())
    states, lengths = torch.randn(1, 2, 40, 6), torch.tensor([40, 30])
    plain = model.eval()(states, lengths)
    assert torch.equal(plain, model(states, lengths))
    assert not torch.equal(plain, model.train()(states, lengths))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_reversed_frames_by_hand(lengths, extra):
    features = torch.arange(len(lengths) * (max(lengths) + extra) * 2.0).view(len(lengths), -1, 2)
    turned = reverse_valid(features, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        assert torch.equal(turned[row, :length], features[row, :length].flip(0))
        assert torch.equal(turned[row, length:], features[row, length:])


@pytest.mark.slow
@pytest.mark.parametrize("task", [Asr, Pr])
def test_the_head_of_a_run_is_read_back(task, request):
    """As docs/superb.md says it."""
    folder, record = request.getfixturevalue(f"finished_{task.NAME}")
    head = task.build_head(SimpleNamespace(**record["recipe"]), record["head"]["layers"], record["head"]["dim"])
    head.load_state_dict(load_file(folder / "ctc_head.safetensors"))
    frames = 9 // record["recipe"].get("stack", 1)
    found = head.eval()(torch.randn(4, 1, 9, 32), torch.tensor([9]))
    assert found.shape == (1, frames, len(record["head"]["labels"]))
