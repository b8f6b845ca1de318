"""The shadow of a GPU itself: what it counts as a wait, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model
from shadow_device import ShadowTensor, shadow_device

from laser_hf import LaserLoss
from laser_hf.encoders import SpeechEncoder
from laser_hf.transfer import read_later, to_device

WAITS = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "boolean index": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x.long()),
    "equal": lambda x: torch.equal(x, x + 0),
    "svd": lambda x: torch.linalg.svdvals(x[None]),
    "a tensor from numbers": lambda x: torch.tensor([1.0], device=x.device),
    "a blocking copy": lambda x: torch.ones(3).to(x.device),
    "pageable memory": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "an index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "a list as index": lambda x: x[[0, 1]],
    "synchronize": lambda x: torch.cuda.synchronize(),
}
NO_WAITS = {
    "arithmetic": lambda x: (x * 2 + 1).square().sum(),
    "a masked fill": lambda x: x.masked_fill(x > 0, 0.0),
    "a value behind a mask": lambda x: x.clone().__setitem__(x > 0, 0.0),
    "an index on the device": lambda x: x[torch.arange(2, device=x.device)],
    "pinned memory": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "to_device": lambda x: to_device(torch.ones(3), x.device),
    "a copy to read later": read_later,
    "a filled tensor": lambda x: torch.full((2,), 3, device="cuda"),
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_counted(monkeypatch, what):
    with shadow_device(monkeypatch) as device:
        x = torch.arange(4.0, device="cuda")
        device.waits.clear()
        WAITS[what](x)
        assert sum(device.waits.values()) == 1, device.waits


@pytest.mark.parametrize("what", NO_WAITS)
def test_what_needs_no_wait_counts_none(monkeypatch, what):
    with shadow_device(monkeypatch) as device:
        x = torch.arange(4.0, device="cuda")
        device.waits.clear()
        NO_WAITS[what](x)
        assert not device.waits


def test_devices_do_not_mix(monkeypatch):
    with shadow_device(monkeypatch, devices=2):
        x = torch.ones(3, device="cuda")
        for other in (torch.ones(3), torch.ones(3, device="cuda:1")):
            with pytest.raises(RuntimeError, match="same device"):
                x + other
        assert isinstance(x * torch.tensor(2.0), ShadowTensor)  # a number


def test_a_copy_is_read_only_when_it_is_there(monkeypatch):
    with shadow_device(monkeypatch) as device:
        x = torch.arange(3.0, device="cuda")
        early, late = x.to("cpu", non_blocking=True), read_later(x)
        with pytest.raises(RuntimeError, match="before it is known"):
            early.sum()
        assert late().sum() == 3
        assert early.sum() == 3
        late()
        assert list(device.waits) == ["event at laser_hf/transfer.py:26"]


def test_gradients_are_real(monkeypatch):
    with shadow_device(monkeypatch):
        weight = torch.nn.Linear(3, 2).to("cuda")
        weight(torch.ones(4, 3, device="cuda")).square().sum().backward()
        found = weight.weight.grad.cpu()
        values = weight.weight.detach().cpu(), weight.bias.detach().cpu()
    own = torch.nn.Linear(3, 2)
    own.load_state_dict(dict(zip(("weight", "bias"), values, strict=True)))
    own(torch.ones(4, 3)).square().sum().backward()
    torch.testing.assert_close(found, own.weight.grad)


def test_kernels_are_launched_where_the_frames_are(monkeypatch):
    """On the second device while the first one is the current one."""
    with shadow_device(monkeypatch, devices=2) as device:
        frames = torch.nn.functional.normalize(torch.randn(2, 5, 4), dim=-1)
        x, y = (frames.to("cuda:1").requires_grad_() for _ in range(2))
        lengths = torch.tensor([5, 3])
        device.waits.clear()
        LaserLoss()(x, lengths, y, lengths)["total"].sum().backward()
        assert not device.waits
        assert {place for _, place in device.launches} == {1}
        assert device.current == 0


@pytest.mark.parametrize(("norm", "stable"), [("group", False), ("layer", True)])
@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2", "data2vec-audio"])
def test_no_encoder_waits_in_a_ragged_batch(monkeypatch, kind, norm, stable):
    encoder = SpeechEncoder(make_model(kind, norm, stable))
    waveforms, lengths = 0.1 * torch.randn(3, 9000), torch.tensor([9000, 4000, 6500])
    with torch.no_grad():
        expected = encoder(waveforms, lengths)
        with shadow_device(monkeypatch) as device:
            moved, speech = encoder.to("cuda"), waveforms.to("cuda")
            device.waits.clear()
            found = moved(speech, lengths)
            assert not device.waits
            torch.testing.assert_close(found.frames.cpu(), expected.frames, rtol=1e-4, atol=1e-5)
