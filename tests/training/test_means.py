"""Means and collapse statistics against sums by hand, and the monitor that reads them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_waveform

from laser_hf.data import SpeedPitch
from laser_hf.encoders import SpeechEncoder
from laser_hf.objectives import LaserLoss
from laser_hf.ops.statistics import effective_rank, mean_pairwise_cosine
from laser_hf.training import AlignmentModel, CollapseMonitor, LaserTrainer, LaserTrainingArguments
from laser_hf.training import means as means_module
from laser_hf.training.means import FRAMES_PER_PAIR, MAX_FRAMES, Means, spread

CPU = torch.device("cpu")


def test_means_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    terms = {"total": torch.rand(6), "soft_dtw": torch.rand(6)}
    frames = torch.nn.functional.normalize(torch.randn(6, 9, 4), dim=-1)
    lengths = [9, 4, 7, 9, 1, 5]
    used = torch.cat([rows[:length] for rows, length in zip(frames, lengths, strict=True)])
    for cuts in ([6], [2, 4], [1, 1, 3, 1]):
        means, start = Means(("total", "soft_dtw"), CPU), 0
        for size in cuts:
            part = slice(start, start + size)
            means.add({name: term[part] for name, term in terms.items()}, size, frames[part], lengths[part])
            start += size
        means.draw()
        assert means.terms()["loss"] == pytest.approx(float(terms["total"].mean()))
        assert means.terms()["soft_dtw"] == pytest.approx(float(terms["soft_dtw"].mean()))
        found = means.statistics()
        assert found["frame_cosine"] == pytest.approx(mean_pairwise_cosine(used), abs=1e-6)
        assert found["effective_rank"] == pytest.approx(effective_rank(used), rel=1e-5)


def test_sums_and_frames_of_other_processes_count(monkeypatch):
    other = torch.randn(5, 4)
    monkeypatch.setattr(means_module, "sum_over_processes", lambda value, device: value + torch.tensor([9.0, 2.0]))
    monkeypatch.setattr(means_module, "from_all_processes", lambda value: [value, (other, 5)])
    means = Means(("total",), CPU)
    own = torch.randn(2, 3, 4)
    means.add({"total": torch.tensor([1.0, 2.0])}, 2, own, [3, 2])
    means.draw()
    assert means.terms() == {"loss": pytest.approx(3.0)}  # two pairs more, 9 in sum
    together = torch.cat((own[0], own[1, :2], other))
    assert means.statistics()["effective_rank"] == pytest.approx(effective_rank(together), rel=1e-5)


def test_nothing_that_can_be_used():
    means = Means(("total",), CPU)
    means.draw()
    assert means.terms() == means.statistics() == {}


def test_frames_are_spread_evenly_over_all_pairs():
    frames = torch.arange(1000.0).unsqueeze(1)
    assert spread(frames, 4).flatten().tolist() == [0, 333, 666, 999]
    assert spread(frames, 1000) is frames
    means = Means(("total",), CPU)
    pairs = torch.stack([100 * i + torch.linspace(0, 1, 200) for i in range(12)]).unsqueeze(2)
    for part in pairs.split(5):
        means.add({"total": torch.zeros(len(part))}, len(part), part, [200] * len(part))
    means.draw()
    drawn = means._drawn.flatten()
    assert len(drawn) == means.count == MAX_FRAMES < 12 * FRAMES_PER_PAIR
    counts = torch.bincount((drawn / 100).long())
    assert counts.min() >= 42
    assert counts.max() <= 43


def test_a_draw_with_fewer_frames_is_filled_up():
    means = Means(("total",), CPU)

    def update(value, pairs):
        means.add({"total": torch.zeros(pairs)}, pairs, torch.full((pairs, 10, 1), value), [10] * pairs)
        means.draw()
        return means._drawn.flatten().tolist()

    assert update(1.0, 4) == [1.0] * 40
    assert update(2.0, 1) == [1.0] * 30 + [2.0] * 10
    assert update(3.0, 9) == [3.0] * 40
    resumed = Means(("total",), CPU)
    resumed.count = 40
    resumed.add({"total": torch.zeros(1)}, 1, torch.rand(1, 10, 3), [10])
    resumed.draw()
    assert resumed.statistics() == {}  # too few to compare with what was before


# ---- the monitor ----


def test_monitor_fires_and_remembers():
    monitor = CollapseMonitor(0.5, 0.5)
    assert not monitor.check(0, 0.2, 100.0)
    assert not monitor.check(10, 0.59, 51.0)
    assert monitor.check(20, 0.61, 60.0)
    assert "cosine 0.610 (started at 0.200, limit 0.600)" in monitor.reason
    assert monitor.check(30, 0.2, 49.0)
    assert "rank" in monitor.reason
    assert monitor.fired_at == 20


def test_a_start_with_frames_alike_is_no_alarm():
    monitor = CollapseMonitor(0.5, 0.5)
    assert not monitor.check(0, 0.9, 100.0)
    assert not monitor.check(1, 0.94, 90.0)
    assert monitor.check(2, 0.96, 90.0)


def test_it_judges_lines_with_its_statistics_and_says_what_to_do(caplog):
    monitor = CollapseMonitor(prefix="eval_", remedy="--alpha")
    state = SimpleNamespace(global_step=7, is_world_process_zero=True, log_history=[{}])
    for line, expected in (
        ({"frame_cosine": 1.0, "effective_rank": 1.0}, None),
        ({"eval_frame_cosine": 0.1, "eval_effective_rank": 9.0}, 0),
        ({"eval_frame_cosine": 0.9, "eval_effective_rank": 9.0}, 1),
    ):
        state.log_history[-1] = dict(line)
        monitor.on_log(None, state, None, logs=line)
        assert line.get("eval_collapse") == state.log_history[-1].get("eval_collapse") == expected
    assert "raise --alpha or lower --learning_rate" in caplog.text


def test_a_short_last_update_is_no_collapse(tmp_path):
    """5 utterances of 1 s in updates of 4 pairs, and a learning rate that changes nothing."""
    pairs = []
    for index in range(5):
        wave = torch.from_numpy(make_waveform(1.0, seed=index))
        drawn = {"speed": 0.9, "pitch": 2}
        perturbed = SpeedPitch().apply(wave, **drawn)
        pairs.append({"id": str(index), "clean": wave, "perturbed": perturbed, "drawn": drawn, "skip": ""})
    args = LaserTrainingArguments(
        output_dir=str(tmp_path), pairs_per_update=4, max_steps=2, learning_rate=1e-12, logging_steps=1,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    torch.manual_seed(0)
    # Wide enough that one utterance has a clearly lower rank than four.
    encoder = SpeechEncoder(make_model(hidden_size=128, intermediate_size=128))
    trainer = LaserTrainer(AlignmentModel(encoder, 256), args, pairs, objective=LaserLoss())
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["collapse"] == second["collapse"] == 0
    assert second["effective_rank"] == pytest.approx(first["effective_rank"], rel=0.15)
    assert trainer.monitor.fired_at is None
