"""Speaker identification: the head against S3PRL's order of operations, the split, and whole commands."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from laser_hf.errors import LaserError
from laser_hf.records import read_record
from laser_hf.superb.__main__ import main
from laser_hf.superb.features import load_features
from laser_hf.superb.sid import MeanHead, pooled, split_by_speaker, train_heads


def test_the_mean_may_come_first():
    """S3PRL projects every frame of the weighted sum, then takes the mean of those in use."""
    torch.manual_seed(0)
    lengths = [9, 4, 7]
    states = [torch.randn(3, length, 6) for length in lengths]
    head = MeanHead(3, 6, 5)
    torch.nn.init.normal_(head.weighted_sum.weights)
    shares = head.weighted_sum.weights.softmax(0)
    summed = pad_sequence([(shares[:, None, None] * one).sum(0) for one in states], batch_first=True)
    projected = head.projection(summed)
    means = torch.stack([row[:length].mean(0) for row, length in zip(projected, lengths, strict=True)])
    found = head(torch.stack([one.mean(1) for one in states], 1))
    torch.testing.assert_close(found, head.output(means))
    alone = MeanHead(3, 6, 5, layer=1)
    expected = alone.output(alone.projection(torch.stack([one[1].mean(0) for one in states])))
    torch.testing.assert_close(alone(torch.stack([one.mean(1) for one in states], 1)), expected)


def test_stretches_of_frames(tiny_encoder):
    features = load_features(str(tiny_encoder))
    waveforms = [torch.randn(16_000, generator=torch.Generator().manual_seed(n))[: 9_000 + 3_000 * n] for n in range(3)]
    frames = features(waveforms, range(features.layers))
    for index, found in enumerate(pooled(features, waveforms, 0.2)):
        own = torch.stack([layer[index] for layer in frames])
        assert found.shape[1] == own.shape[1] // 10
        for place in range(found.shape[1]):
            torch.testing.assert_close(found[:, place], own[:, 10 * place : 10 * place + 10].mean(1))
    for index, found in enumerate(pooled(features, waveforms, 0)):
        torch.testing.assert_close(found[:, 0], torch.stack([layer[index].mean(0) for layer in frames]))


def test_speakers_are_in_every_part_and_utterances_in_one():
    ids = [f"{speaker}-{number:02d}" for speaker in "abc" for number in range(20)] + ["d-0", "d-1"]
    speakers = [one[0] for one in ids]
    roles = list(split_by_speaker(ids, speakers, 10).values())
    assert [len(rows) for rows in roles] == [18, 6, 6]
    assert len({row for rows in roles for row in rows}) == 30
    for rows in roles:
        assert {speakers[row] for row in rows} == set("abc")  # the fourth has too few
    latest = {role: max(ids[row] for row in rows if speakers[row] == "a") for role, rows in enumerate(roles)}
    assert latest[0] < latest[1] < latest[2] == "a-19"
    with pytest.raises(LaserError, match="two speakers with five utterances are needed; 0 of 1"):
        split_by_speaker(ids[-2:], speakers[-2:], 10)


def test_what_can_be_told_apart_is_learned_and_noise_is_not():
    torch.manual_seed(0)
    centres = torch.randn(4, 8)
    data = []
    for count in (200, 80, 80):
        labels = torch.arange(count) % 4
        data.append((torch.stack([centres[labels] + 0.3 * torch.randn(count, 8), torch.randn(count, 8)]), labels))
    heads = [MeanHead(2, 8, 4, layer) for layer in (None, 0, 1)]
    weighted, right, noise = train_heads(heads, data, {"max_steps": 200, "eval_steps": 50, "learning_rate": 1e-2}, 0)
    assert weighted["test"] > 95
    assert right["test"] > 95
    assert noise["test"] < 50
    shares = heads[0].weighted_sum.shares()
    assert shares[0] > shares[1]


def test_a_command(tiny_encoder, small_tree, tmp_path, capsys):
    words = ["--model", str(tiny_encoder), "--data", str(small_tree), "--seconds", "0.2", "--max_steps", "20"]
    words += ["--device", "cpu", "--eval_steps", "10"]
    record = main(["sid", *words, "--output_dir", str(tmp_path / "a")])
    assert read_record(tmp_path / "a" / "results.json")["value"] == record["value"]
    assert (record["task"], record["metric"], record["protocol"]) == ("sid", "accuracy", "quick")
    assert record["data"]["speakers"] == 3
    assert record["chance"] == pytest.approx(100 / 3)
    by_layer = [one["layer"] for one in record["metrics"] if one["metric"] == "layer_accuracy"]
    assert by_layer == [0, 1, 2, 3]
    counts = torch.tensor(list(record["last_layer_right"].values())).sum(0)
    assert counts[1] == record["data"]["test"]["stretches"]
    (alone,) = (one["value"] for one in record["metrics"] if one["metric"] == "last_layer_accuracy")
    assert alone == pytest.approx(100 * counts[0] / counts[1])
    assert (tmp_path / "a" / "accuracy.png").is_file()
    assert main(["sid", *words, "--output_dir", str(tmp_path / "b")])["metrics"] == record["metrics"]
    tables = main(["table", str(tmp_path / "a"), "--output", str(tmp_path / "t.md")])
    assert list(tables[-1].columns.values()) == [
        f"speaker identification{where}, %, all (quick)" for where in ("", " on the last layer")
    ]
    with pytest.raises(SystemExit):
        main(["sid", *words, "--seconds", "-1", "--output_dir", str(tmp_path / "c")])
    assert "--seconds must be at least 0" in capsys.readouterr().err
