"""What only a GPU can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from conftest import make_model

from laser_hf import LaserLoss
from laser_hf.encoders import SpeechEncoder
from laser_hf.ops import pick_backend, soft_dtw, soft_dtw_divergence

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


def unit_frames(*shape: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 65), (63, 64), (65, 1), (1023, 1025), (1025, 63), (2500, 2500)])
def test_triton_equals_reference(m, n, gamma):
    torch.manual_seed(m + n)
    lengths = torch.tensor([m, max(m // 2, 1)]), torch.tensor([max(n - 7, 1), n])
    cost = torch.rand(2, m, n) * 2
    upstream = torch.tensor([-3.0, 0.5])
    results = []
    for dtype, device, backend in ((torch.float64, "cpu", "cpu"), (torch.float32, "cuda", "triton")):
        leaf = cost.to(device, dtype, copy=True).requires_grad_()
        value = soft_dtw(leaf, *(length.to(device) for length in lengths), gamma, backend)
        (value * upstream.to(value)).sum().backward()
        results.append((value.detach().cpu().double(), leaf.grad.cpu().double()))
    (value, gradient), (own_value, own_gradient) = results
    torch.testing.assert_close(own_value, value, rtol=2e-6, atol=2e-6)
    # Rounding of float32 costs changes a path's probability by 2^-24 per frame, divided by gamma.
    torch.testing.assert_close(own_gradient, gradient, rtol=0, atol=max(1e-4, 1e-6 / gamma))


def test_divergence_gradient_is_close_to_float64_whatever_tf32_says():
    x, y = unit_frames(2, 635, 256, seed=0), unit_frames(2, 580, 256, seed=1)
    results, before = [], torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cuda")):
            a, b = (t.to(device, dtype, copy=True).requires_grad_() for t in (x, y))
            soft_dtw_divergence(a, b, gamma=0.1).sum().backward()
            results.append((a.grad.cpu().double(), b.grad.cpu().double()))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
def test_one_pass_equals_the_separate_terms(distance):
    x, y = (unit_frames(2, n, 8, seed=n).float().cuda() for n in (70, 50))
    lengths = torch.tensor([70, 33], device="cuda"), torch.tensor([1, 50], device="cuda")
    assert pick_backend("auto", x) == "triton"
    results = []
    for backend in ("reference", "triton"):
        a, b = (t.clone().requires_grad_() for t in (x, y))
        terms = LaserLoss(sigma=2, distance=distance, backend=backend)(a, lengths[0], b, lengths[1])
        (terms["total"].sum() - 0.3 * terms["idm"].sum() + 2.0 * terms["soft_dtw"].sum()).backward()
        results.append([*(terms[name].detach() for name in LaserLoss.term_names), a.grad, b.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_never_waits_for_the_device():
    x, y = (unit_frames(2, n, 16, seed=n).float().cuda().requires_grad_() for n in (1100, 90))
    lengths = torch.tensor([1100, 40], device="cuda"), torch.tensor([80, 90], device="cuda")
    loss = LaserLoss()
    loss(x, lengths[0], y, lengths[1])["total"].sum().backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(x, lengths[0], y, lengths[1])["total"].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_loss_inside_a_compiled_graph():
    x, y = (unit_frames(2, n, 16, seed=n).float().cuda() for n in (40, 30))
    lengths = torch.tensor([40, 9], device="cuda"), torch.tensor([30, 30], device="cuda")
    loss = LaserLoss()

    def step(a):
        return loss(a * 1.0, lengths[0], y, lengths[1])["total"].mean()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        a = x.clone().requires_grad_()
        function(a).backward()
        gradients.append(a.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


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
    pytest.importorskip("datasets")
    from laser_hf.training import parse_options, run_training

    arguments = [
        "--preset", "demo", "--model_name_or_path", str(tiny_encoder), "--train_data", str(small_tree),
        "--eval_data", str(small_tree), "--output_dir", str(tmp_path), "--max_steps", "3", "--report_to", "none",
        "--plots", "false", "--projection_dim", "8", "--bf16", str(precision == "bf16"),
    ]  # fmt: skip
    record = run_training(parse_options(arguments))
    assert record["hardware"]["gpus"]
    assert json.loads((tmp_path / "laser_config.json").read_text())["updates"] == 3
    assert torch.isfinite(torch.tensor(record["last"]["eval_loss"]["value"]))


def test_the_loss_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = unit_frames(2, 40, 16, seed=1).float()
    lengths = torch.tensor([40, 9])
    found = []
    for device in ("cuda:0", "cuda:1"):
        leaf = x.to(device).requires_grad_()
        LaserLoss()(leaf, lengths, leaf.detach(), lengths)["total"].sum().backward()
        found.append(leaf.grad.cpu())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("objective", ["laser", "spin"])
def test_an_update_waits_once(tiny_encoder, small_tree, tmp_path, monkeypatch, objective):
    """As on the shadow device of `tests/training/test_shadow_device.py`, by PyTorch's own count."""
    pytest.importorskip("datasets")
    from laser_hf.training import LaserTrainer, parse_options, run_training

    step = LaserTrainer.training_step

    def training_step(self, *args, **kwargs):
        torch.cuda.set_sync_debug_mode("warn" if self.state.global_step == 2 else "default")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LaserTrainer, "training_step", training_step)
    arguments = [
        "--preset", "demo", "--model_name_or_path", str(tiny_encoder), "--train_data", str(small_tree),
        "--eval_data", "", "--output_dir", str(tmp_path), "--max_steps", "4", "--report_to", "none",
        "--plots", "false", "--projection_dim", "8", "--logging_steps", "100", "--save_strategy", "no",
        "--objective", objective, *(("--perturbations", "equalizer") if objective == "spin" else ()),
    ]  # fmt: skip
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_training(parse_options(arguments))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchronizing CUDA operation" in str(one.message)]
    assert len(waits) <= 1, [f"{one.filename}:{one.lineno}" for one in waits]
