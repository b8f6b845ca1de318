"""Padding, batches without a usable pair, and the account of what was skipped."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from laser_hf.data import PairCollator, SkipLog


def pair(name: str, clean: int, perturbed: int) -> dict:
    """A pair of ramps, of these lengths."""
    views = {"clean": 1.0 + torch.arange(clean), "perturbed": -1.0 - torch.arange(perturbed)}
    return {"id": name, **views, "drawn": {"speed": clean / perturbed, "pitch": 2}, "skip": ""}


def skipped(name: str, reason: str = "silent: 1.00 s of digital silence") -> dict:
    """A pair that could not be made."""
    return {"id": name, "clean": None, "perturbed": None, "drawn": {}, "skip": reason}


def test_padding_and_lengths():
    pairs = [pair("a", 5, 4), skipped("b"), pair("c", 2, 7)]
    batch = PairCollator()(pairs)
    assert batch["ids"] == ["a", "c"]
    assert batch["skipped"] == [("b", "silent: 1.00 s of digital silence")]
    assert batch["drawn"] == [pairs[0]["drawn"], pairs[2]["drawn"]]
    for view, shape in (("clean", (2, 5)), ("perturbed", (2, 7))):
        assert batch[view].shape == shape
        assert batch[view].dtype == torch.float32
        assert batch[f"{view}_lengths"].dtype == torch.int64
        for row, length, original in zip(batch[view], batch[f"{view}_lengths"], (pairs[0], pairs[2]), strict=True):
            assert torch.equal(row[:length], original[view])
            assert torch.count_nonzero(row[length:]) == 0
            assert length == len(original[view])


@pytest.mark.parametrize("pairs", [[], [skipped("a"), skipped("b")]])
def test_a_batch_with_nothing_usable(pairs):
    batch = PairCollator()(pairs)
    assert batch["clean"].shape == batch["perturbed"].shape == (0, 0)
    assert batch["clean_lengths"].shape == batch["perturbed_lengths"].shape == (0,)
    assert batch["clean_lengths"].dtype == torch.int64
    assert batch["ids"] == batch["drawn"] == []
    assert len(batch["skipped"]) == len(pairs)


def test_a_batch_survives_dataloader_workers_and_the_way_to_a_device():
    pairs = [pair("a", 5, 4), skipped("b"), pair("c", 2, 7)]
    (batch,) = DataLoader(pairs, batch_size=3, num_workers=1, collate_fn=PairCollator())
    moved = send_to_device(batch, torch.device("cpu"))
    expected = PairCollator()(pairs)
    assert moved.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(moved[name], value) if isinstance(value, torch.Tensor) else moved[name] == value


def test_skip_log_names_each_utterance_once(caplog):
    log = SkipLog()
    assert len(log) == 0
    assert log.summary() == {"utterances": 0, "times": 0, "by_kind": {}}
    with caplog.at_level(logging.WARNING, logger="laser_hf.data"):
        log.update([("a", "silent: 1 s"), ("b", "nan: 3 of 9 samples")])
        log.update([("a", "silent: 1 s")])
        log.update([])
    assert [record.getMessage() for record in caplog.records] == [
        "skipped utterance a: silent: 1 s",
        "skipped utterance b: nan: 3 of 9 samples",
    ]
    assert len(log) == 2
    assert log.summary() == {"utterances": 2, "times": 3, "by_kind": {"nan": 1, "silent": 1}}
    assert json.loads(json.dumps(log.summary())) == log.summary()
