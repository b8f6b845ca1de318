"""What only a GPU can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model

from laser_hf import LaserLoss
from laser_hf.encoders import SpeechEncoder
from laser_hf.training import parse_options
from laser_hf.training.run import _run

pytestmark = pytest.mark.gpu


def test_loss_and_gradient_equal_the_cpu():
    torch.manual_seed(0)
    lengths_x, lengths_y = torch.tensor([60, 7, 1]), torch.tensor([41, 50, 1])
    x = torch.nn.functional.normalize(torch.randn(3, 60, 16), dim=-1)
    y = torch.nn.functional.normalize(torch.randn(3, 50, 16), dim=-1)
    results = []
    for device in ("cpu", "cuda"):
        a, b = (frames.to(device).detach().requires_grad_() for frames in (x, y))
        terms = LaserLoss()(a, lengths_x.to(device), b, lengths_y.to(device))
        terms["total"].sum().backward()
        results.append([*(terms[name].detach().cpu() for name in LaserLoss.term_names), a.grad.cpu(), b.grad.cpu()])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_padded_equals_alone(kind):
    encoder = SpeechEncoder(make_model(kind)).cuda()
    waveforms, lengths = torch.randn(2, 9000, device="cuda") * 0.1, torch.tensor([9000, 4000], device="cuda")
    with torch.no_grad():
        together = encoder(waveforms, lengths)
        alone = encoder(waveforms[1:, :4000], lengths[1:])
    frames = alone.frames.shape[1]
    torch.testing.assert_close(together.frames[1, :frames], alone.frames[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run(tiny_encoder, small_tree, tmp_path, precision):
    arguments = [
        "--preset", "demo", "--model_name_or_path", str(tiny_encoder), "--train_data", str(small_tree),
        "--eval_data", str(small_tree), "--output_dir", str(tmp_path), "--max_steps", "3", "--report_to", "none",
        "--plots", "false", "--projection_dim", "8", "--bf16", str(precision == "bf16"),
    ]  # fmt: skip
    record = _run(parse_options(arguments))
    assert record["hardware"]["gpus"]
    assert json.loads((tmp_path / "laser_config.json").read_text())["updates"] == 3
    assert torch.isfinite(torch.tensor(record["last"]["eval_loss"]["value"]))
