"""Every benchmark's quick CPU path runs to its record; the baseline computes what it stands for."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks belong to the repository, not to the package

from benchmarks import common, epoch, perturbation, qbe, soft_dtw, update
from benchmarks.librispeech_like import SAMPLE_RATE, draw_seconds, write_utterances
from benchmarks.training import make_encoder


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_lengths_are_those_of_train_clean_100():
    seconds = draw_seconds(200_000, np.random.default_rng(0))
    assert seconds.mean() == pytest.approx(12.7, abs=0.05)
    assert 2 <= seconds.min() < 2.1
    assert 16.8 < seconds.max() <= 17


def test_utterances_are_written_once_and_linked(tmp_path, small_tree):
    import soundfile

    paths = write_utterances(tmp_path / "made", 7, distinct=3, scale=0.05)
    assert len({path.stat().st_ino for path in paths}) == 3
    samples, rate = soundfile.read(paths[6])
    assert rate == SAMPLE_RATE
    assert 0.05 < np.abs(samples).max() < 1
    real = write_utterances(tmp_path / "cut", 2, speech=small_tree, scale=0.1)
    expected = [soundfile.info(path).frames for path in write_utterances(tmp_path / "same", 2, scale=0.1)]
    assert [soundfile.info(path).frames for path in real] == expected
    with pytest.raises(SystemExit, match=r"no \.flac"):
        write_utterances(tmp_path / "none", 1, speech=tmp_path / "missing")


@pytest.mark.slow
def test_released_loss_is_ours():
    """The baseline does slowly what `LaserLoss` does: same value, same gradient."""
    needs("numba")
    from benchmarks.released import released_loss
    from laser_hf import LaserLoss

    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (13, 9))
    results = []
    for ours in (True, False):
        a, b = (frames.clone().requires_grad_() for frames in (x, y))
        if ours:
            loss = LaserLoss(backend="reference")(a[None], torch.tensor([13]), b[None], torch.tensor([9]))["total"][0]
        else:
            loss = released_loss(a, b)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad))
    for ours, released in zip(*results, strict=True):
        torch.testing.assert_close(released, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_released_update_trains_what_was_released(tmp_path, monkeypatch):
    """On one thread and with a pitch shift whose kernel is small."""
    needs("numba", "torchaudio")
    import torchaudio.transforms

    from benchmarks import released

    real = torchaudio.transforms.PitchShift
    monkeypatch.setattr(torchaudio.transforms, "PitchShift", lambda rate, steps: real(rate, 6 * steps))
    paths = write_utterances(tmp_path, 4, scale=0.04)
    model = make_encoder("hubert-base", tmp_path, tiny=True, training=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = released.released_updates(model, paths, 1, 2, "cpu", False, workers=0)
    assert len(found["times"]) == 1
    assert all(found["seconds"][part] > 0 for part in released.PARTS)
    changed = {name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()}
    trained = ("encoder.layers.1.", "encoder.layers.2.", "encoder.layer_norm.")
    assert changed
    assert all(name.startswith(trained) for name in changed)
    assert {"encoder.layer_norm.weight", "encoder.layers.1.attention.q_proj.weight"} <= changed


@pytest.mark.slow
def test_perturbation(tmp_path, capsys):
    record = json.loads(perturbation.main(["--quick", "--output", str(tmp_path / "record.json")]).read_text())
    (pitch,) = record["pitch"]
    if "torchaudio" not in record["missing"]:
        assert pitch["max_difference"] < 5e-4
        assert pitch["same_length"]
    assert pitch["laser_hf_table_mib"] <= 2
    assert record["batched"]["max_difference"] < 1e-5
    assert "semitones" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "arguments"),
    [(update, ["--without", "bf16", "same", "released", "--workers", "0"]), (epoch, []), (epoch, ["--predict"])],
)
def test_training_benchmarks(benchmark, arguments, tmp_path, monkeypatch):
    def here(function, *given):  # a fresh process takes seconds to import everything again
        return function(*given) | {"peak_memory_gib": 0.0, "peak_memory_worker_gib": 0.0}

    monkeypatch.setattr(benchmark, "in_process", here)
    arguments = ["--quick", *arguments, "--output", str(tmp_path / "record.json")]
    record = json.loads(benchmark.main(arguments).read_text())
    assert record["quick"]
    assert record["audio_format"] == "flac"
    profile = record["profile"] if benchmark is epoch else record["systems"][update.OURS]
    assert profile["seconds"]["encode"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    if "--predict" in arguments:
        prediction = record["prediction"]
        core, gpu = prediction["core_seconds"], prediction["gpu_seconds"]
        slowest = max(gpu + prediction["host_seconds"], core / prediction["assumed"]["workers"])
        assert prediction["epoch_seconds"] == pytest.approx(slowest * epoch.EPOCH)
        assert min(core, gpu, prediction["host_seconds"]) > 0
    elif benchmark is epoch:
        assert record["epoch_seconds"] is None  # four updates of a tiny model say nothing about an epoch
        assert record["gpu_busy"] is None


def test_update_profile_is_drawn(tmp_path):
    systems = {
        name: {"seconds": {"encode": 1.0, "loss": share, "decode": 0.5, "perturb": 1.5}, "workers": 2}
        for name, share in ((update.OURS, 0.1), (update.RELEASED, 3.0))
    }
    update.plot(systems, tmp_path / "figures" / "profile.png", "One update")
    assert (tmp_path / "figures" / "profile.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("benchmark", [update, epoch, perturbation, soft_dtw])
def test_a_device_that_is_not_there(benchmark, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", [update, epoch, perturbation, soft_dtw, qbe])
def test_all_benchmarks_have_the_common_options(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    shown = capsys.readouterr().out
    assert f"usage: python -m {benchmark.__name__} " in shown
    assert benchmark.__doc__.splitlines()[0] in shown
    for option in ("--quick", "--output"):
        assert shown.count(f"\n  {option} ") == 1
    assert ("--device" in shown) is (benchmark is not qbe)  # it has no GPU code


@pytest.mark.slow
def test_soft_dtw(tmp_path, monkeypatch, capsys):
    """Ours and the released way, without the study of scaling."""
    needs("numba")
    known = {soft_dtw.OURS, "released method"}
    for table in ("DIVERGENCE", "LOSS"):
        contestants = getattr(soft_dtw.peers, table)
        monkeypatch.setattr(soft_dtw.peers, table, {name: contestants[name] for name in contestants if name in known})
    path = soft_dtw.main(["--quick", "--no_memory", "--no_scaling", "--output", str(tmp_path / "record.json")])
    assert path == tmp_path / "record.json"
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["device"]) == ("soft_dtw", "cpu")
    for table in ("divergence", "loss"):
        assert record[table].keys() == soft_dtw.cases(True).keys()
        for case, rows in record[table].items():
            assert rows[soft_dtw.OURS]["ratio"] == 1
            if "failed" in rows["released method"]:  # pair by pair, several pairs are left out
                assert (table, len(record["cases"][case])) == ("divergence", 3)
            else:
                assert rows["released method"]["time"]["median"] > 0
            assert all(row["gradient_error"] < 1e-5 for row in rows.values() if "failed" not in row)
    assert "gradient error" in capsys.readouterr().out


def test_timing_leaves_the_warm_up_out_and_stops_at_the_budget():
    """By a clock that only the functions move."""
    now, calls = [0.0], {"quick": 0, "slow": 0}

    def takes(name, seconds):
        def function():
            calls[name] += 1
            now[0] += seconds * (10 if calls[name] == 1 else 1)  # the first call is slower

        return function

    functions = {"quick": takes("quick", 0.125), "slow": takes("slow", 4.0)}
    found = common.time_side_by_side(functions, repeats=4, warm_up=2, budget=7.0, clock=lambda: now[0])
    # The first slow call alone is beyond the budget: it counts, and is the only one.
    assert (calls["quick"], found["quick"].repeats) == (6, 4)
    assert (calls["slow"], found["slow"].repeats) == (1, 1)
    assert found["slow"].median == 40.0
    assert found["quick"].minimum == found["quick"].median == 0.125
    calls["slow"] = 1
    found = common.time_side_by_side(functions, repeats=4, warm_up=2, budget=7.0, clock=lambda: now[0])
    assert (calls["slow"], found["slow"].repeats) == (1 + 4, 2)  # two of warm-up, two that use the budget up


def test_gpu_check_says_what_is_missing(monkeypatch, capsys):
    """With some packages that cannot be imported."""
    blocked = ("datasets", "soundfile", "torchaudio", "pysdtw")
    spec = importlib.util.spec_from_file_location("gpu_check", REPOSITORY / "scripts" / "gpu_check.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", script)  # its dataclass looks there
    spec.loader.exec_module(script)
    for package in blocked:
        monkeypatch.setitem(sys.modules, package, None)
    assert script.main(["--dry_run"]) == 0
    shown = capsys.readouterr().out
    for package in blocked:
        assert f"missing: {package}" in shown
    assert 'tests: {"status": "would run"' in shown
    assert '"reason": "missing: torchaudio, datasets, soundfile"' in shown
