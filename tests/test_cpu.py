"""Cheap dropout on the CPU: the right rates, the right gradients, nothing else changed."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model

from laser_hf.cpu import LEVELS, CheapDropout, draw_keep
from laser_hf.encoders import SpeechEncoder


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_independence(p):
    """Share of dropped elements, also among the neighbours of dropped ones, within five standard deviations."""
    torch.manual_seed(0)
    count = 400_000
    keep, factor = draw_keep(torch.Size((count,)), p)
    assert factor == pytest.approx(1 / (1 - p), rel=1e-3)
    assert (1 / factor) * LEVELS == pytest.approx(round((1 / factor) * LEVELS), abs=1e-6)
    dropped = (~keep).double()
    tolerance = 5 * (p * (1 - p) / count) ** 0.5
    assert dropped.mean().item() == pytest.approx(p, abs=tolerance + 1 / LEVELS)
    for distance in (1, 2, 3, 4, 5, 64):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert both == pytest.approx(p * p, abs=10 * tolerance)
    for lane in range(4):  # each of the four decisions of a draw
        assert dropped[lane::4].mean().item() == pytest.approx(p, abs=2 * tolerance + 1 / LEVELS)


def test_dropout_keeps_the_expectation_and_its_gradient_the_mask():
    torch.manual_seed(0)
    x = torch.ones(100_000, requires_grad=True)
    with CheapDropout():
        y = F.dropout(x, 0.1)
    assert y.mean().item() == pytest.approx(1.0, abs=6e-3)
    assert y.detach().unique().tolist() == pytest.approx([0.0, LEVELS / (LEVELS - 6554)])
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_a_seed_gives_one_mask_and_a_state_continues():
    def draw():
        with CheapDropout():
            return F.dropout(torch.ones(10_000), 0.1)

    torch.manual_seed(3)
    first, state = draw(), torch.get_rng_state()
    second = draw()
    torch.manual_seed(3)
    torch.testing.assert_close(draw(), first, rtol=0, atol=0)
    torch.set_rng_state(state)
    torch.testing.assert_close(draw(), second, rtol=0, atol=0)
    assert (first != second).any()


@pytest.mark.parametrize("masked", ["no", "bool", "float"])
def test_attention_is_unbiased(masked):
    """The mean over draws tends to attention without dropout, and so does the gradient's."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 40, 8).unbind(0)
    mask = None
    if masked != "no":
        mask = (torch.arange(40) < 30).expand(1, 1, 40, 40)
        if masked == "float":
            mask = torch.zeros(1, 1, 40, 40).masked_fill(~mask, -1e30)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    draws = 400
    batched = value.expand(draws, 2, 40, 8).clone().requires_grad_()
    with CheapDropout():
        dropped = F.scaled_dot_product_attention(
            query.expand(draws, 2, 40, 8), key.expand(draws, 2, 40, 8), batched, attn_mask=mask, dropout_p=0.2
        )
    spread = dropped.detach().std(0) / draws**0.5
    assert ((dropped.detach().mean(0) - plain[0]).abs() < 6 * spread + 1e-5).all()
    dropped.sum().backward()
    if mask is not None:
        assert (batched.grad[:, :, 30:] == 0).all()
    # Every query's weights add up to 1 in the mean.
    assert batched.grad.sum((1, 2)).mean().item() == pytest.approx(80, rel=0.01)


def test_attention_gradient(monkeypatch):
    """Against finite differences, with the mask held still."""
    torch.manual_seed(0)
    keep = torch.rand(1, 2, 5, 5) > 0.3
    monkeypatch.setattr("laser_hf.cpu.draw_keep", lambda shape, p: (keep.view(shape), 1 / (1 - p)))
    monkeypatch.setattr("laser_hf.cpu._is_plain", lambda args: True)  # float64 too
    inputs = [torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(*tensors):
        with CheapDropout():
            return F.scaled_dot_product_attention(*tensors, dropout_p=0.25)

    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2", "data2vec-audio"])
def test_without_drops_a_training_step_is_that_of_plain_transformers(kind, monkeypatch):
    """Nothing dropped, the calls caught all the same: frames and gradients are the stock ones."""
    caught = []

    def keep_all(shape, p):
        caught.append(shape)
        return torch.ones(shape, dtype=torch.bool), 1.0

    monkeypatch.setattr("laser_hf.cpu.draw_keep", keep_all)
    monkeypatch.setattr("laser_hf.cpu._SMALLEST", 0)
    rates = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.1)
    quiet = dict.fromkeys(rates, 0.0)
    waveforms, lengths = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1)) * 0.1, [9000, 5000]
    results = []
    for dropouts in (rates, quiet):
        model = make_model(kind, layerdrop=0.0, apply_spec_augment=False, **dropouts)
        encoder = SpeechEncoder(model)
        encoder.freeze_except(2)
        output = encoder.train()(waveforms, torch.tensor(lengths)).frames
        output.square().sum().backward()
        results.append((output.detach(), encoder.model.encoder.layers[-2].attention.q_proj.weight.grad))
    attention = [shape for shape in caught if len(shape) >= 3 and shape[-1] == shape[-2] == 27]
    assert len(attention) == 3  # layers
    for fast, stock in zip(*results, strict=True):
        torch.testing.assert_close(fast, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_evaluation_and_config_are_untouched(kind, tmp_path):
    encoder = SpeechEncoder(make_model(kind))
    waveforms, lengths = torch.randn(1, 9000) * 0.1, torch.tensor([9000])
    with torch.no_grad():
        stock = encoder.model(waveforms).last_hidden_state
        torch.testing.assert_close(encoder(waveforms, lengths).frames, stock, rtol=0, atol=0)
        encoder.train()(waveforms, lengths)
    encoder.model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not any("attn" in name for name in saved)


def test_what_is_passed_on():
    """Other precisions, autocast, evaluation and the ends of the range are PyTorch's own business."""
    x = torch.ones(10_000)
    torch.manual_seed(0)
    stock = F.dropout(x.double(), 0.1)
    torch.manual_seed(0)
    with CheapDropout():
        torch.testing.assert_close(F.dropout(x.double(), 0.1), stock, rtol=0, atol=0)
        assert F.dropout(x, 0.1, training=False) is x or (F.dropout(x, 0.1, training=False) == x).all()
        assert (F.dropout(x, 1.0) == 0).all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(0)
            torch.testing.assert_close(F.dropout(x, 0.1), stock.float())
